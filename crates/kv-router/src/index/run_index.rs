//! The default index: runs of blocks stored once, read without locks while one thread writes.
//!
//! `docs/prefix-index.md` has the layout, the reasons, and what was measured.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use dynamo_engine_api::{ExternalBlockHash, KvCacheEventData};
use dynamo_tokens::LocalBlockHash;

use self::{
    children::ChildTable,
    cold::ColdRuns,
    columns::{Columns, MAX_BLOCKS, UNIT},
    family::Families,
    header::{ChildEntry, HEADER, ROOT, RunId, pair},
    holes::Holes,
    limbo::{Limbo, Retired},
    names::NameTable,
    recent::RecentBlocks,
    shared::Shared,
    space::Space,
};
use super::{ApplyError, IndexCounts, MatchBuffer, PrefixIndex, names::Aliases};
use crate::Slot;

mod atomics;
mod blocks;
mod children;
mod clear;
mod cold;
mod columns;
#[cfg(test)]
#[cfg(not(loom))]
mod concurrency_tests;
mod dump;
mod epochs;
mod family;
mod header;
mod holders;
mod holes;
mod lanes;
mod limbo;
#[cfg(all(test, loom))]
mod loom_tests;
mod memory;
mod names;
mod naming;
mod reader;
mod recent;
mod regions;
mod remove;
mod shared;
mod space;
mod store;
#[cfg(test)]
#[cfg(not(loom))]
mod tests;

pub(crate) use memory::prefetch;
pub use reader::RunReader;

/// The writer of the index; readers of their own are had from [`RunIndex::reader`].
///
/// Cost: a stored or removed block is about one cache line of the table of names and 16 bytes of columns; a query reads
/// 8 bytes a block in order, and a few lines for each run on its path.
pub struct RunIndex {
    shared: Arc<Shared>,
    reader: RunReader,
    columns: Columns,
    /// By run.
    cold: ColdRuns,
    runs: Space,
    lists: Space,
    children: ChildTable,
    families: Families,
    names: NameTable,
    recent: RecentBlocks,
    /// Blocks in `names` beyond the first of their name.
    doubled_names: usize,
    /// Names that are not the block's own, by run and offset.
    aliases: Aliases<u64>,
    holes: Holes,
    /// By slot index.
    slots: Vec<SlotState>,
    limbo: Limbo,
    held: usize,
    nodes: usize,
    events: u32,
    /// A block that is about to be held.
    pinned: Option<At>,
    /// Scratch: blocks that may have had the name of a new block before, with the new block.
    namesakes: Vec<(u32, u32)>,
    /// Scratch: units where there may be a block with the name of a new one, with the new block.
    suspects: Vec<(u32, u32)>,
    /// Scratch: runs that remain to be visited.
    visit: Vec<RunId>,
}

#[derive(Clone, Copy)]
struct SlotState {
    slot: Slot,
    blocks: u32,
    /// Runs of which it holds leading blocks, with a block missing above.
    cut_off: u32,
}

/// A block: its run and how many of the run's blocks come before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct At {
    run: RunId,
    offset: u32,
}

impl At {
    fn key(self) -> u64 {
        pair(self.run, self.offset)
    }

    fn of(key: u64) -> Self {
        let (run, offset) = header::halves(key);
        Self { run, offset }
    }
}

/// Events between two looks at all sizes, for readers' sake: one block is stored in less time than that takes.
const BYTES_COUNTED_EVERY: u32 = 64;
/// Headers in a chunk of them.
const RUNS_PER_CHUNK: u32 = shared::Headers::LEN as u32 / HEADER as u32;

impl Default for RunIndex {
    fn default() -> Self {
        Self::new()
    }
}

impl RunIndex {
    /// An empty index that holds as many blocks as it can number, 2^28.
    pub fn new() -> Self {
        Self::with_max_blocks(MAX_BLOCKS)
    }

    /// An empty index for `max_blocks` different blocks, in steps of 16,384; stores beyond them are [`ApplyError::Full`].
    pub fn with_max_blocks(max_blocks: usize) -> Self {
        let shared = Arc::new(Shared::new());
        Self {
            reader: RunReader::new(shared.clone()),
            columns: Columns::new(max_blocks, &shared.memory),
            cold: ColdRuns::default(),
            runs: Space::new(RUNS_PER_CHUNK, (ChildEntry::MAX_RUNS / RUNS_PER_CHUNK) as usize),
            lists: Space::new(shared::Lists::LEN as u32 / UNIT, 1 << 14),
            children: ChildTable::new(),
            families: Families::default(),
            names: NameTable::new(&shared.memory),
            recent: RecentBlocks::default(),
            doubled_names: 0,
            aliases: Aliases::default(),
            holes: Holes::default(),
            slots: Vec::new(),
            limbo: Limbo::new(),
            held: 0,
            nodes: 0,
            events: 0,
            pinned: None,
            namesakes: Vec::new(),
            suspects: Vec::new(),
            visit: Vec::new(),
            shared,
        }
    }

    /// A handle for one more reader.
    pub fn reader(&self) -> RunReader {
        self.reader.clone()
    }

    fn len(&self, run: RunId) -> u32 {
        if run == ROOT { 0 } else { self.shared.run(run).len }
    }

    /// Takes note of a change in what a slot holds.
    fn count(&mut self, slot: Slot, more: u32, fewer: u32) {
        let state = &mut self.slots[slot.index()];
        state.blocks = state.blocks + more - fewer;
        self.held = self.held + more as usize - fewer as usize;
        self.shared.set_slot_blocks(slot, state.blocks);
    }

    /// Makes the slot known under its present generation.
    fn meet(&mut self, slot: Slot) {
        let index = slot.index();
        if index >= self.slots.len() {
            let unknown = |index| SlotState { slot: Slot::new(index as u32, 0), blocks: 0, cut_off: 0 };
            self.slots.extend((self.slots.len()..=index).map(unknown));
            self.shared.add_slots(self.slots.len());
        }
        if self.slots[index].slot != slot {
            self.clear_slot(self.slots[index].slot);
            self.slots[index].slot = slot;
            self.count(slot, 0, 0);
        }
    }

    fn is_known(&self, slot: Slot) -> bool {
        self.slots.get(slot.index()).is_some_and(|state| state.slot == slot)
    }

    /// Takes something out of use that readers may still look at.
    fn retire(&mut self, what: Retired) {
        self.limbo.push(self.shared.epochs.current(), what);
    }

    /// Gives back what no reader looks at any more.
    fn reclaim(&mut self) {
        self.limbo.advance(&self.shared.epochs);
        while let Some((what, unseen)) = self.limbo.pop() {
            match what {
                Retired::Blocks { place, units } => {
                    self.columns.give(place, units, &self.shared.locals, &unseen);
                }
                Retired::List { place, words } => {
                    if let Some(chunk) = self.lists.give(place / UNIT, words.div_ceil(UNIT)) {
                        self.shared.lists.drop_chunk(chunk, &unseen);
                    }
                }
                Retired::Run(run) => {
                    if let Some(chunk) = self.runs.give(run, 1) {
                        self.shared.headers.drop_chunk(chunk, &unseen);
                    }
                }
            }
        }
        self.cold.truncate(self.runs.limit() * RUNS_PER_CHUNK as usize);
    }

    /// Whether all readers that began before the end of `epoch` are done.
    fn has_passed(&mut self, epoch: u64) -> bool {
        if !self.limbo.has_passed(epoch) {
            // Nothing is given back in the middle of an event, which may still look at it.
            self.limbo.advance(&self.shared.epochs);
        }
        self.limbo.has_passed(epoch)
    }

    /// After an event.
    fn settle(&mut self) {
        /// Retired things at which a look at all readers' seats pays.
        const ENOUGH: usize = shared::small(64, 1) as usize;
        if self.limbo.len() >= ENOUGH || self.nodes == 0 && self.limbo.len() > 0 {
            self.reclaim();
        }
        if self.nodes == 0 {
            self.recent = RecentBlocks::default();
        }
        self.shared.blocks.store(self.held, Relaxed);
        self.shared.nodes.store(self.nodes, Relaxed);
        self.events = self.events.wrapping_add(1);
        if self.events.is_multiple_of(BYTES_COUNTED_EVERY) || self.nodes == 0 {
            self.shared.bytes.store(self.bytes(), Relaxed);
        }
    }

    fn bytes(&self) -> usize {
        self.shared.own_bytes()
            + self.columns.bytes()
            + self.cold.bytes()
            + self.runs.bytes()
            + shared::Headers::directory_bytes(self.runs.limit())
            + self.lists.bytes()
            + shared::Lists::directory_bytes(self.lists.limit())
            + self.children.bytes()
            + self.families.bytes()
            + self.names.bytes()
            + self.recent.bytes()
            + self.aliases.bytes()
            + self.holes.bytes()
            + self.slots.capacity() * size_of::<SlotState>()
            + self.limbo.bytes()
            + (self.namesakes.capacity() + self.suspects.capacity()) * size_of::<(u32, u32)>()
            + self.visit.capacity() * size_of::<RunId>()
    }

    /// All runs, and those that wait to be given back, ascending.
    fn run_ids(&self) -> impl Iterator<Item = RunId> + '_ {
        let mut from = 0;
        std::iter::from_fn(move || {
            let run = self.runs.used_from(from)?;
            from = run + 1;
            Some(run)
        })
    }

    /// A list of `words`, all 0, for holders or children. `None` when full.
    fn new_list(&mut self, words: u32) -> Option<u32> {
        let taken = self.lists.take(words.div_ceil(UNIT))?;
        if let Some(chunk) = taken.new_chunk {
            self.shared.lists.add_chunk(chunk);
        }
        let place = taken.unit * UNIT;
        for word in self.shared.lists.slice(place, words as usize) {
            word.store(0, Relaxed);
        }
        Some(place)
    }

    /// A header, all 0. `None` when full.
    fn new_run(&mut self) -> Option<RunId> {
        let taken = self.runs.take(1)?;
        if let Some(chunk) = taken.new_chunk {
            self.shared.headers.add_chunk(chunk);
        }
        for word in self.shared.headers.array::<HEADER>(taken.unit * HEADER as u32) {
            word.store(0, Relaxed);
        }
        self.cold.reset(taken.unit);
        Some(taken.unit)
    }
}

impl PrefixIndex for RunIndex {
    fn apply(&mut self, slot: Slot, event: &KvCacheEventData) -> Result<(), ApplyError> {
        self.meet(slot);
        let result = match event {
            KvCacheEventData::Stored { parent_hash, blocks } => self.store(slot, *parent_hash, blocks),
            KvCacheEventData::Removed { block_hashes } => self.remove(slot, block_hashes),
            KvCacheEventData::Cleared => {
                self.clear_slot(slot);
                Ok(())
            }
        };
        self.settle();
        result
    }

    fn announce(&self, event: &KvCacheEventData) {
        /// Blocks whose lines are asked for; those of more are when the event is applied.
        const BLOCKS: usize = 8;
        let ask = |name: &ExternalBlockHash| self.names.prefetch(names::hash(name.0));
        match event {
            KvCacheEventData::Stored { parent_hash, blocks } => {
                parent_hash.iter().for_each(ask);
                blocks.iter().take(BLOCKS).for_each(|block| ask(&block.block_hash));
            }
            KvCacheEventData::Removed { block_hashes } => block_hashes.iter().take(BLOCKS).for_each(ask),
            KvCacheEventData::Cleared => {}
        }
    }

    fn clear(&mut self, slot: Slot) {
        if self.is_known(slot) {
            self.clear_slot(slot);
            self.settle();
        }
    }

    fn find_matches(&self, local: &[LocalBlockHash], out: &mut MatchBuffer) {
        self.reader.find_matches(local, out);
    }

    fn dump(&self, slot: Slot) -> Vec<KvCacheEventData> {
        if self.is_known(slot) { self.dump_slot(slot) } else { Vec::new() }
    }

    fn held_blocks(&self, slot: Slot) -> u32 {
        self.reader.held_blocks(slot)
    }

    fn note_held_blocks(&self, out: &mut MatchBuffer) {
        self.reader.note_held_blocks(out);
    }

    fn counts(&self) -> IndexCounts {
        IndexCounts { blocks: self.held, nodes: self.nodes, bytes: self.bytes() }
    }
}
