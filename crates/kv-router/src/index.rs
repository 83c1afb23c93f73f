//! Which worker holds how much of a prompt: the contract of an index, and what implements it.

mod block_uses;
#[cfg(test)]
mod concurrent_histories;
mod concurrent_radix_tree;
mod dump;
mod holders;
mod jolt;
mod kinds;
mod kv_index;
mod locked_radix_tree;
#[cfg(test)]
#[cfg(not(loom))]
mod long_histories;
mod names;
mod node_table;
mod nodes;
mod positional_index;
mod radix_tree;
#[cfg(test)]
mod reference_model;
mod run_index;
mod shared_sets;
mod slot_states;
mod tiers;

use std::time::Instant;

pub use block_uses::FrequencyWindow;
pub use concurrent_radix_tree::ConcurrentRadixTree;
use dynamo_engine_api::KvCacheEventData;
use dynamo_tokens::{LocalBlockHash, SequenceHash};
pub use kinds::{IndexParts, IndexerKind, MAX_LANES};
pub use kv_index::{EventCounters, EventKind, EventStatus, IndexError, KvIndex, WorkerSlot};
pub use locked_radix_tree::LockedRadixTree;
pub use positional_index::PositionalIndexer;
pub use radix_tree::RadixTree;
pub(crate) use run_index::prefetch;
pub use run_index::{RunIndex, RunReader};
pub use tiers::{TierMatch, TieredIndex, TieredWriter, with_tiers};

use crate::Slot;

/// An exact index of the blocks that slots hold.
///
/// A slot gives each of its blocks a name, the engine's external hash. A name stands for the place at which it was
/// stored: the path of local hashes from the start of a sequence. Storing a name again at another place moves it. A
/// slot holds a place while at least one of its names stands for it.
///
/// Writers need `&mut`, readers `&`: whoever shares an index puts it under a lock; an index that readers may use
/// beside a writer is a cheap handle on shared state, and needs none.
pub trait PrefixIndex: Send + Sync {
    /// Applies one event of a slot. After [`ApplyError::BlockNotFound`] the known blocks of the event are gone all the
    /// same; after [`ApplyError::Full`] those before the first that found no room are stored; after the other errors nothing
    /// has changed.
    fn apply(&mut self, slot: Slot, event: &KvCacheEventData) -> Result<(), ApplyError>;
    /// Says that an event will come soon, whose memory may be asked for.
    fn announce(&self, _event: &KvCacheEventData) {}
    /// Forgets all blocks of a slot; a slot that is not known is nothing to forget.
    fn clear(&mut self, slot: Slot);
    /// Replaces `out` by the slots that hold the first block of `local`, each with the length of its leading run.
    fn find_matches(&self, local: &[LocalBlockHash], out: &mut MatchBuffer);
    /// Events that, applied in order to an empty slot, give what `slot` has.
    fn dump(&self, slot: Slot) -> Vec<KvCacheEventData>;
    /// Blocks that a slot holds.
    fn held_blocks(&self, slot: Slot) -> u32;
    /// Replaces what `out` says of how many blocks each slot holds.
    fn note_held_blocks(&self, out: &mut MatchBuffer);
    /// How large the index is.
    fn counts(&self) -> IndexCounts;
}

/// The readers' side of an index that threads share: it answers while others write.
///
/// At rest an answer is exact. While others write, no slot is credited with more blocks than the most that it had
/// during the call, nor with fewer than the least.
pub trait SharedIndex: Send + Sync {
    /// As [`PrefixIndex::find_matches`].
    fn find_matches(&self, local: &[LocalBlockHash], out: &mut MatchBuffer);
    /// The same; an index that counts uses counts one of every block found, and notes in `out` those before it.
    fn find_matches_at(&self, local: &[LocalBlockHash], _now: Instant, out: &mut MatchBuffer) {
        out.frequencies.clear();
        self.find_matches(local, out);
    }
    /// As [`PrefixIndex::held_blocks`].
    fn held_blocks(&self, slot: Slot) -> u32;
    /// As [`PrefixIndex::note_held_blocks`].
    fn note_held_blocks(&self, out: &mut MatchBuffer);
    /// As [`PrefixIndex::counts`].
    fn counts(&self) -> IndexCounts;
}

/// Why an event did not apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// A stored event names a parent that the slot does not hold: an event was lost, ask for a range or a dump.
    #[error("the parent block is not known: an event was lost")]
    ParentBlockNotFound,
    /// A removed event names a block that the slot does not hold.
    #[error("a removed block is not known: an event was lost")]
    BlockNotFound,
    /// A block is its own parent.
    #[error("a block is its own parent: the publisher is broken")]
    InvalidBlock,
    /// A block's name is not its chained hash, and the index needs it to be: choose another one for this engine.
    #[error("a block's name is not its chained hash: use another --router-indexer for this engine")]
    UnchainedName,
    /// The index cannot number more blocks.
    #[error("the index is full: shard the deployment")]
    Full,
}

/// The size of an index.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IndexCounts {
    /// Pairs of slot and held block.
    pub blocks: usize,
    /// Different blocks, those included that nobody holds but that lead to others.
    pub nodes: usize,
    /// Bytes on the heap, allocator overhead apart.
    pub bytes: usize,
}

/// The leading run of a query that a slot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Match {
    /// Who.
    pub slot: Slot,
    /// Blocks in device memory, from the first block of the query on; at least one.
    pub device_blocks: u32,
}

/// The answer to a query; keep it and use it again, then a query allocates nothing.
#[derive(Clone, Debug, Default)]
pub struct MatchBuffer {
    pub(crate) matches: Vec<Match>,
    /// By slot index: blocks that the slot held when they were noted; may be longer than there are slots.
    pub(crate) held_blocks: Vec<u32>,
    /// Slots with blocks on lower tiers, by slot index.
    pub(crate) lower: Vec<TierMatch>,
    /// Leading blocks in external storage that workers share.
    shared: u32,
    /// Uses of the blocks found, first block first.
    frequencies: Vec<u32>,
    /// Scratch: the answer of the lower tiers' own index.
    lower_found: Option<Box<MatchBuffer>>,
    /// Scratch: slot indices that hold all blocks so far.
    active: Vec<u32>,
    /// Scratch: what slots were like when they became active.
    stamps: Vec<slot_states::Stamp>,
    /// Scratch: the names of the query's blocks.
    chain: Vec<SequenceHash>,
    /// Scratch: slot indices that hold the first block, and may have holes.
    astray: Vec<u32>,
    /// Scratch of an index that finds a slot more than once, by slot index: where in `matches` it is, if it is there.
    positions: Vec<u32>,
}

impl MatchBuffer {
    /// An empty answer: nobody holds anything.
    pub fn clear(&mut self) {
        self.matches.clear();
        self.held_blocks.clear();
        self.active.clear();
        self.stamps.clear();
        self.chain.clear();
        self.lower.clear();
        self.shared = 0;
        self.frequencies.clear();
        self.astray.clear();
    }

    /// Remembers that a slot is about to be added to `matches`.
    #[inline]
    fn note_position(&mut self, slot: Slot) {
        let index = slot.index();
        if index >= self.positions.len() {
            self.positions.resize(index + 1, 0);
        }
        self.positions[index] = self.matches.len() as u32;
    }

    /// A slot's match, if its position was noted for this answer.
    #[inline]
    fn noted(&mut self, slot: Slot) -> Option<&mut Match> {
        let position = *self.positions.get(slot.index())?;
        self.matches.get_mut(position as usize).filter(|found| found.slot == slot)
    }

    /// The slots with at least one block, in no order.
    pub fn matches(&self) -> &[Match] {
        &self.matches
    }

    /// How often blocks of the longest run were asked for within the window before this query, first block first. It ends
    /// before the first block that was not. Empty if the index counts no uses.
    pub fn frequencies(&self) -> &[u32] {
        &self.frequencies
    }

    /// Adds a slot's run, for indexes outside of this crate.
    pub fn push(&mut self, found: Match) {
        self.matches.push(found);
    }

    /// Says how many blocks each slot holds, by slot index, for indexes outside of this crate.
    pub fn set_held_blocks(&mut self, by_slot_index: impl Iterator<Item = u32>) {
        self.held_blocks.clear();
        self.held_blocks.extend(by_slot_index);
    }

    /// Says how many blocks one slot holds.
    pub(crate) fn note_held(&mut self, slot: Slot, blocks: u32) {
        let index = slot.index();
        self.held_blocks.resize(self.held_blocks.len().max(index + 1), 0);
        self.held_blocks[index] = blocks;
    }

    /// Lets the larger of two answers count, slot by slot: what is predicted and what is known, say.
    pub fn raise(&mut self, other: &Self) {
        const NOWHERE: u32 = u32::MAX;
        // By slot index: where the slot is.
        let places = &mut self.active;
        places.clear();
        for (place, found) in (0..).zip(&self.matches) {
            let index = found.slot.index();
            places.resize(places.len().max(index + 1), NOWHERE);
            places[index] = place;
        }
        for found in &other.matches {
            let place = places.get(found.slot.index()).copied().filter(|&place| place != NOWHERE);
            match place.map(|place| &mut self.matches[place as usize]) {
                // Of two owners of an index neither is known to be the right one.
                Some(mine) if mine.slot == found.slot => {
                    mine.device_blocks = mine.device_blocks.max(found.device_blocks);
                }
                _ => self.matches.push(*found),
            }
        }
        places.clear();
        self.shared = self.shared.max(other.shared);
        self.raise_lower();
    }

    /// Takes slots out of the answer. Which blocks in shared storage they alone told of nobody knows, so none count.
    pub(crate) fn hide(&mut self, slots: &[Slot]) {
        self.matches.retain(|found| !slots.contains(&found.slot));
        self.lower.retain(|found| !slots.contains(&found.slot));
        self.shared = if slots.is_empty() { self.shared } else { 0 };
        for slot in slots {
            if let Some(held) = self.held_blocks.get_mut(slot.index()) {
                *held = 0;
            }
        }
    }

    /// The length of a slot's leading run.
    pub fn device_blocks(&self, slot: Slot) -> u32 {
        self.matches.iter().find(|found| found.slot == slot).map_or(0, |found| found.device_blocks)
    }

    /// Blocks that a slot held in all, if they were noted after the query was answered.
    pub fn held_blocks(&self, slot: Slot) -> u32 {
        self.held_blocks.get(slot.index()).copied().unwrap_or(0)
    }
}
