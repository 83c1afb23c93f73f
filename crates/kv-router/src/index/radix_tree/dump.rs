//! A slot's blocks as events.

use dynamo_engine_api::{ExternalBlockHash, KvCacheEventData, StoredBlock};
use dynamo_tokens::LocalBlockHash;
use rustc_hash::{FxHashMap, FxHashSet};

use super::{NodeId, ROOT, RadixTree, SetId, mix};
use crate::index::dump::Dump;

impl RadixTree {
    /// Parents come before children. Where a block is held below one that is not, the missing one is stored under a
    /// made-up name, and removed at the end.
    pub(super) fn dump_index(&self, slot: u32) -> Vec<KvCacheEventData> {
        let mut dump = Dump::new();
        let mut seen = FxHashSet::default();
        let mut fillers: FxHashMap<NodeId, u64> = FxHashMap::default();
        let mut filler_names = FxHashSet::default();
        let mut path = Vec::new();
        let mut from = 0;
        let holds: Vec<bool> =
            (0..self.sets.limit() as SetId).map(|set| self.sets.contains(set, slot)).collect();
        while let Some(live) = self.nodes.next_with(from, |set| holds[set as usize]) {
            from = live as usize + 1;
            let mut id = live;
            while id != ROOT && seen.insert(id) {
                path.push(id);
                id = self.nodes.parent(id);
            }
            while let Some(id) = path.pop() {
                let parent = self.nodes.parent(id);
                let parent_name = (parent != ROOT).then(|| match fillers.get(&parent) {
                    Some(&name) => name,
                    None => self.a_name(slot, parent),
                });
                let tokens_hash = LocalBlockHash(self.nodes.local(id));
                let block = |name| StoredBlock { block_hash: ExternalBlockHash(name), tokens_hash };
                if holds[self.nodes.set(id) as usize] {
                    // The name that children will give as their parent's comes last, so that they may join its event.
                    let main = self.a_name(slot, id);
                    let others = self.aliases.others(id, slot).iter().filter(|&&name| name != main);
                    for &other in others {
                        dump.push_alone(parent_name, block(other));
                    }
                    dump.push(id, parent, parent_name, block(main));
                } else {
                    let mut name = mix(u64::from(id));
                    while self.named(slot, name).is_some() || !filler_names.insert(name) {
                        name = mix(name.wrapping_add(1));
                    }
                    fillers.insert(id, name);
                    dump.push(id, parent, parent_name, block(name));
                }
            }
        }
        dump.end(fillers.into_values())
    }

    /// A name by which a slot holds a node.
    fn a_name(&self, slot: u32, id: NodeId) -> u64 {
        if self.aliases.uses_own(id, slot) {
            return self.nodes.ext(id);
        }
        self.aliases.others(id, slot)[0]
    }
}
