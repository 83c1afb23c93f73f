//! A radix tree of blocks, for one writer at a time.

use std::time::Instant;

use dynamo_engine_api::{ExternalBlockHash, KvCacheEventData, StoredBlock};
use dynamo_tokens::LocalBlockHash;

use super::{
    ApplyError, FrequencyWindow, IndexCounts, Match, MatchBuffer, PrefixIndex,
    block_uses::Parts,
    holders::{Change, EMPTY, HolderSets, NO_SET, SetId, mix},
    names::{Aliases, Left},
    node_table::NodeTable,
    nodes::{NodeId, Nodes, ROOT},
};
use crate::Slot;

mod dump;

/// One node a block, 28 bytes in columns; a child right behind its parent is found by its place, any other through a
/// table; the holders of a node are one of the sets that are stored once each. Nothing in it recurses, and memory is
/// given back in chunks.
///
/// Cost: a store or removal is about one probe a block; a query reads 16 bytes a block, mostly in order; `clear` reads
/// 4 bytes of every node.
pub struct RadixTree {
    nodes: Nodes,
    sets: HolderSets,
    /// Children that do not lie right behind their parent, by (parent, local hash).
    children: NodeTable,
    /// Nodes with holders, by their own name.
    names: NodeTable,
    /// Nodes in `names` beyond the first of their name.
    doubled_names: usize,
    aliases: Aliases,
    /// By slot index.
    slots: Vec<Held>,
    held: usize,
    /// Of the window within which uses count, if they are counted.
    parts: Option<Parts>,
}

#[derive(Clone, Copy)]
struct Held {
    slot: Slot,
    blocks: u32,
}

/// Names looked up ahead of their use: more than a core has misses under way at once does not help.
const AHEAD: usize = 16;

fn child_hash(parent: NodeId, local: u64) -> u64 {
    mix(local ^ u64::from(parent).wrapping_mul(0xD6E8_FEB8_6659_FD93))
}

impl Default for RadixTree {
    fn default() -> Self {
        Self::new()
    }
}

impl RadixTree {
    /// An empty tree.
    pub fn new() -> Self {
        Self::counting(None)
    }

    /// An empty tree that counts how often its blocks are asked for by [`Self::find_matches_at`], from `now` on. It takes
    /// 20 bytes a node more, and a block that the tree gives up loses its uses.
    pub fn with_frequencies(window: FrequencyWindow, now: Instant) -> Self {
        Self::counting(Some(Parts::new(window, now)))
    }

    fn counting(parts: Option<Parts>) -> Self {
        Self {
            nodes: Nodes::new(parts.is_some()),
            sets: HolderSets::new(),
            children: NodeTable::new(),
            names: NodeTable::new(),
            doubled_names: 0,
            aliases: Aliases::default(),
            slots: Vec::new(),
            held: 0,
            parts,
        }
    }

    /// As [`PrefixIndex::find_matches`]; counts a use of every block of the longest run, and notes those before it within
    /// the window as [`MatchBuffer::frequencies`].
    pub fn find_matches_at(&self, local: &[LocalBlockHash], now: Instant, out: &mut MatchBuffer) {
        let Some(parts) = self.parts else { return self.find_matches(local, out) };
        let part = parts.number(now);
        let mut before = std::mem::take(&mut out.frequencies);
        before.clear();
        self.walk(local, out, |id, count| self.nodes.count_uses(id, count, part, &mut before));
        out.frequencies = before;
    }

    /// Finds matches; calls `visit` with the first node and the length of each stretch of the longest run, root first.
    #[inline]
    fn walk(&self, local: &[LocalBlockHash], out: &mut MatchBuffer, mut visit: impl FnMut(NodeId, usize)) {
        out.clear();
        let MatchBuffer { matches, active, .. } = out;
        let (mut depth, mut at, mut set) = (0, ROOT, NO_SET);
        while let Some(wanted) = local.get(depth) {
            let Some(child) = self.child(at, wanted.0) else { break };
            let holders = self.nodes.set(child);
            if holders != set {
                if depth == 0 {
                    active.extend_from_slice(self.sets.get(holders));
                } else {
                    keep_members(active, self.sets.get(holders), |gone| {
                        let slot = self.slots[gone as usize].slot;
                        matches.push(Match { slot, device_blocks: depth as u32 });
                    });
                }
                if active.is_empty() {
                    break;
                }
                set = holders;
            }
            let behind = self.nodes.follow(child, set, &local[depth + 1..]);
            visit(child, behind + 1);
            depth += 1 + behind;
            at = child + behind as NodeId;
        }
        matches.extend(active.drain(..).map(|index| {
            let slot = self.slots[index as usize].slot;
            Match { slot, device_blocks: depth as u32 }
        }));
    }

    fn child(&self, parent: NodeId, local: u64) -> Option<NodeId> {
        self.nodes.child_behind(parent, local).or_else(|| {
            let is_it = |id| self.nodes.local(id) == local && self.nodes.parent(id) == parent;
            self.children.find(child_hash(parent, local), is_it)
        })
    }

    /// The node that a slot calls `ext`.
    fn named(&self, slot: u32, ext: u64) -> Option<NodeId> {
        let is_it = |id| {
            self.nodes.ext(id) == ext
                && self.sets.contains(self.nodes.set(id), slot)
                && self.aliases.uses_own(id, slot)
        };
        let own = self.names.find(mix(ext), is_it);
        if own.is_none() && !self.aliases.is_empty() { self.aliases.node(slot, ext) } else { own }
    }

    /// Looks names up for nothing but the cache: the look-ups that follow depend on one another, these do not, so that
    /// their misses overlap.
    fn warm(&self, names: impl Iterator<Item = u64>) {
        for name in names {
            std::hint::black_box(self.names.find(mix(name), |id| self.nodes.ext(id) == name));
        }
    }

    /// Gives back `id` and its ancestors as far as nobody holds them and nothing follows them.
    fn prune(&mut self, mut id: NodeId) {
        while id != ROOT && self.nodes.set(id) == EMPTY && self.nodes.children(id) == 0 {
            let parent = self.nodes.parent(id);
            if !Nodes::is_behind(parent, id) {
                self.children.remove(child_hash(parent, self.nodes.local(id)), id);
            }
            id = self.nodes.remove(id);
        }
    }

    fn give_back(&mut self) {
        self.names.shrink_if_sparse();
        self.children.shrink_if_sparse();
    }

    /// Lists a node that just got its first holder.
    fn list_name(&mut self, id: NodeId, ext: u64) {
        self.nodes.put_ext(id, ext);
        if self.names.find(mix(ext), |other| self.nodes.ext(other) == ext).is_some() {
            self.doubled_names += 1;
        }
        self.names.insert(mix(ext), id);
    }

    /// Takes a node that lost its last holder off the list.
    fn unlist_name(&mut self, id: NodeId) {
        let ext = self.nodes.ext(id);
        self.names.remove(mix(ext), id);
        if self.doubled_names > 0 && self.names.find(mix(ext), |other| self.nodes.ext(other) == ext).is_some()
        {
            self.doubled_names -= 1;
        }
    }

    /// Lets `slot` hold `id` under the name `ext`, which it does not use for any node yet.
    fn add_name(&mut self, slot: u32, id: NodeId, ext: u64, change: &mut Change) {
        let set = self.nodes.set(id);
        let holds = set != EMPTY && self.sets.contains(set, slot);
        if set == EMPTY {
            self.list_name(id, ext);
        } else if self.nodes.ext(id) != ext {
            self.aliases.add(id, slot, ext, holds);
        } else if holds {
            self.aliases.add_own(id, slot);
        }
        if !holds {
            let with = change.apply(&mut self.sets, set, slot, true);
            self.nodes.put_set(id, with);
            self.sets.release(set);
            self.slots[slot as usize].blocks += 1;
            self.held += 1;
        }
    }

    /// Takes from `slot` the name `ext`, which stands for `id`.
    fn remove_name(&mut self, slot: u32, id: NodeId, ext: u64, change: &mut Change) {
        if !self.aliases.is_empty() {
            let is_own = self.nodes.ext(id) == ext && self.aliases.uses_own(id, slot);
            if self.aliases.remove(id, slot, ext, is_own) == Left::Names {
                return;
            }
        }
        let set = self.nodes.set(id);
        let without = change.apply(&mut self.sets, set, slot, false);
        self.nodes.put_set(id, without);
        self.sets.release(set);
        self.slots[slot as usize].blocks -= 1;
        self.held -= 1;
        if without == EMPTY {
            self.unlist_name(id);
            self.prune(id);
        }
    }

    fn store(
        &mut self,
        slot: u32,
        parent: Option<ExternalBlockHash>,
        blocks: &[StoredBlock],
        add: &mut Change,
        remove: &mut Change,
    ) -> Result<(), ApplyError> {
        let mut before = parent;
        for block in blocks {
            if before.replace(block.block_hash) == Some(block.block_hash) {
                return Err(ApplyError::InvalidBlock);
            }
        }
        let mut at = match parent {
            Some(parent) => self.named(slot, parent.0).ok_or(ApplyError::ParentBlockNotFound)?,
            None => ROOT,
        };
        let (mut at_is_new, mut warmed) = (false, 0);
        for (number, block) in blocks.iter().enumerate() {
            let (ext, local) = (block.block_hash.0, block.tokens_hash.0);
            let known = if at_is_new { None } else { self.child(at, local) };
            if known.is_none() && number >= warmed {
                self.warm(blocks[number..].iter().take(AHEAD).map(|block| block.block_hash.0));
                warmed = number + AHEAD;
            }
            if known.is_none()
                && let Some(id) = self.store_first(slot, at, block, add)?
            {
                (at, at_is_new) = (id, true);
                continue;
            }
            let old = match known {
                // No other node has this name: it stands for this one, or for nothing.
                Some(id) if self.is_only_node_of(id, ext) => {
                    self.sets.contains(self.nodes.set(id), slot).then_some(id)
                }
                _ => self.named(slot, ext),
            };
            at_is_new = known.is_none();
            let id = match known {
                Some(id) => id,
                None => create(&mut self.nodes, &mut self.children, at, local, ext)?,
            };
            if old != Some(id) {
                match old {
                    Some(old) => self.move_name(slot, old, id, ext, add, remove),
                    None => self.add_name(slot, id, ext, add),
                }
            }
            at = id;
        }
        Ok(())
    }

    /// A new node behind `at` that `slot` holds, if its name stands for no node yet: as nearly every new one.
    fn store_first(
        &mut self,
        slot: u32,
        at: NodeId,
        block: &StoredBlock,
        add: &mut Change,
    ) -> Result<Option<NodeId>, ApplyError> {
        if !self.aliases.is_empty() {
            return Ok(None);
        }
        let (ext, local) = (block.block_hash.0, block.tokens_hash.0);
        let Self { nodes, children, names, .. } = self;
        let Some(place) = names.place_if_absent(mix(ext), |id| nodes.ext(id) == ext) else { return Ok(None) };
        let id = create(nodes, children, at, local, ext)?;
        place.put(id);
        let with = add.apply(&mut self.sets, EMPTY, slot, true);
        self.nodes.put_set(id, with);
        self.slots[slot as usize].blocks += 1;
        self.held += 1;
        Ok(Some(id))
    }

    fn is_only_node_of(&self, id: NodeId, ext: u64) -> bool {
        self.doubled_names == 0
            && self.aliases.is_empty()
            && self.nodes.ext(id) == ext
            && self.nodes.set(id) != EMPTY
    }

    fn move_name(
        &mut self,
        slot: u32,
        old: NodeId,
        new: NodeId,
        ext: u64,
        add: &mut Change,
        remove: &mut Change,
    ) {
        // Pinned, or it could be pruned with the old place if that lies below.
        self.nodes.pin(new);
        self.remove_name(slot, old, ext, remove);
        self.nodes.unpin(new);
        self.add_name(slot, new, ext, add);
    }

    fn remove(
        &mut self,
        slot: u32,
        hashes: &[ExternalBlockHash],
        change: &mut Change,
    ) -> Result<(), ApplyError> {
        let mut result = Ok(());
        for (number, hash) in hashes.iter().enumerate() {
            if number % AHEAD == 0 {
                self.warm(hashes[number..].iter().take(AHEAD).map(|hash| hash.0));
            }
            match self.named(slot, hash.0) {
                Some(id) => self.remove_name(slot, id, hash.0, change),
                None => result = Err(ApplyError::BlockNotFound),
            }
        }
        self.give_back();
        result
    }

    fn slot_index(&self, slot: Slot) -> Option<u32> {
        let held = self.slots.get(slot.index())?;
        (held.slot == slot).then_some(slot.index() as u32)
    }

    fn clear_index(&mut self, slot: u32) {
        if self.slots[slot as usize].blocks == 0 {
            return;
        }
        self.aliases.clear(slot);
        let mut replaced: Vec<SetId> = (0..self.sets.limit() as SetId)
            .map(|set| if self.sets.contains(set, slot) { self.sets.without(set, slot) } else { NO_SET })
            .collect();
        // Sets that were made just now contain the slot no more.
        replaced.resize(self.sets.limit(), NO_SET);
        let mut from = 0;
        while let Some(id) = self.nodes.next_with(from, |set| replaced[set as usize] != NO_SET) {
            from = id as usize + 1;
            let set = self.nodes.set(id);
            let without = replaced[set as usize];
            self.sets.retain(without);
            self.nodes.put_set(id, without);
            self.sets.release(set);
            self.held -= 1;
            if without == EMPTY {
                self.unlist_name(id);
                self.prune(id);
            }
        }
        for set in replaced {
            if set != NO_SET {
                self.sets.release(set);
            }
        }
        self.slots[slot as usize].blocks = 0;
        self.give_back();
    }
}

impl PrefixIndex for RadixTree {
    fn apply(&mut self, slot: Slot, event: &KvCacheEventData) -> Result<(), ApplyError> {
        let index = slot.index();
        if index >= self.slots.len() {
            let unknown = |index| Held { slot: Slot::new(index as u32, 0), blocks: 0 };
            self.slots.extend((self.slots.len()..=index).map(unknown));
        }
        if self.slots[index].slot != slot {
            self.clear_index(index as u32);
            self.slots[index].slot = slot;
        }
        let slot = index as u32;
        match event {
            KvCacheEventData::Stored { parent_hash, blocks } => {
                let (mut add, mut remove) = (Change::NONE, Change::NONE);
                let result = self.store(slot, *parent_hash, blocks, &mut add, &mut remove);
                add.end(&mut self.sets);
                remove.end(&mut self.sets);
                result
            }
            KvCacheEventData::Removed { block_hashes } => {
                let mut change = Change::NONE;
                let result = self.remove(slot, block_hashes, &mut change);
                change.end(&mut self.sets);
                result
            }
            KvCacheEventData::Cleared => {
                self.clear_index(slot);
                Ok(())
            }
        }
    }

    fn clear(&mut self, slot: Slot) {
        if let Some(index) = self.slot_index(slot) {
            self.clear_index(index);
        }
    }

    fn find_matches(&self, local: &[LocalBlockHash], out: &mut MatchBuffer) {
        self.walk(local, out, |_, _| {});
    }

    fn dump(&self, slot: Slot) -> Vec<KvCacheEventData> {
        self.slot_index(slot).map_or_else(Vec::new, |index| self.dump_index(index))
    }

    fn held_blocks(&self, slot: Slot) -> u32 {
        self.slot_index(slot).map_or(0, |index| self.slots[index as usize].blocks)
    }

    fn note_held_blocks(&self, out: &mut MatchBuffer) {
        out.set_held_blocks(self.slots.iter().map(|held| held.blocks));
    }

    fn counts(&self) -> IndexCounts {
        IndexCounts {
            blocks: self.held,
            nodes: self.nodes.live(),
            bytes: self.nodes.bytes()
                + self.sets.bytes()
                + self.children.bytes()
                + self.names.bytes()
                + self.aliases.bytes()
                + self.slots.capacity() * size_of::<Held>(),
        }
    }
}

fn create(
    nodes: &mut Nodes,
    children: &mut NodeTable,
    parent: NodeId,
    local: u64,
    ext: u64,
) -> Result<NodeId, ApplyError> {
    let id = nodes.create(parent, local, ext).ok_or(ApplyError::Full)?;
    if !Nodes::is_behind(parent, id) {
        children.insert(child_hash(parent, local), id);
    }
    Ok(id)
}

/// Keeps what is in `members` too; both ascend. Calls `gone` for the others.
pub(super) fn keep_members(active: &mut Vec<u32>, members: &[u32], mut gone: impl FnMut(u32)) {
    let mut rest = members.iter().peekable();
    active.retain(|&slot| {
        while rest.next_if(|&&member| member < slot).is_some() {}
        let stays = rest.peek() == Some(&&slot);
        if !stays {
            gone(slot);
        }
        stays
    });
}

#[cfg(test)]
mod frequency_tests;
#[cfg(test)]
mod tests;
