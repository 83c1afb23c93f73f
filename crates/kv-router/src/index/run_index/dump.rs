//! A slot's blocks as events.

use dynamo_engine_api::{ExternalBlockHash, KvCacheEventData, StoredBlock};
use dynamo_tokens::LocalBlockHash;
use rustc_hash::{FxHashMap, FxHashSet};

use super::{
    At, RunIndex,
    header::{ORIGIN, ROOT, RunId, halves},
    names::hash,
};
use crate::Slot;

/// Blocks in one event of a dump: large enough that the event's own cost vanishes, small enough to decode at once.
const BLOCKS_PER_EVENT: usize = 1024;

/// The events under construction.
#[derive(Default)]
struct Dump {
    events: Vec<KvCacheEventData>,
    /// The last block; the next one may join its event if it follows it.
    last: Option<At>,
}

impl Dump {
    fn push(&mut self, at: At, parent: Option<(At, u64)>, block: StoredBlock) {
        let joins = self.last.is_some() && self.last == parent.map(|(at, _)| at);
        if joins
            && let Some(KvCacheEventData::Stored { blocks, .. }) = self.events.last_mut()
            && blocks.len() < BLOCKS_PER_EVENT
        {
            blocks.push(block);
        } else {
            let parent_hash = parent.map(|(_, name)| ExternalBlockHash(name));
            self.events.push(KvCacheEventData::Stored { parent_hash, blocks: vec![block] });
        }
        self.last = Some(at);
    }
}

impl RunIndex {
    /// Parents come before children. Where a block is held below one that is not, the missing one is stored under a
    /// made-up name, and removed at the end.
    pub(super) fn dump_slot(&self, slot: Slot) -> Vec<KvCacheEventData> {
        let mut dump = Dump::default();
        let mut fillers: FxHashMap<u64, u64> = FxHashMap::default();
        let mut filler_names = FxHashSet::default();
        for (run, needed) in self.paths(slot) {
            let (parent, behind) =
                halves(self.shared.header(run)[ORIGIN].load(std::sync::atomic::Ordering::Relaxed));
            let mut before = (parent != ROOT).then(|| {
                let at = At { run: parent, offset: behind - 1 };
                (at, fillers.get(&at.key()).copied().unwrap_or_else(|| self.a_name(slot, at)))
            });
            let found = self.shared.run(run);
            for (offset, &local) in (0..needed).zip(self.shared.blocks(&found)) {
                let at = At { run, offset };
                let tokens_hash = LocalBlockHash(local);
                let block = |name| StoredBlock { block_hash: ExternalBlockHash(name), tokens_hash };
                let name = if self.holds(slot, at) {
                    // The name that children will give as their parent's comes last, so that they may join its event.
                    let main = self.a_name(slot, at);
                    let others = self.aliases.others(at.key(), slot.index() as u32);
                    for &other in others.iter().filter(|&&name| name != main) {
                        dump.last = None;
                        dump.push(at, before, block(other));
                        dump.last = None;
                    }
                    main
                } else {
                    let mut name = hash(at.key());
                    while self.named(slot, name).is_some() || !filler_names.insert(name) {
                        name = hash(name);
                    }
                    fillers.insert(at.key(), name);
                    name
                };
                dump.push(at, before, block(name));
                before = Some((at, name));
            }
        }
        if !fillers.is_empty() {
            let block_hashes = fillers.into_values().map(ExternalBlockHash).collect();
            dump.events.push(KvCacheEventData::Removed { block_hashes });
        }
        dump.events
    }

    /// The runs on the paths to what a slot holds, parents first, with how many of their blocks are on them.
    fn paths(&self, slot: Slot) -> Vec<(RunId, u32)> {
        let mut needed: FxHashMap<RunId, u32> = FxHashMap::default();
        for run in self.runs_of(slot) {
            let leading = self.holding(run, slot).blocks;
            let end = self.holes.get(run, slot).map_or(leading, |bits| bits.end());
            let (mut run, mut end) = (run, end);
            while run != ROOT {
                let known = needed.entry(run).or_insert(0);
                let is_new = *known == 0;
                *known = (*known).max(end);
                if !is_new {
                    break;
                }
                (run, end) =
                    halves(self.shared.header(run)[ORIGIN].load(std::sync::atomic::Ordering::Relaxed));
            }
        }
        // Parents first, siblings in any order: children wait on a stack until their parent was visited.
        let mut children: FxHashMap<RunId, Vec<RunId>> = FxHashMap::default();
        for &run in needed.keys() {
            let (parent, _) =
                halves(self.shared.header(run)[ORIGIN].load(std::sync::atomic::Ordering::Relaxed));
            children.entry(parent).or_default().push(run);
        }
        let mut visit = children.remove(&ROOT).unwrap_or_default();
        let mut paths = Vec::with_capacity(needed.len());
        while let Some(run) = visit.pop() {
            paths.push((run, needed[&run]));
            visit.extend(children.remove(&run).into_iter().flatten());
        }
        paths
    }

    /// A name by which a slot holds a block.
    fn a_name(&self, slot: Slot, at: At) -> u64 {
        let index = slot.index() as u32;
        if self.aliases.uses_own(at.key(), index) {
            return self.columns.name(self.place(at));
        }
        self.aliases.others(at.key(), index)[0]
    }
}
