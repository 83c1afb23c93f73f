//! Blocks on lower tiers: host memory, disks, storage that workers share.
//!
//! The device's blocks are in an index of any kind. A slot that has blocks on lower tiers has, in a radix tree beside
//! it, two stand-ins: one holds what the slot has on the device or the host, the other what it has anywhere. A name on
//! a lower tier goes there under an alias, for the same block may be on several tiers: a place is held while any of its
//! names stands for it. Slots without lower tiers cost nothing there. One more stand-in is for all slots: it holds what
//! any of them has in external storage, which all can load.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use dynamo_engine_api::{ExternalBlockHash, KvCacheEventData, StorageTier, StoredBlock};
use dynamo_tokens::LocalBlockHash;
use rustc_hash::FxHashMap;

pub use self::answer::TierMatch;
use self::answer::order;
use super::{
    ApplyError, ConcurrentRadixTree, IndexCounts, IndexParts, Match, MatchBuffer, PrefixIndex, SharedIndex,
    holders::mix,
};
use crate::Slot;

mod answer;
mod dump;
mod shared_storage;

/// Slots from this index on have no lower tiers: each takes two of the numbers that there are, and the storage that all
/// share takes one.
const MAX_TIERED_SLOTS: usize = (Slot::MAX_SLOTS - 1) / 2;

const LOWER_TIERS: [StorageTier; 3] = [StorageTier::HostPinned, StorageTier::Disk, StorageTier::External];

/// What slots have on lower tiers and, for the same slots, on the device.
#[derive(Default)]
struct Lower {
    tree: OnceLock<ConcurrentRadixTree>,
    /// Slots with stand-ins.
    slots: AtomicUsize,
}

/// The readers' side of an index with tiers.
#[derive(Clone)]
pub struct TieredIndex {
    device: Arc<dyn SharedIndex>,
    lower: Arc<Lower>,
}

/// A lane's side of an index with tiers. All events of a slot go to the same one.
pub struct TieredWriter {
    device: Box<dyn PrefixIndex>,
    lower: Arc<Lower>,
    /// By slot index, for slots with stand-ins: what aliases mean.
    slots: FxHashMap<usize, LowerNames>,
}

struct LowerNames {
    slot: Slot,
    by_alias: FxHashMap<u64, (StorageTier, u64)>,
}

/// The stand-in for what a slot has on the device or the host.
fn host_slot(slot: Slot) -> Slot {
    slot.with_index(slot.index() * 2 + 1)
}

/// The stand-in for what a slot has anywhere.
fn any_slot(slot: Slot) -> Slot {
    slot.with_index(slot.index() * 2 + 2)
}

/// Whose stand-in it is.
fn stood_for(stand_in: Slot) -> Slot {
    stand_in.with_index((stand_in.index() - 1) / 2)
}

fn alias(tier: StorageTier, name: u64) -> u64 {
    match tier {
        StorageTier::Device => name,
        StorageTier::HostPinned => mix(name ^ 0x686F_7374_686F_7374),
        StorageTier::Disk => mix(name ^ 0x6469_736B_6469_736B),
        StorageTier::External => mix(name ^ 0x6578_7465_726E_616C),
    }
}

fn is_on_host(tier: StorageTier) -> bool {
    matches!(tier, StorageTier::Device | StorageTier::HostPinned)
}

/// Puts tiers around an index of the device's blocks.
pub fn with_tiers(parts: IndexParts) -> (TieredIndex, Vec<TieredWriter>) {
    let lower = Arc::new(Lower::default());
    let writer = |device| TieredWriter { device, lower: lower.clone(), slots: FxHashMap::default() };
    let writers = parts.writers.into_iter().map(writer).collect();
    (TieredIndex { device: parts.reader, lower }, writers)
}

impl TieredIndex {
    /// Replaces `out` by who holds how much of a prompt, on the device and on lower tiers.
    pub fn find_matches(&self, local: &[LocalBlockHash], out: &mut MatchBuffer) {
        self.device.find_matches(local, out);
        self.find_lower(local, out);
    }

    /// The same, as [`SharedIndex::find_matches_at`]. Blocks on lower tiers have no uses.
    pub fn find_matches_at(&self, local: &[LocalBlockHash], now: Instant, out: &mut MatchBuffer) {
        self.device.find_matches_at(local, now, out);
        self.find_lower(local, out);
    }

    /// Adds what there is on lower tiers to what is on the device.
    fn find_lower(&self, local: &[LocalBlockHash], out: &mut MatchBuffer) {
        self.device.note_held_blocks(out);
        out.lower.clear();
        out.shared = 0;
        let Some(tree) = self.lower.tree.get() else { return };
        if self.lower.slots.load(Ordering::Acquire) == 0 {
            return;
        }
        let mut found = out.lower_found.take().unwrap_or_default();
        SharedIndex::find_matches(tree, local, &mut found);
        out.shared = shared_storage::take(&mut found.matches);
        // The stand-ins of a slot become neighbours, the host's first.
        let place = |stand_in: &Match| (order(stood_for(stand_in.slot)), stand_in.slot.index());
        found.matches.sort_unstable_by_key(place);
        for stand_in in &found.matches {
            let slot = stood_for(stand_in.slot);
            let blocks = stand_in.device_blocks;
            if stand_in.slot == host_slot(slot) {
                out.lower.push(TierMatch { slot, device_blocks: 0, host_blocks: blocks, any_blocks: blocks });
            } else if let Some(last) = out.lower.last_mut().filter(|last| last.slot == slot) {
                last.any_blocks = last.any_blocks.max(blocks);
            } else {
                out.lower.push(TierMatch { slot, device_blocks: 0, host_blocks: 0, any_blocks: blocks });
            }
        }
        out.lower_found = Some(found);
        // They were asked one after the other.
        out.raise_lower();
    }

    /// Blocks that a slot holds on its device.
    pub fn held_blocks(&self, slot: Slot) -> u32 {
        self.device.held_blocks(slot)
    }

    /// How large the device's index is.
    pub fn counts(&self) -> IndexCounts {
        self.device.counts()
    }

    /// How large the index beside it is, in which slots with lower tiers have two stand-ins, and external storage one
    /// for all.
    pub fn lower_counts(&self) -> IndexCounts {
        self.lower.tree.get().map(PrefixIndex::counts).unwrap_or_default()
    }
}

impl TieredWriter {
    /// Puts tiers around an index that nobody reads meanwhile.
    pub fn new(device: impl PrefixIndex + 'static) -> Self {
        Self { device: Box::new(device), lower: Arc::default(), slots: FxHashMap::default() }
    }

    /// Whether a slot has a block of this name on a lower tier.
    pub fn holds_lower(&self, slot: Slot, tier: StorageTier, name: ExternalBlockHash) -> bool {
        let names = self.slots.get(&slot.index()).filter(|names| names.slot == slot);
        names.is_some_and(|names| names.by_alias.contains_key(&alias(tier, name.0)))
    }

    /// Applies an event of a slot on a tier. A parent may be on any tier. `Cleared` on the device is the word of those
    /// that know no tiers: all of the slot is gone; on another tier it concerns that one.
    pub fn apply(
        &mut self,
        slot: Slot,
        tier: StorageTier,
        event: &KvCacheEventData,
    ) -> Result<(), ApplyError> {
        if self.slots.get(&slot.index()).is_some_and(|names| names.slot != slot) {
            self.drop_stand_ins(slot.index());
        }
        if tier == StorageTier::Device {
            self.apply_device(slot, event)
        } else {
            self.apply_lower(slot, tier, event)
        }
    }

    /// As [`PrefixIndex::announce`], for an event of the device.
    pub fn announce(&self, event: &KvCacheEventData) {
        self.device.announce(event);
    }

    /// Forgets all that a slot has, on all tiers.
    pub fn clear(&mut self, slot: Slot) {
        if self.slots.get(&slot.index()).is_some_and(|names| names.slot == slot) {
            self.drop_stand_ins(slot.index());
        }
        self.device.clear(slot);
    }

    /// Blocks that a slot holds on its device.
    pub fn held_blocks(&self, slot: Slot) -> u32 {
        self.device.held_blocks(slot)
    }

    fn apply_device(&mut self, slot: Slot, event: &KvCacheEventData) -> Result<(), ApplyError> {
        if matches!(event, KvCacheEventData::Cleared) {
            self.drop_stand_ins(slot.index());
            return self.device.apply(slot, event);
        }
        let result = self.device.apply(slot, event);
        let has_changed = matches!(result, Ok(()) | Err(ApplyError::BlockNotFound));
        if has_changed
            && self.slots.contains_key(&slot.index())
            && let Some(tree) = self.lower.tree.get()
        {
            stand_in(tree, slot, StorageTier::Device, event)?;
        }
        result
    }

    fn apply_lower(
        &mut self,
        slot: Slot,
        tier: StorageTier,
        event: &KvCacheEventData,
    ) -> Result<(), ApplyError> {
        match event {
            KvCacheEventData::Stored { parent_hash, blocks } => {
                self.store_lower(slot, tier, *parent_hash, blocks)
            }
            KvCacheEventData::Removed { block_hashes } => self.remove_lower(slot, tier, block_hashes),
            KvCacheEventData::Cleared => {
                let names = self.slots.get(&slot.index()).into_iter().flat_map(|names| &names.by_alias);
                let of_tier = names.filter(|(_, (other, _))| *other == tier);
                let block_hashes: Vec<_> = of_tier.map(|(_, (_, name))| ExternalBlockHash(*name)).collect();
                self.remove_lower(slot, tier, &block_hashes)
            }
        }
    }

    fn store_lower(
        &mut self,
        slot: Slot,
        tier: StorageTier,
        parent: Option<ExternalBlockHash>,
        blocks: &[StoredBlock],
    ) -> Result<(), ApplyError> {
        let mut before = parent;
        for block in blocks {
            if before.replace(block.block_hash) == Some(block.block_hash) {
                return Err(ApplyError::InvalidBlock);
            }
        }
        if blocks.is_empty() {
            return Ok(());
        }
        if slot.index() >= MAX_TIERED_SLOTS {
            return Err(ApplyError::Full);
        }
        let tree = self.lower.tree.get_or_init(ConcurrentRadixTree::new);
        if !self.slots.contains_key(&slot.index()) {
            // The device's blocks come first: they are in the stand-ins too.
            for event in self.device.dump(slot) {
                stand_in(tree, slot, StorageTier::Device, &event)?;
            }
            self.slots.insert(slot.index(), LowerNames { slot, by_alias: FxHashMap::default() });
            self.lower.slots.fetch_add(1, Ordering::Release);
        }
        let Some(names) = self.slots.get_mut(&slot.index()) else { return Err(ApplyError::Full) };
        let aliased: Vec<_> = blocks
            .iter()
            .map(|block| StoredBlock {
                block_hash: ExternalBlockHash(alias(tier, block.block_hash.0)),
                tokens_hash: block.tokens_hash,
            })
            .collect();
        let result = match parent {
            None => store(tree, slot, tier, None, &aliased),
            Some(parent) => {
                let same_tier = names.by_alias.contains_key(&alias(tier, parent.0)).then_some(tier);
                let others = LOWER_TIERS.iter().copied();
                let others = others.filter(|&other| names.by_alias.contains_key(&alias(other, parent.0)));
                let tiers = same_tier.into_iter().chain([StorageTier::Device]).chain(others);
                let mut result = Err(ApplyError::ParentBlockNotFound);
                for of in tiers {
                    result = store(tree, slot, tier, Some(alias(of, parent.0)), &aliased);
                    if result != Err(ApplyError::ParentBlockNotFound) {
                        break;
                    }
                }
                result
            }
        };
        // Of an event that found no room some blocks may be there, and are to be removed some day.
        if matches!(result, Ok(()) | Err(ApplyError::Full)) {
            let known = blocks.iter().map(|block| block.block_hash.0);
            names.by_alias.extend(known.map(|name| (alias(tier, name), (tier, name))));
        } else if names.by_alias.is_empty() {
            self.drop_stand_ins(slot.index());
        }
        result
    }

    fn remove_lower(
        &mut self,
        slot: Slot,
        tier: StorageTier,
        hashes: &[ExternalBlockHash],
    ) -> Result<(), ApplyError> {
        let missing = if hashes.is_empty() { Ok(()) } else { Err(ApplyError::BlockNotFound) };
        let Some(names) = self.slots.get_mut(&slot.index()) else { return missing };
        let Some(tree) = self.lower.tree.get() else { return missing };
        let mut block_hashes = Vec::with_capacity(hashes.len());
        for hash in hashes {
            let alias = alias(tier, hash.0);
            if names.by_alias.remove(&alias).is_some() {
                block_hashes.push(ExternalBlockHash(alias));
            }
        }
        let result = if block_hashes.len() == hashes.len() { Ok(()) } else { missing };
        stand_in(tree, slot, tier, &KvCacheEventData::Removed { block_hashes })?;
        if names.by_alias.is_empty() {
            self.drop_stand_ins(slot.index());
        } else if names.by_alias.len() * 8 < names.by_alias.capacity() {
            names.by_alias.shrink_to(names.by_alias.len() * 2);
        }
        result
    }

    /// A slot has nothing on lower tiers.
    fn drop_stand_ins(&mut self, index: usize) {
        let Some(LowerNames { slot, by_alias }) = self.slots.remove(&index) else { return };
        // First, so that nobody asks for what is half gone.
        self.lower.slots.fetch_sub(1, Ordering::Release);
        if let Some(tree) = self.lower.tree.get() {
            tree.clear(host_slot(slot));
            tree.clear(any_slot(slot));
            let external = by_alias.iter().filter(|(_, (tier, _))| *tier == StorageTier::External);
            shared_storage::remove(tree, slot, external.map(|(&alias, _)| alias));
        }
    }
}

impl Drop for TieredWriter {
    fn drop(&mut self) {
        for index in self.slots.keys().copied().collect::<Vec<_>>() {
            self.drop_stand_ins(index);
        }
    }
}

/// Applies an event to a slot's stand-ins: to that for anywhere, and to that for the host and to that for external storage
/// if it concerns them.
fn stand_in(
    tree: &ConcurrentRadixTree,
    slot: Slot,
    tier: StorageTier,
    event: &KvCacheEventData,
) -> Result<(), ApplyError> {
    match event {
        KvCacheEventData::Stored { parent_hash, blocks } => {
            return store(tree, slot, tier, parent_hash.map(|parent| parent.0), blocks);
        }
        KvCacheEventData::Removed { block_hashes } if tier == StorageTier::External => {
            shared_storage::remove(tree, slot, block_hashes.iter().map(|hash| hash.0));
        }
        _ => {}
    }
    // What was not there before is nothing to take away.
    for slot in is_on_host(tier).then_some(host_slot(slot)).into_iter().chain([any_slot(slot)]) {
        match tree.apply(slot, event) {
            Ok(()) | Err(ApplyError::BlockNotFound) => {}
            error => return error,
        }
    }
    Ok(())
}

/// The places are those of the stand-in for anywhere, which has the parent if any tier does; it comes last, for the
/// event may give the parent's name to another block.
fn store(
    tree: &ConcurrentRadixTree,
    slot: Slot,
    tier: StorageTier,
    parent: Option<u64>,
    blocks: &[StoredBlock],
) -> Result<(), ApplyError> {
    let any = any_slot(slot);
    if is_on_host(tier) {
        tree.store_below(host_slot(slot), any, parent, blocks)?;
    } else if tier == StorageTier::External {
        shared_storage::store(tree, slot, parent, blocks)?;
    }
    tree.store_below(any, any, parent, blocks)
}

#[cfg(test)]
mod tests;
