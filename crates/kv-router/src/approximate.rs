//! What workers may be expected to hold, of engines that do not say: the prompts that were sent to them.

mod config;
mod sent_prompts;

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
    time::Instant,
};

pub use config::{ApproximateConfig, CachePolicy, CacheSource};
use dynamo_engine_api::{ExternalBlockHash, KvCacheEventData, StoredBlock};
use dynamo_tokens::{LocalBlockHash, SequenceHash};
use hashbrown::HashTable;
pub use sent_prompts::SentPrompts;

use crate::{ApplyError, IndexCounts, MatchBuffer, PrefixIndex, RadixTree, Slot};

/// The blocks of the prompts that each slot was sent, as far as it may still hold them.
///
/// Blocks are known by their sequence hashes alone: those tell of all that is before them, and routers tell each other
/// no more. A prompt costs some tens of nanoseconds a block, and what goes later as much once more. A block goes before
/// those that lead to it, so that runs only become shorter. Memory follows the number of entries.
pub struct ApproximateIndex {
    config: ApproximateConfig,
    tree: RadixTree,
    /// By slot index.
    slots: Vec<Option<Prompts>>,
    blocks: usize,
    /// There were more entries than may be, and there are still more than are to be left.
    is_pruning: bool,
}

/// The block of this name was last in the prompt of this turn.
#[derive(Clone, Copy)]
struct Entry {
    name: [u32; 2],
    turn: u32,
}

/// What was sent to one slot.
struct Prompts {
    slot: Slot,
    capacity: Option<u32>,
    entries: HashTable<Entry>,
    /// Oldest first.
    visits: VecDeque<Visit>,
    /// Names in all visits.
    visited: usize,
    turn: u32,
}

/// A prompt: the names of its blocks, of which those count that were in no later prompt.
struct Visit {
    at: Instant,
    turn: u32,
    names: Vec<u64>,
}

fn halves(name: u64) -> [u32; 2] {
    [name as u32, (name >> 32) as u32]
}

fn hash(name: [u32; 2]) -> u64 {
    let product = (u64::from(name[0]) | u64::from(name[1]) << 32).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    product ^ (product >> 32)
}

/// Names in visits beside as many as there are entries before those that do not count are dropped.
const SLACK: usize = 1024;
/// Entries that go with one prompt when there are too many, beside twice as many as the prompt brought: nobody waits for
/// all of them at once.
const PRUNE_STEP: usize = 4096;

impl Prompts {
    fn new(slot: Slot, capacity: Option<u32>) -> Self {
        Self { slot, capacity, entries: HashTable::new(), visits: VecDeque::new(), visited: 0, turn: 0 }
    }

    fn visit(&mut self, names: &[SequenceHash], now: Instant) {
        self.turn = self.turn.wrapping_add(1);
        for name in names {
            let name = halves(name.0);
            let entry = self.entries.entry(hash(name), |entry| entry.name == name, |entry| hash(entry.name));
            entry.or_insert(Entry { name, turn: 0 }).get_mut().turn = self.turn;
        }
        let names: Vec<_> = names.iter().map(|name| name.0).collect();
        self.visited += names.len();
        self.visits.push_back(Visit { at: now, turn: self.turn, names });
        if self.visited > 2 * self.entries.len() + SLACK {
            let entries = &self.entries;
            self.visits.retain_mut(|visit| {
                visit.names.retain(|&name| is_last(entries, name, visit.turn));
                visit.names.shrink_to_fit();
                !visit.names.is_empty()
            });
            self.visited = self.entries.len();
        }
    }

    /// Takes the oldest block that counts, the deepest of its prompt, if its visit `may` go.
    fn take(&mut self, may: impl Fn(&Visit) -> bool) -> Option<ExternalBlockHash> {
        loop {
            let visit = self.visits.front_mut().filter(|visit| may(visit))?;
            let Some(name) = visit.names.pop() else {
                self.visits.pop_front();
                continue;
            };
            self.visited -= 1;
            let key = halves(name);
            let turn = visit.turn;
            let found = self.entries.find_entry(hash(key), |entry| entry.name == key && entry.turn == turn);
            if let Ok(found) = found {
                found.remove();
                return Some(ExternalBlockHash(name));
            }
        }
    }

    fn shrink_if_sparse(&mut self) {
        const SMALL: usize = 64;
        let (len, capacity) = (self.entries.len(), self.entries.capacity());
        if len == 0 {
            self.entries = HashTable::new();
            self.visits = VecDeque::new();
            self.visited = 0;
        } else if capacity > SMALL && len * 8 < capacity {
            self.entries.shrink_to(len * 2, |entry| hash(entry.name));
        }
    }

    fn bytes(&self) -> usize {
        let names = self.visits.iter().map(|visit| visit.names.capacity() * size_of::<u64>());
        self.entries.allocation_size() + self.visits.capacity() * size_of::<Visit>() + names.sum::<usize>()
    }
}

fn is_last(entries: &HashTable<Entry>, name: u64, turn: u32) -> bool {
    let name = halves(name);
    entries.find(hash(name), |entry| entry.name == name).is_some_and(|entry| entry.turn == turn)
}

impl ApproximateIndex {
    /// An empty index.
    pub fn new(config: ApproximateConfig) -> Self {
        Self { config, tree: RadixTree::new(), slots: Vec::new(), blocks: 0, is_pruning: false }
    }

    /// Takes on a slot, or another capacity of it: the blocks that it can hold. Under [`CachePolicy::Lru`] what is
    /// beyond goes.
    pub fn set_capacity(&mut self, slot: Slot, capacity: Option<u32>) {
        self.prompts(slot).capacity = capacity;
        self.evict(slot.index());
    }

    /// A prompt went to a slot: the sequence hashes of its whole blocks, first to last. What the slot had of it counts
    /// as new again. There may be as many entries too many as the prompt has, for a moment.
    pub fn routed(&mut self, slot: Slot, names: &[SequenceHash], now: Instant) -> Result<(), ApplyError> {
        if names.is_empty() {
            return Ok(());
        }
        self.prompts(slot);
        let block = |name: &SequenceHash| StoredBlock {
            block_hash: ExternalBlockHash(name.0),
            tokens_hash: LocalBlockHash(name.0),
        };
        let blocks = names.iter().map(block).collect();
        self.tree.apply(slot, &KvCacheEventData::Stored { parent_hash: None, blocks })?;
        let prompts = self.prompts(slot);
        let before = prompts.entries.len();
        prompts.visit(names, now);
        self.blocks += prompts.entries.len() - before;
        self.evict(slot.index());
        self.is_pruning |= self.blocks > self.config.max_blocks;
        if self.is_pruning {
            self.prune(2 * names.len() + PRUNE_STEP);
        }
        Ok(())
    }

    /// Drops up to `most` blocks that are too old; returns whether there may be more of them. Call it every 100 ms or so,
    /// or when [`Self::next_expiry`] has come.
    pub fn expire(&mut self, now: Instant, most: usize) -> bool {
        let mut left = most;
        if self.config.policy == CachePolicy::Ttl {
            let ttl = self.config.ttl;
            for index in 0..self.slots.len() {
                let is_old = |visit: &Visit| now.saturating_duration_since(visit.at) >= ttl;
                left -= self.take_while(index, left, is_old);
                if left == 0 {
                    return true;
                }
            }
        }
        false
    }

    /// When the next entry may become too old.
    pub fn next_expiry(&self) -> Option<Instant> {
        let oldest = self.slots.iter().flatten().filter_map(|prompts| Some(prompts.visits.front()?.at)).min();
        oldest.filter(|_| self.config.policy == CachePolicy::Ttl).map(|at| at + self.config.ttl)
    }

    /// Forgets a slot.
    pub fn clear(&mut self, slot: Slot) {
        let known = self.slots.get_mut(slot.index());
        if let Some(gone) = known.and_then(|known| known.take_if(|prompts| prompts.slot == slot)) {
            self.blocks -= gone.entries.len();
            self.tree.clear(slot);
        }
    }

    /// Replaces `out` by who may hold how much of a prompt of these sequence hashes. `path` is scratch space.
    pub fn find_matches(
        &self,
        names: &[SequenceHash],
        path: &mut Vec<LocalBlockHash>,
        out: &mut MatchBuffer,
    ) {
        path.clear();
        path.extend(names.iter().map(|name| LocalBlockHash(name.0)));
        self.tree.find_matches(path, out);
        self.tree.note_held_blocks(out);
    }

    /// Entries of a slot.
    pub fn held_blocks(&self, slot: Slot) -> u32 {
        self.tree.held_blocks(slot)
    }

    /// How large it is, what it remembers of prompts included.
    pub fn counts(&self) -> IndexCounts {
        let counts = self.tree.counts();
        let prompts = self.slots.iter().flatten().map(Prompts::bytes).sum::<usize>();
        let slots = self.slots.capacity() * size_of::<Option<Prompts>>();
        IndexCounts { bytes: counts.bytes + prompts + slots, ..counts }
    }

    fn prompts(&mut self, slot: Slot) -> &mut Prompts {
        let index = slot.index();
        if index >= self.slots.len() {
            self.slots.resize_with(index + 1, || None);
        }
        if let Some(before) =
            self.slots[index].as_ref().map(|known| known.slot).filter(|&before| before != slot)
        {
            self.clear(before);
        }
        self.slots[index].get_or_insert_with(|| Prompts::new(slot, None))
    }

    /// Brings a slot down to its capacity.
    fn evict(&mut self, index: usize) {
        let Some(prompts) = &self.slots[index] else { return };
        if let (CachePolicy::Lru, Some(capacity)) = (self.config.policy, prompts.capacity) {
            let excess = prompts.entries.len().saturating_sub(capacity as usize);
            self.take_while(index, excess, |_| true);
        }
    }

    /// Brings all down towards the target by up to `most` blocks, those of the oldest prompts first.
    #[cold]
    fn prune(&mut self, most: usize) {
        let mut left = most;
        let target = (self.config.max_blocks as f64 * self.config.prune_target_ratio) as usize;
        let oldest = |prompts: &Prompts| prompts.visits.front().map(|visit| visit.at);
        let slots = self.slots.iter().enumerate();
        let mut queue: BinaryHeap<_> =
            slots.filter_map(|(index, prompts)| Some(Reverse((oldest(prompts.as_ref()?)?, index)))).collect();
        while self.blocks > target
            && left > 0
            && let Some(Reverse((at, index))) = queue.pop()
        {
            left -= self.take_while(index, left.min(self.blocks - target), |visit| visit.at <= at);
            let next = self.slots[index].as_ref().and_then(oldest);
            queue.extend(next.map(|at| Reverse((at, index))));
        }
        self.is_pruning = self.blocks > target;
    }

    /// Takes up to `most` blocks from a slot, the oldest first; returns how many.
    fn take_while(&mut self, index: usize, most: usize, may: impl Fn(&Visit) -> bool) -> usize {
        let Some(prompts) = &mut self.slots[index] else { return 0 };
        let block_hashes: Vec<_> = std::iter::from_fn(|| prompts.take(&may)).take(most).collect();
        let taken = block_hashes.len();
        if taken > 0 {
            self.blocks -= taken;
            prompts.shrink_if_sparse();
            let slot = prompts.slot;
            // It has them: each entry is a block of the tree.
            let _ = self.tree.apply(slot, &KvCacheEventData::Removed { block_hashes });
        }
        taken
    }
}

#[cfg(test)]
mod tests;
