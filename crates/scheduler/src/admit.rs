//! From the queue to the running requests.

use std::time::Duration;

use crate::request::{Loading, State};
use crate::{BlockPool, PrefixMatch, PrefixQuery, Scheduler, Step};

impl<P: BlockPool, T> Scheduler<P, T> {
    /// Admits from the front of the queue for as long as the next one fits.
    pub(crate) fn admit(&mut self, step: &mut Step, budget: &mut usize, now: Duration) {
        while *budget > 0 && self.running.len() + self.loading.len() < self.config.max_num_seqs {
            let Some(&slot) = self.waiting.front() else { return };
            if !self.admit_one(slot, step, budget, now) {
                return;
            }
        }
    }

    fn admit_one(&mut self, slot: u32, step: &mut Step, budget: &mut usize, now: Duration) -> bool {
        let id = self.request(slot).id;
        let alone = self.running.is_empty() && self.loading.is_empty();
        let unchanged = |(blocked, available)| blocked == id && self.available_blocks() <= available;
        if !alone && self.blocked.is_some_and(unchanged) {
            return false;
        }
        let found = self.find_prefix(slot, alone);
        let request = self.request(slot);
        let size = self.pool.block_size();
        let cached = found.ready * size.get();
        let left = request.len() - cached;
        // Of what waits for a load nothing is computed in this step. An undivided prefill that is larger than any step
        // (it was preempted and has grown) gets a step's prefill to itself.
        let whole = self.config.chunked_prefill
            || found.pending.is_some()
            || left <= *budget
            || (left > self.config.max_num_batched_tokens && !step.works.iter().any(|work| work.prefill));
        if !whole || !self.has_room(slot, alone) || !self.grow(slot, self.blocks_needed(slot)) {
            self.drop_match(slot, found);
            self.blocked = whole.then(|| (id, self.available_blocks()));
            return false;
        }
        self.waiting.pop_front();
        self.blocked = None;
        let request = self.request_mut(slot);
        (request.computed, request.planned, request.registered) = (cached, cached, found.ready);
        if let Some(load) = found.pending {
            let deadline = now + self.config.load_timeout;
            let request = self.request_mut(slot);
            let pending = load.blocks;
            request.state =
                State::Loading(Loading { ticket: load.ticket, ready: found.ready, pending, deadline });
            self.note_deadline(Some(deadline));
            self.loading.push(slot);
        } else {
            request.cached_tokens.get_or_insert(cached);
            request.state = State::Running;
            self.running.push(slot);
            let len = if self.config.chunked_prefill { left.min(*budget) } else { left };
            self.add_work(slot, len, step, budget);
        }
        self.recount_prefill(slot);
        true
    }

    /// Fills the request's tables with what is cached; the last token is left to compute.
    fn find_prefix(&mut self, slot: u32, alone: bool) -> PrefixMatch {
        let size = self.pool.block_size().get();
        // A load must not be started for a request that then has no room: it would start again and again.
        let has_room = self.has_room(slot, alone);
        let request = self.slots[slot as usize].as_mut().expect("listed slots are filled");
        let usable = (request.len() - 1) / size;
        let query = PrefixQuery {
            request: request.id,
            hashes: &request.sequence.sequence_hashes()[..usable],
            local_hashes: &request.sequence.local_hashes()[..usable],
            tokens: &request.sequence.tokens()[..usable * size],
            may_load: request.may_load && has_room,
        };
        self.pool.match_prefix(query, &mut request.tables)
    }

    /// Blocks for all tokens of the request.
    fn blocks_needed(&self, slot: u32) -> usize {
        let request = self.request(slot);
        let tokens = (request.len() + self.config.max_advance - 1).min(request.max_len);
        self.pool.block_size().blocks_for(tokens)
    }

    /// Whether there are blocks for what is not in the request's tables yet. More than the watermark must be left,
    /// unless it is alone.
    fn has_room(&self, slot: u32, alone: bool) -> bool {
        let blocks = self.blocks_needed(slot);
        self.request(slot).tables.iter().enumerate().all(|(group, table)| {
            let spare = if alone { 0 } else { self.watermark_blocks[group] };
            self.pool.available(group) >= blocks.saturating_sub(table.end()) + spare
        })
    }

    fn available_blocks(&self) -> usize {
        (0..self.pool.groups()).map(|group| self.pool.available(group)).sum()
    }

    fn drop_match(&mut self, slot: u32, found: PrefixMatch) {
        if let Some(load) = found.pending {
            self.pool.cancel_load(load.ticket);
            self.request_mut(slot).may_load = false;
        }
        self.give_up_tables(slot);
    }
}
