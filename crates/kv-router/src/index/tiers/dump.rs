//! A slot's blocks as events, tier by tier.

use dynamo_engine_api::{ExternalBlockHash, KvCacheEventData, StorageTier, StoredBlock};
use rustc_hash::{FxHashMap, FxHashSet};

use super::{LowerNames, TieredWriter, alias, any_slot};
use crate::{Slot, index::PrefixIndex};

impl TieredWriter {
    /// Events that, applied in order to an empty slot, give what `slot` has: the device's first, for blocks on lower
    /// tiers may have their parents there.
    pub fn dump(&self, slot: Slot) -> Vec<(StorageTier, KvCacheEventData)> {
        let device = self.device.dump(slot).into_iter().map(|event| (StorageTier::Device, event));
        let mut events: Vec<_> = device.collect();
        let names = self.slots.get(&slot.index()).filter(|names| names.slot == slot);
        if let (Some(names), Some(tree)) = (names, self.lower.tree.get()) {
            dump_lower(names, tree.dump(any_slot(slot)), &mut events);
        }
        events
    }
}

/// Translates the events of a stand-in: aliases become names of their tiers, the device's blocks stay out, and what
/// only leads to others is on the host until the end.
fn dump_lower(
    names: &LowerNames,
    dumped: Vec<KvCacheEventData>,
    events: &mut Vec<(StorageTier, KvCacheEventData)>,
) {
    let mut fillers = FxHashSet::default();
    if let Some(KvCacheEventData::Removed { block_hashes }) = dumped.last() {
        fillers.extend(block_hashes.iter().map(|hash| hash.0));
    }
    let mut renamed: FxHashMap<u64, u64> = FxHashMap::default();
    let mut filler_names = Vec::with_capacity(fillers.len());
    for event in dumped {
        let KvCacheEventData::Stored { parent_hash, blocks } = event else { continue };
        let mut parent = parent_hash.map(|hash| renamed.get(&hash.0).copied().unwrap_or(hash.0));
        // The name of the block before, if it went into the last event.
        let mut last = None;
        for block in blocks {
            let alias = block.block_hash.0;
            let (tier, name) = match names.by_alias.get(&alias) {
                Some(&(tier, name)) => (tier, name),
                None if fillers.contains(&alias) => {
                    let name = unused_name(names, alias);
                    filler_names.push(ExternalBlockHash(name));
                    (StorageTier::HostPinned, name)
                }
                None => (StorageTier::Device, alias),
            };
            renamed.insert(alias, name);
            if tier != StorageTier::Device {
                let block = StoredBlock { block_hash: ExternalBlockHash(name), ..block };
                match events.last_mut() {
                    Some((on, KvCacheEventData::Stored { blocks, .. }))
                        if *on == tier && last.is_some() && last == parent =>
                    {
                        blocks.push(block);
                    }
                    _ => {
                        let parent_hash = parent.map(ExternalBlockHash);
                        events.push((tier, KvCacheEventData::Stored { parent_hash, blocks: vec![block] }));
                    }
                }
                last = Some(name);
            } else {
                last = None;
            }
            parent = Some(name);
        }
    }
    if !filler_names.is_empty() {
        events.push((StorageTier::HostPinned, KvCacheEventData::Removed { block_hashes: filler_names }));
    }
}

/// A name that nothing has on the host, made of one that no alias is equal to.
fn unused_name(names: &LowerNames, filler: u64) -> u64 {
    let mut name = alias(StorageTier::External, filler);
    while names.by_alias.contains_key(&alias(StorageTier::HostPinned, name)) {
        name = alias(StorageTier::External, name);
    }
    name
}
