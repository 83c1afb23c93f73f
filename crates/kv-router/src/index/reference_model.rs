//! What an exact index answers, said as plainly as possible. All indexes are held to it.

use std::collections::BTreeMap;

use dynamo_engine_api::{ExternalBlockHash, KvCacheEventData, StoredBlock};
use dynamo_tokens::{LocalBlockHash, SequenceHash};
use proptest::prelude::*;

use super::{ApplyError, MatchBuffer, PrefixIndex};
use crate::Slot;

/// Per slot: what a name stands for.
#[derive(Clone, Debug, Default)]
pub(super) struct Model {
    names: BTreeMap<Slot, BTreeMap<u64, Vec<u64>>>,
}

impl Model {
    pub(super) fn apply(&mut self, slot: Slot, event: &KvCacheEventData) -> Result<(), ApplyError> {
        let names = self.names.entry(slot).or_default();
        match event {
            KvCacheEventData::Stored { parent_hash, blocks } => {
                let mut before = parent_hash.map(|hash| hash.0);
                for block in blocks {
                    if before == Some(block.block_hash.0) {
                        return Err(ApplyError::InvalidBlock);
                    }
                    before = Some(block.block_hash.0);
                }
                let mut path = match parent_hash {
                    Some(parent) => names.get(&parent.0).ok_or(ApplyError::ParentBlockNotFound)?.clone(),
                    None => Vec::new(),
                };
                for block in blocks {
                    path.push(block.tokens_hash.0);
                    names.insert(block.block_hash.0, path.clone());
                }
                Ok(())
            }
            KvCacheEventData::Removed { block_hashes } => {
                let mut result = Ok(());
                for hash in block_hashes {
                    if names.remove(&hash.0).is_none() {
                        result = Err(ApplyError::BlockNotFound);
                    }
                }
                result
            }
            KvCacheEventData::Cleared => {
                names.clear();
                Ok(())
            }
        }
    }

    pub(super) fn find(&self, query: &[u64]) -> Vec<(Slot, u32)> {
        let run = |names: &BTreeMap<u64, Vec<u64>>| {
            (1..=query.len()).take_while(|&len| names.values().any(|path| path == &query[..len])).count()
        };
        self.names
            .iter()
            .map(|(&slot, names)| (slot, run(names) as u32))
            .filter(|found| found.1 > 0)
            .collect()
    }

    /// What a slot holds.
    pub(super) fn places(&self, slot: Slot) -> std::collections::BTreeSet<&Vec<u64>> {
        self.names.get(&slot).into_iter().flat_map(|names| names.values()).collect()
    }

    fn held(&self, slot: Slot) -> u32 {
        self.places(slot).len() as u32
    }
}

#[derive(Clone, Debug)]
pub(super) enum Step {
    Event { slot: u32, event: KvCacheEventData },
    Replace { slot: u32, generation: u32 },
}

/// How the blocks of a history are named.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Names {
    /// Names are few, so that slots reuse, move and share them; half of the stores use names that follow from content,
    /// as engines do.
    Any,
    /// Names are chained hashes.
    Chained,
}

pub(super) fn steps(names: Names, len: usize) -> impl Strategy<Value = Vec<Step>> {
    let chained: fn(&[u64]) -> u64 = if names == Names::Any { small_chained } else { chained_hash };
    let of_any_name = u32::from(names == Names::Any);
    let slot = || 0..3u32;
    let store =
        (slot(), prop::option::weighted(0.7, 0..24u64), prop::collection::vec((0..24u64, 0..3u64), 1..5));
    let chain = (slot(), prop::collection::vec(0..3u64, 1..7), 0..6usize);
    let remove = (slot(), prop::collection::vec(0..24u64, 1..4));
    let remove_chained = (slot(), prop::collection::vec(0..3u64, 1..5));
    let event = |slot, event| Step::Event { slot, event };
    let step = prop_oneof![
        4 * of_any_name => store.prop_map(move |(slot, parent, blocks)| {
            let blocks = blocks.into_iter().map(|(name, local)| block(name, local)).collect();
            event(slot, KvCacheEventData::Stored { parent_hash: parent.map(ExternalBlockHash), blocks })
        }),
        6 => chain.prop_map(move |(slot, locals, skip)| {
            let skip = skip.min(locals.len() - 1);
            let parent_hash = (skip > 0).then(|| ExternalBlockHash(chained(&locals[..skip])));
            let blocks = (skip..locals.len()).map(|i| block(chained(&locals[..=i]), locals[i])).collect();
            event(slot, KvCacheEventData::Stored { parent_hash, blocks })
        }),
        2 * of_any_name => remove.prop_map(move |(slot, names)| {
            let block_hashes = names.into_iter().map(ExternalBlockHash).collect();
            event(slot, KvCacheEventData::Removed { block_hashes })
        }),
        3 => remove_chained.prop_map(move |(slot, locals)| {
            let block_hashes = vec![ExternalBlockHash(chained(&locals))];
            event(slot, KvCacheEventData::Removed { block_hashes })
        }),
        1 => slot().prop_map(move |slot| event(slot, KvCacheEventData::Cleared)),
        1 => (slot(), 0..3u32).prop_map(|(slot, generation)| Step::Replace { slot, generation }),
    ];
    prop::collection::vec(step, len / 2..len)
}

fn block(name: u64, local: u64) -> StoredBlock {
    StoredBlock { block_hash: ExternalBlockHash(name), tokens_hash: LocalBlockHash(local) }
}

fn small_chained(locals: &[u64]) -> u64 {
    locals.iter().fold(1000, |hash, local| hash * 7 + local)
}

fn chained_hash(locals: &[u64]) -> u64 {
    let chain = |before, &local| Some(SequenceHash::chain(before, LocalBlockHash(local)));
    locals.iter().fold(None, chain).map_or(0, |name: SequenceHash| name.0)
}

pub(super) fn queries() -> Vec<Vec<u64>> {
    let mut all = vec![Vec::new()];
    let mut from = 0;
    for _ in 0..5 {
        let to = all.len();
        for i in from..to {
            for local in 0..3 {
                let mut query = all[i].clone();
                query.push(local);
                all.push(query);
            }
        }
        from = to;
    }
    all
}

pub(super) fn answers(index: &impl PrefixIndex, query: &[u64], out: &mut MatchBuffer) -> Vec<(Slot, u32)> {
    let query: Vec<_> = query.iter().map(|&local| LocalBlockHash(local)).collect();
    index.find_matches(&query, out);
    index.note_held_blocks(out);
    let mut found: Vec<_> = out.matches().iter().map(|found| (found.slot, found.device_blocks)).collect();
    found.sort();
    found
}

/// Runs random histories; `check` may look into the index after every step.
pub(super) fn assert_equal_to_model<I: PrefixIndex>(make: fn() -> I, check: fn(&I)) {
    assert_equal_with_names(Names::Any, make, check);
}

pub(super) fn assert_equal_with_names<I: PrefixIndex>(names: Names, make: fn() -> I, check: fn(&I)) {
    let queries = queries();
    proptest!(ProptestConfig::default(), |(steps in steps(names, 80))| {
        let (mut index, mut model) = (make(), Model::default());
        let mut slots = [0, 1, 2].map(|index| Slot::new(index, 0));
        let mut out = MatchBuffer::default();
        for step in &steps {
            match step {
                Step::Event { slot, event } => {
                    let slot = slots[*slot as usize];
                    prop_assert_eq!(index.apply(slot, event), model.apply(slot, event));
                }
                Step::Replace { slot, generation } => {
                    let current = &mut slots[*slot as usize];
                    index.clear(*current);
                    model.names.remove(current);
                    *current = Slot::new(*slot, *generation);
                }
            }
            check(&index);
            for query in [&[0, 1, 2][..], &[0, 0, 0, 0], &[1, 0, 1]] {
                prop_assert_eq!(answers(&index, query, &mut out), model.find(query));
            }
        }
        let mut copy = make();
        for slot in slots {
            prop_assert_eq!(index.held_blocks(slot), model.held(slot));
            for event in index.dump(slot) {
                prop_assert_eq!(copy.apply(slot, &event), Ok(()));
            }
        }
        check(&copy);
        for query in &queries {
            let expected = model.find(query);
            prop_assert_eq!(answers(&index, query, &mut out), expected.clone());
            prop_assert_eq!(answers(&copy, query, &mut out), expected);
            for slot in slots {
                prop_assert_eq!(out.held_blocks(slot), model.held(slot));
            }
        }
        // Names came over too: emptying the copy by the model's names leaves nothing.
        for slot in slots {
            let names = model.names.get(&slot).into_iter().flat_map(|names| names.keys());
            let block_hashes = names.map(|&name| ExternalBlockHash(name)).collect();
            prop_assert_eq!(copy.apply(slot, &KvCacheEventData::Removed { block_hashes }), Ok(()));
            index.clear(slot);
        }
        for emptied in [&index, &copy] {
            prop_assert_eq!(emptied.counts().blocks, 0);
            prop_assert_eq!(emptied.counts().nodes, 0);
            check(emptied);
        }
    });
}
