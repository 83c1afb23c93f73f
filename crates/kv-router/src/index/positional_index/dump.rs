//! A slot's blocks as events.

use dynamo_engine_api::{ExternalBlockHash, KvCacheEventData, StoredBlock};
use dynamo_tokens::LocalBlockHash;
use rustc_hash::FxHashSet;

use super::{Shared, slot_records::SlotRecords};
use crate::{Slot, index::dump::Dump};

impl Shared {
    /// Parents come before children. Holes are stored under their names, and removed at the end. The slot's events wait
    /// meanwhile; others do not.
    pub(super) fn dump(&self, slot: Slot) -> Vec<KvCacheEventData> {
        let Some((counters, records)) = self.slots.peek(slot.index()) else { return Vec::new() };
        let records = records.lock();
        if counters.slot() != slot {
            return Vec::new();
        }
        let mut dump = Dump::new();
        let mut seen = FxHashSet::default();
        let mut holes = Vec::new();
        let mut path = Vec::new();
        for held in records.names() {
            let mut name = held;
            while seen.insert(name) {
                let Some((local, parent)) = self.local_and_parent(&records, name) else { break };
                path.push((name, local, parent));
                if name == local {
                    break;
                }
                name = parent;
            }
            while let Some((name, local, parent)) = path.pop() {
                let block =
                    StoredBlock { block_hash: ExternalBlockHash(name), tokens_hash: LocalBlockHash(local) };
                let parent = (name != local).then_some(parent);
                dump.push(Some(name), parent, parent, block);
                if records.hole(name).is_some() {
                    holes.push(name);
                }
            }
        }
        dump.end(holes.into_iter())
    }

    fn local_and_parent(&self, records: &SlotRecords, name: u64) -> Option<(u64, u64)> {
        if let Some(hole) = records.hole(name) {
            return Some((hole.local, hole.parent));
        }
        let (hash, shard) = self.shard(name);
        let shard = shard.read();
        shard.find(hash, |entry| entry.name == name).map(|entry| (entry.local, entry.parent))
    }
}
