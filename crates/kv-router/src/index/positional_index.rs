//! Blocks by chained hash: a query jumps along a prompt instead of walking it.

use std::{
    num::NonZeroUsize,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use dynamo_engine_api::{ExternalBlockHash, KvCacheEventData, StoredBlock};
use dynamo_tokens::{LocalBlockHash, SequenceHash};
use hashbrown::HashTable;
use parking_lot::{Mutex, RwLock};

use self::slot_records::SlotRecords;
use super::{
    ApplyError, IndexCounts, Match, MatchBuffer, PrefixIndex, SharedIndex,
    holders::mix,
    jolt::jolt,
    radix_tree::keep_members,
    shared_sets::{Change, HoldersRef, SharedSets, members},
    slot_states::{Counters, SlotStates},
};
use crate::Slot;

mod dump;
mod slot_records;

/// Parts of the table, each with a lock of its own that is held for one block at a time. Many, so that the growth of
/// one is short.
const SHARDS: usize = 512;

/// Blocks that a query passes over at once, as in the reference.
const STRIDE: NonZeroUsize = NonZeroUsize::new(32).unwrap();

/// Names looked up ahead of their use: more than a core has misses under way at once does not help.
const AHEAD: usize = 16;

/// A cheap handle on a table of blocks that any number of threads read and write at once.
///
/// It is only for engines whose names of blocks are this ecosystem's chained hashes: events with other names are
/// refused. A name then says both what a block holds and where in a sequence it lies, so that a query computes the names
/// of its own blocks and looks only at some of them: who holds a block, and lacks none before any that it holds, holds
/// all in between. Of slots with holes in their sequences a query looks at every block.
#[derive(Clone)]
pub struct PositionalIndexer {
    shared: Arc<Shared>,
}

/// A block that someone holds.
struct Entry {
    name: u64,
    local: u64,
    /// The name of the block before; nothing to a first block, whose name is its local hash.
    parent: u64,
    holders: HoldersRef,
}

/// Locks are taken in this order: a slot's records, a part of the table, sets.
struct Shared {
    shards: Box<[RwLock<HashTable<Entry>>]>,
    sets: SharedSets,
    slots: SlotStates<SlotRecords>,
    /// Of all slots' records.
    record_bytes: AtomicUsize,
    stride: usize,
}

/// A slot while an event of it is applied.
struct Writer<'a> {
    index: u32,
    counters: &'a Counters,
    records: &'a mut SlotRecords,
    change: Change,
}

impl Default for PositionalIndexer {
    fn default() -> Self {
        Self::new(STRIDE)
    }
}

impl PositionalIndexer {
    /// An empty index whose queries pass over `stride` blocks at once.
    pub fn new(stride: NonZeroUsize) -> Self {
        let shared = Shared {
            shards: (0..SHARDS).map(|_| RwLock::new(HashTable::new())).collect(),
            sets: SharedSets::new(),
            slots: SlotStates::new(),
            record_bytes: AtomicUsize::new(0),
            stride: stride.get(),
        };
        Self { shared: Arc::new(shared) }
    }

    /// As [`PrefixIndex::apply`], from any thread. Events of one slot must come in their order.
    pub fn apply(&self, slot: Slot, event: &KvCacheEventData) -> Result<(), ApplyError> {
        let (counters, records) = self.shared.slots.get(slot.index());
        self.shared.write(slot, counters, records, |writer| {
            if counters.slot() != slot {
                self.shared.clear(writer);
                counters.set_slot(slot);
            }
            match event {
                KvCacheEventData::Stored { parent_hash, blocks } => {
                    self.shared.store(writer, *parent_hash, blocks)
                }
                KvCacheEventData::Removed { block_hashes } => self.shared.remove(writer, block_hashes),
                KvCacheEventData::Cleared => {
                    self.shared.clear(writer);
                    Ok(())
                }
            }
        })
    }

    /// As [`PrefixIndex::clear`], from any thread.
    pub fn clear(&self, slot: Slot) {
        let Some((counters, records)) = self.shared.slots.peek(slot.index()) else { return };
        self.shared.write(slot, counters, records, |writer| {
            if counters.slot() == slot {
                self.shared.clear(writer);
            }
        });
    }
}

impl Shared {
    fn write<R>(
        &self,
        slot: Slot,
        counters: &Counters,
        records: &Mutex<SlotRecords>,
        act: impl FnOnce(&mut Writer<'_>) -> R,
    ) -> R {
        let mut records = records.lock();
        let before = records.bytes();
        let index = slot.index() as u32;
        let mut writer = Writer { index, counters, records: &mut records, change: Change::default() };
        let result = act(&mut writer);
        writer.change.end(&self.sets);
        let after = records.bytes();
        if after > before {
            self.record_bytes.fetch_add(after - before, Ordering::Relaxed);
        } else {
            self.record_bytes.fetch_sub(before - after, Ordering::Relaxed);
        }
        result
    }

    fn shard(&self, name: u64) -> (u64, &RwLock<HashTable<Entry>>) {
        let hash = mix(name);
        (hash, &self.shards[(hash >> 24) as usize % SHARDS])
    }

    /// Looks at the holders of a block.
    fn holders<R>(&self, name: u64, look: impl FnOnce(&[u32]) -> R) -> R {
        jolt();
        let (hash, shard) = self.shard(name);
        let shard = shard.read();
        let entry = shard.find(hash, |entry| entry.name == name);
        look(entry.map_or(&[], |entry| members(&entry.holders)))
    }

    fn store(
        &self,
        writer: &mut Writer<'_>,
        parent: Option<ExternalBlockHash>,
        blocks: &[StoredBlock],
    ) -> Result<(), ApplyError> {
        let mut before = parent;
        for block in blocks {
            if before.replace(block.block_hash) == Some(block.block_hash) {
                return Err(ApplyError::InvalidBlock);
            }
        }
        if parent.is_some_and(|parent| !writer.records.holds(parent.0)) {
            return Err(ApplyError::ParentBlockNotFound);
        }
        let mut before = parent.map(|parent| SequenceHash(parent.0));
        for block in blocks {
            let name = SequenceHash::chain(before, block.tokens_hash);
            if name.0 != block.block_hash.0 {
                return Err(ApplyError::UnchainedName);
            }
            before = Some(name);
        }
        let mut before = parent.map(|parent| parent.0);
        for (number, block) in blocks.iter().enumerate() {
            if number % AHEAD == 0 {
                let ahead = &blocks[number..blocks.len().min(number + AHEAD)];
                writer.records.reserve(ahead.len());
                writer.records.warm(ahead.iter().map(|block| block.block_hash.0));
            }
            let (name, local) = (block.block_hash.0, block.tokens_hash.0);
            let parent = before.replace(name);
            if writer.records.holds(name) {
                continue;
            }
            jolt();
            let fills_hole = writer.records.store(name, parent);
            let (hash, shard) = self.shard(name);
            let mut shard = shard.write();
            let mut entry = shard
                .entry(hash, |entry| entry.name == name, |entry| mix(entry.name))
                .or_insert(Entry { name, local, parent: parent.unwrap_or(0), holders: None });
            writer.change.add(&self.sets, &mut entry.get_mut().holders, writer.index);
            drop(shard);
            writer.counters.set_blocks(writer.counters.blocks() + 1);
            if fills_hole {
                // Only now that the block can be seen.
                writer.counters.set_holes(writer.records.holes());
            }
        }
        Ok(())
    }

    fn remove(&self, writer: &mut Writer<'_>, hashes: &[ExternalBlockHash]) -> Result<(), ApplyError> {
        let mut result = Ok(());
        for ahead in hashes.chunks(AHEAD) {
            writer.records.warm(ahead.iter().map(|hash| hash.0));
            for hash in ahead {
                if writer.records.holds(hash.0) {
                    self.remove_block(writer, hash.0);
                } else {
                    result = Err(ApplyError::BlockNotFound);
                }
            }
        }
        writer.counters.removed();
        writer.records.shrink_if_sparse();
        result
    }

    /// Takes a block from the slot, which holds it.
    fn remove_block(&self, writer: &mut Writer<'_>, name: u64) {
        jolt();
        let (hash, shard) = self.shard(name);
        let mut shard = shard.write();
        if let Ok(mut entry) = shard.find_entry(hash, |entry| entry.name == name) {
            let Entry { local, parent, .. } = *entry.get();
            if writer.records.remove(name, local, parent) {
                // Before the block is seen to be gone.
                writer.counters.set_holes(writer.records.holes());
            }
            writer.change.remove(&self.sets, &mut entry.get_mut().holders, writer.index);
            if entry.get().holders.is_none() {
                entry.remove();
                shrink_if_sparse(&mut shard);
            }
        }
        drop(shard);
        writer.counters.set_blocks(writer.counters.blocks() - 1);
        if writer.counters.has_holes() {
            // Fewer, perhaps.
            writer.counters.set_holes(writer.records.holes());
        }
    }

    fn clear(&self, writer: &mut Writer<'_>) {
        if writer.counters.blocks() == 0 {
            return;
        }
        // They go in any order.
        writer.counters.set_holes(usize::MAX);
        for name in std::mem::take(writer.records).into_names() {
            let (hash, shard) = self.shard(name);
            let mut shard = shard.write();
            if let Ok(mut entry) = shard.find_entry(hash, |entry| entry.name == name) {
                writer.change.remove(&self.sets, &mut entry.get_mut().holders, writer.index);
                if entry.get().holders.is_none() {
                    entry.remove();
                    shrink_if_sparse(&mut shard);
                }
            }
        }
        writer.counters.set_blocks(0);
        writer.counters.removed();
        writer.counters.set_holes(0);
    }

    fn find_matches(&self, local: &[LocalBlockHash], out: &mut MatchBuffer) {
        out.clear();
        let MatchBuffer { matches, active, stamps, chain, astray, .. } = out;
        let Some(first) = local.first() else { return };
        self.holders(SequenceHash::first(*first).0, |holders| {
            for &index in holders {
                stamps.push(self.slots.stamp(index));
                let counters = self.slots.peek(index as usize);
                let has_holes = counters.is_some_and(|(counters, _)| counters.has_holes());
                if has_holes { astray.push(index) } else { active.push(index) }
            }
        });
        let mut query = Query { local, chain };
        self.search(&mut query, self.stride, active, matches);
        self.search(&mut query, 1, astray, matches);
        self.slots.settle(out, |_, records| {
            let mut before = None;
            let held = local.iter().take_while(|&&local| {
                let name = SequenceHash::chain(before, local);
                before = Some(name);
                records.holds(name.0)
            });
            held.count() as u32
        });
    }

    /// How far those go who hold the first block: `active`, which is used up.
    fn search(&self, query: &mut Query<'_>, stride: usize, active: &mut Vec<u32>, matches: &mut Vec<Match>) {
        let slot_of = |index: u32| self.slots.peek(index as usize).map(|(counters, _)| counters.slot());
        // All that are active hold the block at `at`.
        let (mut at, last) = (0, query.local.len() - 1);
        while at < last && !active.is_empty() {
            let next = last.min(at + stride);
            if self.holders(query.name(next), |holders| are_members(active, holders)) {
                at = next;
                continue;
            }
            // The first block that someone lacks.
            let mut missing = next;
            while missing - at > 1 {
                let middle = at + (missing - at) / 2;
                if self.holders(query.name(middle), |holders| are_members(active, holders)) {
                    at = middle;
                } else {
                    missing = middle;
                }
            }
            at = missing;
            self.holders(query.name(at), |holders| {
                keep_members(active, holders, |gone| {
                    matches.extend(slot_of(gone).map(|slot| Match { slot, device_blocks: at as u32 }));
                });
            });
        }
        let device_blocks = query.local.len() as u32;
        matches.extend(
            active.drain(..).filter_map(|index| slot_of(index).map(|slot| Match { slot, device_blocks })),
        );
    }
}

/// A query, and the names of its blocks as far as they were needed.
struct Query<'a> {
    local: &'a [LocalBlockHash],
    chain: &'a mut Vec<SequenceHash>,
}

impl Query<'_> {
    fn name(&mut self, at: usize) -> u64 {
        while self.chain.len() <= at {
            let name = SequenceHash::chain(self.chain.last().copied(), self.local[self.chain.len()]);
            self.chain.push(name);
        }
        self.chain[at].0
    }
}

/// Whether all of `some` are among `all`; both ascend.
fn are_members(some: &[u32], all: &[u32]) -> bool {
    if some.len() > all.len() {
        return false;
    }
    let mut all = all.iter();
    some.iter().all(|slot| all.any(|member| member == slot))
}

/// Rebuilds a part that is less than an eighth full, so that removals return memory at a cost that their number pays.
fn shrink_if_sparse(shard: &mut HashTable<Entry>) {
    const SMALL: usize = 16;
    let (len, capacity) = (shard.len(), shard.capacity());
    if len == 0 {
        *shard = HashTable::new();
    } else if capacity > SMALL && len * 8 < capacity {
        shard.shrink_to(len * 2, |entry| mix(entry.name));
    }
}

impl PrefixIndex for PositionalIndexer {
    fn apply(&mut self, slot: Slot, event: &KvCacheEventData) -> Result<(), ApplyError> {
        Self::apply(self, slot, event)
    }

    fn clear(&mut self, slot: Slot) {
        Self::clear(self, slot);
    }

    fn find_matches(&self, local: &[LocalBlockHash], out: &mut MatchBuffer) {
        self.shared.find_matches(local, out);
    }

    fn dump(&self, slot: Slot) -> Vec<KvCacheEventData> {
        self.shared.dump(slot)
    }

    fn held_blocks(&self, slot: Slot) -> u32 {
        self.shared.slots.held_blocks(slot)
    }

    fn note_held_blocks(&self, out: &mut MatchBuffer) {
        out.set_held_blocks(self.shared.slots.counters().map(Counters::blocks));
    }

    fn counts(&self) -> IndexCounts {
        let shared = &*self.shared;
        let (mut nodes, mut bytes) = (0, size_of_val(&*shared.shards));
        for shard in &shared.shards {
            let shard = shard.read();
            nodes += shard.len();
            bytes += shard.allocation_size();
        }
        let record_bytes = shared.record_bytes.load(Ordering::Relaxed);
        IndexCounts {
            blocks: shared.slots.counters().map(|counters| counters.blocks() as usize).sum(),
            nodes,
            bytes: bytes + shared.sets.bytes() + shared.slots.bytes() + record_bytes,
        }
    }
}

impl SharedIndex for PositionalIndexer {
    fn find_matches(&self, local: &[LocalBlockHash], out: &mut MatchBuffer) {
        PrefixIndex::find_matches(self, local, out);
    }

    fn held_blocks(&self, slot: Slot) -> u32 {
        PrefixIndex::held_blocks(self, slot)
    }

    fn note_held_blocks(&self, out: &mut MatchBuffer) {
        PrefixIndex::note_held_blocks(self, out);
    }

    fn counts(&self) -> IndexCounts {
        PrefixIndex::counts(self)
    }
}

#[cfg(test)]
mod tests;
