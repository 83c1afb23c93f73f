//! Requests that run now, as the router knows them: it counts what it sends out itself, and so need not wait for
//! workers to report.

mod prefill_load;
mod prefill_speed;
mod prefills;
mod prompt_trie;

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use dynamo_tokens::{BlockSize, SequenceHash};
pub use prefill_load::{ParsePrefillLoadModelError, PrefillLoadModel};
use prefills::Prefills;
use prompt_trie::{NodeId, PromptTrie};

use crate::Slot;

/// Names a running request; never used again while the tracker lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReservationId(u64);

impl ReservationId {
    fn new(index: u32, generation: u32) -> Self {
        Self(u64::from(generation) << 32 | u64::from(index))
    }

    /// The name as a number.
    pub fn number(self) -> u64 {
        self.0
    }

    fn index(self) -> usize {
        self.0 as u32 as usize
    }

    fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// A request to count.
#[derive(Clone, Copy, Debug)]
pub struct NewRequest<'a> {
    /// Where it runs.
    pub slot: Slot,
    /// Sequence hashes of the prompt's whole blocks, first to last: these it shares with others of the same prefix.
    pub prompt_blocks: &'a [SequenceHash],
    /// Blocks that it shares with nobody.
    pub private_blocks: u32,
    /// Tokens of the prompt that the worker has to compute.
    pub prefill_tokens: u64,
    /// Tokens of the answer that the client expects, if it said so: as the answer approaches them, the blocks that
    /// nobody else has count less, for they will soon be free.
    pub expected_output_tokens: Option<u32>,
}

/// More requests than the tracker may count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} requests are active, which is the limit: raise max_active_requests")]
pub struct TooManyActive(pub u32);

/// What runs on a slot.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SlotLoad {
    /// Prompt tokens that are still to be computed.
    pub prefill_tokens: u64,
    /// Different blocks of running requests, answers included; those of answers may weigh less than one.
    pub decode_blocks: f64,
    /// Requests.
    pub requests: u32,
}

/// What would run on each slot if a request came. Keep it and use it again, then asking allocates nothing.
#[derive(Clone, Debug, Default)]
pub struct PotentialLoads {
    /// By slot index.
    loads: Vec<SlotLoad>,
    shared: Vec<u32>,
}

impl PotentialLoads {
    /// The load of a slot with the request's blocks added to its `decode_blocks`; tokens and requests as they are.
    pub fn get(&self, slot: Slot) -> Option<&SlotLoad> {
        self.loads.get(slot.index())
    }
}

/// Weights of output blocks are counted in whole parts of a block, so that sums come back to zero.
const PARTS: u64 = 1024;

#[derive(Clone, Copy, Default)]
struct Load {
    prefill_tokens: u64,
    prompt_blocks: u64,
    /// In [`PARTS`] of a block.
    output_parts: u64,
    /// What is taken off the prompt blocks, in [`PARTS`] of a block.
    discount_parts: u64,
    requests: u32,
}

impl Load {
    fn decode_blocks(&self) -> f64 {
        let parts = (self.prompt_blocks * PARTS + self.output_parts).saturating_sub(self.discount_parts);
        parts as f64 / PARTS as f64
    }
}

struct Active {
    slot: u32,
    /// Where its prompt ends.
    prompt: NodeId,
    private_blocks: u32,
    /// Zero once prefill is complete.
    prefill_tokens: u64,
    output_blocks: u32,
    output_parts: u64,
    /// Of blocks that only this request has on its slot, in [`PARTS`]: they will soon be free.
    discount_parts: u64,
    expected_output_tokens: Option<u32>,
    last_sign: Instant,
}

struct Entry {
    generation: u32,
    active: Option<Active>,
}

/// All running requests of one base model.
pub struct ActiveSequences {
    block_size: BlockSize,
    expiry: Duration,
    limit: u32,
    entries: Vec<Entry>,
    free: Vec<u32>,
    /// By slot index.
    loads: Vec<Load>,
    prompts: PromptTrie,
    /// Where outstanding prompts count less while they are computed.
    prefills: Option<Prefills>,
    /// When to look at which request; in the order of their start, some looked at again later.
    checks: VecDeque<(Instant, ReservationId)>,
    live: usize,
}

impl ActiveSequences {
    /// Counts nothing yet. A request without a sign of life for `expiry` is dropped; at most `limit` are counted.
    pub fn new(block_size: BlockSize, expiry: Duration, limit: u32, model: PrefillLoadModel) -> Self {
        Self {
            block_size,
            expiry,
            limit,
            entries: Vec::new(),
            free: Vec::new(),
            loads: Vec::new(),
            prompts: PromptTrie::default(),
            prefills: (model == PrefillLoadModel::Measured).then(Prefills::default),
            checks: VecDeque::new(),
            live: 0,
        }
    }

    /// Counts a request from now on.
    pub fn add_request(
        &mut self,
        request: &NewRequest<'_>,
        now: Instant,
    ) -> Result<ReservationId, TooManyActive> {
        if self.live >= self.limit as usize {
            return Err(TooManyActive(self.limit));
        }
        let slot = request.slot.index();
        if slot >= self.loads.len() {
            self.loads.resize(slot + 1, Load::default());
        }
        let prompt = self.prompts.add(slot as u32, request.prompt_blocks);
        let load = &mut self.loads[slot];
        load.prefill_tokens += request.prefill_tokens;
        load.prompt_blocks += prompt.new_blocks + u64::from(request.private_blocks);
        load.requests += 1;
        let active = Active {
            slot: slot as u32,
            prompt: prompt.end,
            private_blocks: request.private_blocks,
            prefill_tokens: request.prefill_tokens,
            output_blocks: 0,
            output_parts: 0,
            discount_parts: 0,
            expected_output_tokens: request.expected_output_tokens,
            last_sign: now,
        };
        let index = self.free.pop().unwrap_or_else(|| {
            self.entries.push(Entry { generation: 0, active: None });
            self.entries.len() as u32 - 1
        });
        if let Some(prefills) = &mut self.prefills {
            prefills.begin(slot, index as usize, request.prefill_tokens, now);
        }
        let entry = &mut self.entries[index as usize];
        entry.active = Some(active);
        self.live += 1;
        let id = ReservationId::new(index, entry.generation);
        self.plan_check(now + self.expiry, id);
        Ok(id)
    }

    /// The first token came: the prompt's tokens are computed. An unknown request is nothing to mark.
    pub fn mark_prefill_completed(&mut self, id: ReservationId, now: Instant) {
        let Some((active, load)) = self.active(id) else { return };
        active.last_sign = now;
        let (slot, tokens) = (active.slot as usize, std::mem::take(&mut active.prefill_tokens));
        load.prefill_tokens -= tokens;
        if let Some(prefills) = self.prefills.as_mut().filter(|_| tokens > 0) {
            prefills.end(slot, id.index(), true, now);
        }
    }

    /// The answer grew by a block. Where the client said how long it will be, what only this request has (its answer,
    /// and the blocks of its prompt that no other request has on the slot at the moment) weighs `1 − generated /
    /// expected`, at least 0, until the next block.
    pub fn add_output_block(&mut self, id: ReservationId, now: Instant) {
        let block_size = self.block_size.get() as u64;
        let Some(entry) = self.entries.get_mut(id.index()) else { return };
        let Some(active) = entry.active.as_mut().filter(|_| entry.generation == id.generation()) else {
            return;
        };
        let load = &mut self.loads[active.slot as usize];
        active.last_sign = now;
        active.output_blocks += 1;
        let blocks = u64::from(active.output_blocks);
        let (parts, discount) = match active.expected_output_tokens {
            None => (blocks * PARTS, 0),
            Some(expected) => {
                let expected = u64::from(expected.max(1));
                let generated = expected.min(blocks * block_size);
                let exclusive = self.prompts.exclusive(active.slot, active.prompt);
                let own = exclusive + u64::from(active.private_blocks);
                (blocks * PARTS * (expected - generated) / expected, own * PARTS * generated / expected)
            }
        };
        load.output_parts = load.output_parts - active.output_parts + parts;
        load.discount_parts = load.discount_parts - active.discount_parts + discount;
        (active.output_parts, active.discount_parts) = (parts, discount);
    }

    /// The request lives, so that it does not expire.
    pub fn touch(&mut self, id: ReservationId, now: Instant) {
        if let Some((active, _)) = self.active(id) {
            active.last_sign = now;
        }
    }

    /// The request is over, however it ended. Returns whether it was counted until now.
    pub fn free(&mut self, id: ReservationId, now: Instant) -> bool {
        if let Some((active, _)) = self.active(id)
            && active.prefill_tokens > 0
        {
            let slot = active.slot as usize;
            if let Some(prefills) = &mut self.prefills {
                prefills.end(slot, id.index(), false, now);
            }
        }
        self.remove(id)
    }

    fn remove(&mut self, id: ReservationId) -> bool {
        let Some(entry) = self.entries.get_mut(id.index()) else { return false };
        if entry.generation != id.generation() {
            return false;
        }
        let Some(active) = entry.active.take() else { return false };
        entry.generation = entry.generation.wrapping_add(1);
        self.free.push(id.index() as u32);
        self.live -= 1;
        let gone = self.prompts.remove(active.slot, active.prompt);
        let load = &mut self.loads[active.slot as usize];
        load.prefill_tokens -= active.prefill_tokens;
        load.prompt_blocks -= gone + u64::from(active.private_blocks);
        load.output_parts -= active.output_parts;
        load.discount_parts -= active.discount_parts;
        load.requests -= 1;
        if self.live == 0 {
            // A burst is over: its memory goes back. Generations stay, so that old ids stay unknown.
            self.checks = VecDeque::new();
            self.prompts = PromptTrie::default();
            if let Some(prefills) = &mut self.prefills {
                prefills.give_back();
            }
        }
        true
    }

    /// Drops requests that gave no sign of life for too long; returns how many. Cheap: look every second or so.
    pub fn expire(&mut self, now: Instant) -> usize {
        let mut expired = 0;
        while let Some(&(at, id)) = self.checks.front() {
            if at > now {
                break;
            }
            self.checks.pop_front();
            let Some((active, _)) = self.active(id) else { continue };
            let due = active.last_sign + self.expiry;
            if due <= now {
                self.free(id, now);
                expired += 1;
            } else {
                self.plan_check(due, id);
            }
        }
        expired
    }

    /// Drops all requests of a slot, whose worker is gone, and what is known of its speed; returns how many.
    pub fn clear_slot(&mut self, slot: Slot) -> usize {
        if let Some(prefills) = &mut self.prefills {
            prefills.forget(slot.index());
        }
        if self.loads.get(slot.index()).is_none_or(|load| load.requests == 0) {
            return 0;
        }
        let of_slot: Vec<_> = (0..)
            .zip(&self.entries)
            .filter(|(_, entry)| {
                entry.active.as_ref().is_some_and(|active| active.slot as usize == slot.index())
            })
            .map(|(index, entry)| ReservationId::new(index, entry.generation))
            .collect();
        of_slot.into_iter().filter(|&id| self.remove(id)).count()
    }

    /// The load of a slot.
    pub fn load(&self, slot: Slot) -> SlotLoad {
        self.loads.get(slot.index()).map_or_else(SlotLoad::default, |load| SlotLoad {
            prefill_tokens: load.prefill_tokens,
            decode_blocks: load.decode_blocks(),
            requests: load.requests,
        })
    }

    /// Replaces `out` by the loads of the slots with indices below `slots`, as they would be with a request of these
    /// blocks on each.
    pub fn potential(
        &self,
        prompt_blocks: &[SequenceHash],
        private_blocks: u32,
        slots: usize,
        out: &mut PotentialLoads,
    ) {
        let PotentialLoads { loads, shared } = out;
        shared.clear();
        shared.resize(slots.max(self.loads.len()), 0);
        self.prompts.shared(prompt_blocks, shared);
        loads.clear();
        loads.extend(shared.iter().enumerate().map(|(slot, &shared)| {
            let load = self.loads.get(slot).copied().unwrap_or_default();
            let new = prompt_blocks.len() as u32 - shared + private_blocks;
            SlotLoad {
                prefill_tokens: load.prefill_tokens,
                decode_blocks: load.decode_blocks() + f64::from(new),
                requests: load.requests,
            }
        }));
    }

    /// Takes what is computed by now of each slot's oldest outstanding prompt off the prefill tokens, where the tracker
    /// has a model of that: see [`PrefillLoadModel`]. Once for each [`Self::potential`].
    pub fn take_computed_off(&self, out: &mut PotentialLoads, now: Instant) {
        let Some(prefills) = &self.prefills else { return };
        for (slot, load) in out.loads.iter_mut().enumerate() {
            load.prefill_tokens = load.prefill_tokens.saturating_sub(prefills.computed(slot, now));
        }
    }

    /// Prompt tokens that a slot computes in a second, where the tracker measures that and knows it by now.
    pub fn prefill_speed(&self, slot: Slot) -> Option<f64> {
        self.prefills.as_ref()?.tokens_per_second(slot.index())
    }

    /// Requests that are counted now.
    pub fn len(&self) -> usize {
        self.live
    }

    /// Whether nothing runs.
    pub fn is_empty(&self) -> bool {
        self.live == 0
    }

    /// Different (slot, block) pairs that are counted now.
    pub fn tracked_blocks(&self) -> usize {
        self.prompts.pairs()
    }

    /// Bytes on the heap, allocator overhead apart.
    pub fn bytes(&self) -> usize {
        self.prompts.bytes()
            + self.entries.capacity() * size_of::<Entry>()
            + self.checks.capacity() * size_of::<(Instant, ReservationId)>()
            + self.prefills.as_ref().map_or(0, Prefills::bytes)
    }

    /// Whether a request is counted.
    pub fn is_active(&self, id: ReservationId) -> bool {
        let entry = self.entries.get(id.index());
        entry.is_some_and(|entry| entry.generation == id.generation() && entry.active.is_some())
    }

    fn active(&mut self, id: ReservationId) -> Option<(&mut Active, &mut Load)> {
        let entry = self.entries.get_mut(id.index())?;
        let active = entry.active.as_mut().filter(|_| entry.generation == id.generation())?;
        let load = &mut self.loads[active.slot as usize];
        Some((active, load))
    }

    /// Requests that ended leave their check behind; when those are the most, they are swept out.
    fn plan_check(&mut self, at: Instant, id: ReservationId) {
        const SMALL: usize = 64;
        if self.checks.len() > 2 * self.live + SMALL {
            let entries = &self.entries;
            self.checks.retain(|(_, id)| {
                let entry = &entries[id.index()];
                entry.generation == id.generation() && entry.active.is_some()
            });
            self.checks.shrink_to(2 * self.live + SMALL);
        }
        self.checks.push_back((at, id));
    }
}

#[cfg(test)]
mod tests;
