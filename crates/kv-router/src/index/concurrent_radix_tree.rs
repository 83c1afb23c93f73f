//! A radix tree for many writers and many readers.

use std::{
    cell::Cell as StdCell,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use dynamo_engine_api::{ExternalBlockHash, KvCacheEventData, StoredBlock};
use dynamo_tokens::LocalBlockHash;
use parking_lot::RwLock;

use self::{
    nodes::{NodeId, ROOT, Read, SharedNodes, Write, is_behind, place_of},
    slot_names::SlotNames,
};
use super::{
    ApplyError, IndexCounts, Match, MatchBuffer, PrefixIndex, SharedIndex,
    holders::mix,
    jolt::jolt,
    node_table::NodeTable,
    radix_tree::keep_members,
    shared_sets::{Change, HoldersRef, SharedSets, members},
    slot_states::{Counters, SlotStates},
};
use crate::Slot;

mod dump;
mod nodes;
mod remove;
mod slot_names;

/// Parts of the table of children; a lane holds one of them only while it makes or drops a child.
const CHILD_SHARDS: usize = 128;

/// Blocks that are written under one lock of a chunk, some microseconds: readers of the chunk wait for it.
const BLOCKS_PER_LOCK: usize = 64;

/// Names looked up ahead of their use: more than a core has misses under way at once does not help.
const AHEAD: usize = 16;

/// A cheap handle on a tree that any number of threads read and write at once.
///
/// Nodes lie in chunks of a thousand, each with a lock of its own; a chain lies in one chunk as far as it can, so that
/// a query takes a few locks, and an event about as many. Events of one slot take turns, those of others do not meet
/// but at chunks that they share. A query is checked against removals that happened meanwhile, slot by slot.
#[derive(Clone)]
pub struct ConcurrentRadixTree {
    shared: Arc<Shared>,
}

/// Locks are taken in this order: a slot's names, a part of the table of children, a chunk, lists and sets; never two
/// of a kind.
struct Shared {
    nodes: SharedNodes,
    /// Children that do not lie right behind their parent, by (parent, local hash).
    children: Box<[RwLock<NodeTable>]>,
    sets: SharedSets,
    slots: SlotStates<SlotNames>,
    /// Of all slots' names.
    name_bytes: AtomicUsize,
}

fn child_hash(parent: NodeId, local: u64) -> u64 {
    mix(local ^ u64::from(parent).wrapping_mul(0xD6E8_FEB8_6659_FD93))
}

/// Refuses blocks that are their own parents.
fn check_order(parent: Option<ExternalBlockHash>, blocks: &[StoredBlock]) -> Result<(), ApplyError> {
    let mut before = parent;
    for block in blocks {
        if before.replace(block.block_hash) == Some(block.block_hash) {
            return Err(ApplyError::InvalidBlock);
        }
    }
    Ok(())
}

/// A slot while an event of it is applied.
struct Writer<'a> {
    index: u32,
    counters: &'a Counters,
    names: &'a mut SlotNames,
    add: Change,
    remove: Change,
}

impl Default for ConcurrentRadixTree {
    fn default() -> Self {
        Self::new()
    }
}

impl ConcurrentRadixTree {
    /// An empty tree.
    pub fn new() -> Self {
        let shared = Shared {
            nodes: SharedNodes::new(),
            children: (0..CHILD_SHARDS).map(|_| RwLock::new(NodeTable::new())).collect(),
            sets: SharedSets::new(),
            slots: SlotStates::new(),
            name_bytes: AtomicUsize::new(0),
        };
        Self { shared: Arc::new(shared) }
    }

    /// As [`PrefixIndex::apply`], from any thread. Events of one slot must come in their order.
    pub fn apply(&self, slot: Slot, event: &KvCacheEventData) -> Result<(), ApplyError> {
        self.shared.write(slot, true, |writer| match event {
            KvCacheEventData::Stored { parent_hash, blocks } => {
                self.shared.store(writer, *parent_hash, blocks)
            }
            KvCacheEventData::Removed { block_hashes } => self.shared.remove(writer, block_hashes),
            KvCacheEventData::Cleared => {
                self.shared.clear(writer);
                Ok(())
            }
        })
    }

    /// Stores blocks of `slot` below one that `keeper` holds, and goes on holding meanwhile; in no order but that of `blocks`.
    pub(super) fn store_below(
        &self,
        slot: Slot,
        keeper: Slot,
        parent: Option<u64>,
        blocks: &[StoredBlock],
    ) -> Result<(), ApplyError> {
        let at = match parent {
            Some(parent) => {
                let state = self.shared.slots.peek(keeper.index());
                let names = state.filter(|(counters, _)| counters.slot() == keeper);
                let node = names.and_then(|(_, names)| names.lock().get(parent));
                node.ok_or(ApplyError::ParentBlockNotFound)?
            }
            None => ROOT,
        };
        self.shared.write(slot, true, |writer| self.shared.store_below(writer, at, blocks))
    }

    /// As [`PrefixIndex::clear`], from any thread.
    pub fn clear(&self, slot: Slot) {
        let known = self.shared.slots.peek(slot.index());
        if known.is_some_and(|(counters, _)| counters.slot() == slot) {
            self.shared.write(slot, false, |writer| {
                if writer.counters.slot() == slot {
                    self.shared.clear(writer);
                }
            });
        }
    }
}

impl<'a> Writer<'a> {
    fn new(index: u32, counters: &'a Counters, names: &'a mut SlotNames) -> Self {
        Self { index, counters, names, add: Change::default(), remove: Change::default() }
    }

    fn end(self, sets: &SharedSets) {
        self.add.end(sets);
        self.remove.end(sets);
    }

    /// Lets the slot hold a node under a name that it does not use yet.
    fn hold(&mut self, sets: &SharedSets, set: &mut HoldersRef, id: NodeId, name: u64) {
        self.names.insert(name, id);
        if set.as_ref().is_some_and(|set| set.contains(self.index)) {
            self.names.double(id);
            return;
        }
        self.add.add(sets, set, self.index);
        self.counters.set_blocks(self.counters.blocks() + 1);
    }
}

impl Shared {
    fn child_shard(&self, parent: NodeId, local: u64) -> (u64, &RwLock<NodeTable>) {
        let hash = child_hash(parent, local);
        (hash, &self.children[(hash >> 40) as usize % CHILD_SHARDS])
    }

    /// Lets `act` write for a slot; `take_over` drops what the index's former owner had.
    fn write<R>(&self, slot: Slot, take_over: bool, act: impl FnOnce(&mut Writer<'_>) -> R) -> R {
        let (counters, names) = self.slots.get(slot.index());
        let mut names = names.lock();
        let before = names.bytes();
        let mut writer = Writer::new(slot.index() as u32, counters, &mut names);
        if take_over && counters.slot() != slot {
            self.clear(&mut writer);
            counters.set_slot(slot);
        }
        let result = act(&mut writer);
        writer.end(&self.sets);
        let after = names.bytes();
        if after > before {
            self.name_bytes.fetch_add(after - before, Ordering::Relaxed);
        } else if before > after {
            self.name_bytes.fetch_sub(before - after, Ordering::Relaxed);
        }
        result
    }

    /// The child that the table lists, with its chunk's lock.
    fn listed_child<'a>(
        &'a self,
        table: &NodeTable,
        hash: u64,
        (parent, generation): (NodeId, u32),
        local: u64,
    ) -> Option<(NodeId, Read<'a>)> {
        let found = StdCell::new(None);
        table.find(hash, |id| {
            let cell = self.nodes.read(id);
            let at = place_of(id);
            let is_it = cell.chunk().is_some_and(|chunk| {
                chunk.local[at] == local
                    && chunk.parent[at] == parent
                    && chunk.parent_generation[at] == generation
                    && chunk.is_used(at)
            });
            if is_it {
                found.set(Some((id, cell)));
            }
            is_it
        });
        found.into_inner()
    }

    /// The child of a node that is not behind it.
    fn child_aside(&self, parent: (NodeId, u32), local: u64) -> Option<(NodeId, Read<'_>)> {
        let (hash, shard) = self.child_shard(parent.0, local);
        self.listed_child(&shard.read(), hash, parent, local)
    }

    fn store(
        &self,
        writer: &mut Writer<'_>,
        parent: Option<ExternalBlockHash>,
        blocks: &[StoredBlock],
    ) -> Result<(), ApplyError> {
        check_order(parent, blocks)?;
        let at = match parent {
            Some(parent) => writer.names.get(parent.0).ok_or(ApplyError::ParentBlockNotFound)?,
            None => ROOT,
        };
        self.store_below(writer, at, blocks)
    }

    /// Stores blocks below `at`, which somebody holds until it is done, so that nobody drops it.
    fn store_below(
        &self,
        writer: &mut Writer<'_>,
        mut at: NodeId,
        blocks: &[StoredBlock],
    ) -> Result<(), ApplyError> {
        let mut rest = blocks;
        if at != ROOT && !rest.is_empty() {
            writer.names.reserve(BLOCKS_PER_LOCK.min(rest.len()));
            rest = self.store_behind(writer, self.nodes.write(at), &mut at, false, rest);
        }
        while let Some(block) = rest.first() {
            jolt();
            writer.names.reserve(BLOCKS_PER_LOCK.min(rest.len()));
            rest = self.store_aside(writer, &mut at, block, rest)?;
        }
        Ok(())
    }

    /// Stores the first of `rest` that has no known place behind its parent, and those behind it.
    fn store_aside<'b>(
        &self,
        writer: &mut Writer<'_>,
        at: &mut NodeId,
        block: &StoredBlock,
        rest: &'b [StoredBlock],
    ) -> Result<&'b [StoredBlock], ApplyError> {
        let (name, local) = (block.block_hash.0, block.tokens_hash.0);
        let parent = *at;
        let generation = if parent == ROOT { 0 } else { self.generation(parent) };
        let (hash, shard) = self.child_shard(parent, local);
        // Nobody else makes or drops a child that is listed under this hash meanwhile.
        let mut table = shard.write();
        let listed = self.listed_child(&table, hash, (parent, generation), local).map(|(id, _)| id);
        let old = writer.names.get(name);
        if let Some(id) = listed {
            if old == Some(id) {
                *at = id;
                return Ok(&rest[1..]);
            }
            if old.is_some() {
                drop(table);
                self.forget(writer, name);
                return Ok(rest);
            }
            let mut cell = self.nodes.write(id);
            drop(table);
            writer.hold(&self.sets, &mut cell.chunk_mut().sets[place_of(id)], id, name);
            *at = id;
            return Ok(self.store_behind(writer, cell, at, false, &rest[1..]));
        }
        if parent != ROOT {
            let mut cell = self.nodes.write(parent);
            let place = place_of(parent);
            if cell.chunk_mut().has_child_behind(place, parent, local) {
                drop(table);
                let after = self.store_behind(writer, cell, at, false, rest);
                if after.len() == rest.len() {
                    // The name stands for another place.
                    self.forget(writer, name);
                }
                return Ok(after);
            }
            if old.is_some() {
                drop((cell, table));
                self.forget(writer, name);
                return Ok(rest);
            }
            // Counted before it is there, and so is the parent's use.
            cell.chunk_mut().children[place] += 1;
            if cell.chunk_mut().is_free_behind(place) {
                let id = parent + 1;
                cell.create(place + 1, parent, generation, local);
                drop(table);
                writer.hold(&self.sets, &mut cell.chunk_mut().sets[place + 1], id, name);
                *at = id;
                return Ok(self.store_behind(writer, cell, at, true, &rest[1..]));
            }
        } else if old.is_some() {
            drop(table);
            self.forget(writer, name);
            return Ok(rest);
        }
        let Some((id, mut cell)) = self.nodes.open_place(writer.index) else {
            if parent != ROOT {
                self.nodes.write(parent).chunk_mut().children[place_of(parent)] -= 1;
            }
            return Err(ApplyError::Full);
        };
        cell.create(place_of(id), parent, generation, local);
        if !is_behind(parent, id) {
            table.insert(hash, id);
        }
        drop(table);
        writer.hold(&self.sets, &mut cell.chunk_mut().sets[place_of(id)], id, name);
        *at = id;
        Ok(self.store_behind(writer, cell, at, true, &rest[1..]))
    }

    /// Stores those of `rest` that lie one behind the other after `at`, whose chunk's lock is given. If `at` was made
    /// under this very lock, `fresh`, it has no child that could lie elsewhere, and new ones are made.
    fn store_behind<'b>(
        &self,
        writer: &mut Writer<'_>,
        mut cell: Write<'_>,
        at: &mut NodeId,
        mut fresh: bool,
        rest: &'b [StoredBlock],
    ) -> &'b [StoredBlock] {
        for (number, block) in rest.iter().enumerate() {
            // The first block of an event may have taken a place of the reserve.
            if number + 1 >= BLOCKS_PER_LOCK {
                return &rest[number..];
            }
            if number % AHEAD == 0 {
                writer.names.warm(rest[number..].iter().take(AHEAD).map(|block| block.block_hash.0));
            }
            let (name, local) = (block.block_hash.0, block.tokens_hash.0);
            let old = writer.names.get(name);
            let (place, id) = (place_of(*at), *at + 1);
            if cell.chunk_mut().has_child_behind(place, *at, local) {
                if old.is_some_and(|old| old != id) {
                    return &rest[number..];
                }
                fresh = false;
            } else {
                if !fresh || old.is_some() || !cell.chunk_mut().is_free_behind(place) {
                    return &rest[number..];
                }
                let generation = cell.chunk_mut().generation[place];
                cell.chunk_mut().children[place] += 1;
                cell.create(place + 1, *at, generation, local);
            }
            if old.is_none() {
                writer.hold(&self.sets, &mut cell.chunk_mut().sets[place + 1], id, name);
            }
            *at = id;
        }
        &[]
    }

    /// The generation of a node that is held.
    fn generation(&self, id: NodeId) -> u32 {
        self.nodes.read(id).chunk().map_or(0, |chunk| chunk.generation[place_of(id)])
    }

    /// Takes a name away that is about to stand for another place.
    fn forget(&self, writer: &mut Writer<'_>, name: u64) {
        if let Some((id, true)) = writer.names.remove(name) {
            self.release(writer, &mut [id].into_iter());
        }
        writer.counters.removed();
    }

    /// Walks down a query. `visit` gets the depth before a block and the block's holders whenever these change, and
    /// says whether to go on. Returns how many blocks there are as far as it went on.
    fn walk(&self, local: &[LocalBlockHash], mut visit: impl FnMut(usize, &[u32]) -> bool) -> usize {
        let mut depth = 0;
        let mut parent = (ROOT, 0);
        while let Some(wanted) = local.get(depth) {
            jolt();
            let Some((mut id, cell)) = self.child_aside(parent, wanted.0) else { return depth };
            let Some(chunk) = cell.chunk() else { return depth };
            let mut at = place_of(id);
            loop {
                if !visit(depth, members(&chunk.sets[at])) {
                    return depth;
                }
                // All with the same holders.
                let behind = chunk.follow(at, id, &local[depth + 1..]);
                depth += 1 + behind;
                at += behind;
                id += behind as NodeId;
                match local.get(depth) {
                    Some(next) if chunk.has_child_behind(at, id, next.0) => {
                        at += 1;
                        id += 1;
                    }
                    Some(_) => break,
                    None => return depth,
                }
            }
            parent = (id, chunk.generation[at]);
        }
        depth
    }

    fn find_matches(&self, local: &[LocalBlockHash], out: &mut MatchBuffer) {
        out.clear();
        let MatchBuffer { matches, active, stamps, .. } = out;
        let slot_of = |index: u32| self.slots.peek(index as usize).map(|(counters, _)| counters.slot());
        let depth = self.walk(local, |depth, holders| {
            if depth == 0 {
                active.extend_from_slice(holders);
                stamps.extend(holders.iter().map(|&index| self.slots.stamp(index)));
            } else {
                keep_members(active, holders, |gone| {
                    let found = slot_of(gone).map(|slot| Match { slot, device_blocks: depth as u32 });
                    matches.extend(found);
                });
            }
            !active.is_empty()
        });
        matches.extend(
            active
                .drain(..)
                .filter_map(|index| slot_of(index).map(|slot| Match { slot, device_blocks: depth as u32 })),
        );
        self.slots.settle(out, |index, _| {
            self.walk(local, |_, holders| holders.binary_search(&index).is_ok()) as u32
        });
    }
}

impl PrefixIndex for ConcurrentRadixTree {
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
        let tables = shared.children.iter().map(|table| size_of_val(table) + table.read().bytes());
        IndexCounts {
            blocks: shared.slots.counters().map(|counters| counters.blocks() as usize).sum(),
            nodes: shared.nodes.live(),
            bytes: shared.nodes.bytes()
                + shared.sets.bytes()
                + shared.slots.bytes()
                + shared.name_bytes.load(Ordering::Relaxed)
                + tables.sum::<usize>(),
        }
    }
}

impl SharedIndex for ConcurrentRadixTree {
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
