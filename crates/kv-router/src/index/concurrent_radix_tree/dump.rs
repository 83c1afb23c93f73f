//! A slot's blocks as events.

use dynamo_engine_api::{ExternalBlockHash, KvCacheEventData, StoredBlock};
use dynamo_tokens::LocalBlockHash;
use rustc_hash::{FxHashMap, FxHashSet};
use smallvec::SmallVec;

use super::{NodeId, ROOT, Shared, mix, place_of};
use crate::{Slot, index::dump::Dump};

impl Shared {
    /// Parents come before children. Where a block is held below one that is not, the missing one is stored under a
    /// made-up name, and removed at the end. The slot's events wait meanwhile; others do not.
    pub(super) fn dump(&self, slot: Slot) -> Vec<KvCacheEventData> {
        let Some((counters, names)) = self.slots.peek(slot.index()) else { return Vec::new() };
        let names = names.lock();
        if counters.slot() != slot {
            return Vec::new();
        }
        let mut held: FxHashMap<NodeId, SmallVec<[u64; 1]>> = FxHashMap::default();
        for (name, id) in names.iter() {
            held.entry(id).or_default().push(name);
        }
        let mut ids: Vec<_> = held.keys().copied().collect();
        ids.sort_unstable();
        let mut dump = Dump::new();
        let mut seen = FxHashSet::default();
        let mut fillers: FxHashMap<NodeId, u64> = FxHashMap::default();
        let mut filler_names = FxHashSet::default();
        let mut path = Vec::new();
        for mut id in ids {
            // What is held, and what leads to it, stays.
            while id != ROOT && seen.insert(id) {
                let (parent, local) = self.parent_and_local(id);
                path.push((id, parent, local));
                id = parent;
            }
            while let Some((id, parent, local)) = path.pop() {
                // The last name of a block is the one that children give as their parent's.
                let last_name =
                    |id| held.get(&id).and_then(|names| names.last()).or_else(|| fillers.get(&id)).copied();
                let parent_name = if parent == ROOT { None } else { last_name(parent) };
                let block = |name| StoredBlock {
                    block_hash: ExternalBlockHash(name),
                    tokens_hash: LocalBlockHash(local),
                };
                match held.get(&id).and_then(|names| names.split_last()) {
                    Some((&main, others)) => {
                        for &other in others {
                            dump.push_alone(parent_name, block(other));
                        }
                        dump.push(id, parent, parent_name, block(main));
                    }
                    None => {
                        let mut name = mix(u64::from(id));
                        while names.get(name).is_some() || !filler_names.insert(name) {
                            name = mix(name.wrapping_add(1));
                        }
                        fillers.insert(id, name);
                        dump.push(id, parent, parent_name, block(name));
                    }
                }
            }
        }
        dump.end(fillers.into_values())
    }

    /// Of a node that cannot go.
    fn parent_and_local(&self, id: NodeId) -> (NodeId, u64) {
        let cell = self.nodes.read(id);
        let at = place_of(id);
        cell.chunk().map_or((ROOT, 0), |chunk| (chunk.parent[at], chunk.local[at]))
    }
}
