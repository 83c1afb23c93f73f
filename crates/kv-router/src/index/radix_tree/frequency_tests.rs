//! Uses of blocks, beside a model with a queue of them for each block.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use proptest::prelude::*;

use super::*;
use crate::index::reference_model::{Model, Names, Step, queries, steps};

const EIGHTH: Duration = Duration::from_secs(1);

fn counting(start: Instant) -> RadixTree {
    RadixTree::with_frequencies(FrequencyWindow::new(8 * EIGHTH).unwrap(), start)
}

fn local(path: &[u64]) -> Vec<LocalBlockHash> {
    path.iter().map(|&local| LocalBlockHash(local)).collect()
}

fn stored(parent: Option<u64>, names: std::ops::Range<u64>) -> KvCacheEventData {
    let block = |name| StoredBlock { block_hash: ExternalBlockHash(name), tokens_hash: LocalBlockHash(name) };
    KvCacheEventData::Stored {
        parent_hash: parent.map(ExternalBlockHash),
        blocks: names.map(block).collect(),
    }
}

/// By place: in which eighth each use was.
#[derive(Default)]
struct Uses(BTreeMap<Vec<u64>, VecDeque<u64>>);

impl Uses {
    fn query(&mut self, model: &Model, query: &[u64], eighth: u64) -> Vec<u32> {
        let longest = model.find(query).iter().map(|&(_, blocks)| blocks as usize).max().unwrap_or(0);
        let mut found = Vec::new();
        for blocks in 1..=longest {
            let uses = self.0.entry(query[..blocks].to_vec()).or_default();
            while uses.front().is_some_and(|used| used + 8 <= eighth) {
                uses.pop_front();
            }
            found.push(uses.len() as u32);
            uses.push_back(eighth);
        }
        found.retain(|&count| count > 0);
        found
    }

    /// Forgets places that nobody holds and that lead to none.
    fn prune(&mut self, model: &Model) {
        let held: Vec<_> = (0..3).flat_map(|slot| model.places(Slot::new(slot, 0))).collect();
        self.0.retain(|place, _| held.iter().any(|held| held.starts_with(place)));
    }
}

/// Lets the model forget after each block, as the tree does.
fn apply_to_model(model: &mut Model, uses: &mut Uses, slot: Slot, event: &KvCacheEventData) {
    let KvCacheEventData::Stored { parent_hash, blocks } = event else {
        // What the event does not find was not there in the tree either.
        let _ = model.apply(slot, event);
        return uses.prune(model);
    };
    let mut parent_hash = *parent_hash;
    for block in blocks {
        let event = KvCacheEventData::Stored { parent_hash, blocks: vec![*block] };
        model.apply(slot, &event).unwrap();
        uses.prune(model);
        parent_hash = Some(block.block_hash);
    }
}

proptest! {
    #[test]
    fn frequencies_equal_queues_of_uses(
        steps in steps(Names::Any, 80),
        asked in prop::collection::vec((0..364usize, 0..6u64), 80),
    ) {
        let start = Instant::now();
        let (mut tree, mut model, mut uses) = (counting(start), Model::default(), Uses::default());
        let (mut out, mut plain) = (MatchBuffer::default(), MatchBuffer::default());
        let (queries, mut eighth) = (queries(), 0);
        for (step, (query, later)) in steps.iter().zip(asked) {
            let Step::Event { slot, event } = step else { continue };
            let slot = Slot::new(*slot, 0);
            if matches!(tree.apply(slot, event), Ok(()) | Err(ApplyError::BlockNotFound)) {
                apply_to_model(&mut model, &mut uses, slot, event);
            }
            eighth += later / 2;
            let now = start + EIGHTH * eighth as u32 + EIGHTH / 2;
            for query in [&queries[query][..], &[0, 1, 2], &[0, 0, 0, 0]] {
                tree.find_matches_at(&local(query), now, &mut out);
                prop_assert_eq!(out.frequencies(), uses.query(&model, query, eighth));
                tree.find_matches(&local(query), &mut plain);
                prop_assert_eq!(out.matches(), plain.matches());
                prop_assert!(plain.frequencies().is_empty(), "a query without a time is no use");
            }
        }
    }
}

#[test]
fn counters_take_20_bytes_a_node_and_go_with_it() {
    let start = Instant::now();
    let (mut counts, mut plain) = (counting(start), RadixTree::new());
    let empty = counts.counts().bytes;
    for tree in [&mut counts, &mut plain] {
        tree.apply(Slot::new(0, 0), &stored(None, 0..100 * 2048)).unwrap();
    }
    let more = counts.counts().bytes - plain.counts().bytes;
    assert!((20 * 100 * 2048..20 * 101 * 2048 + 100 * 64).contains(&more), "{more} bytes more");
    let query: Vec<_> = (0..100 * 2048).map(LocalBlockHash).collect();
    let mut out = MatchBuffer::default();
    for before in 0..3 {
        counts.find_matches_at(&query, start, &mut out);
        assert_eq!(out.frequencies(), vec![before; if before > 0 { query.len() } else { 0 }]);
    }
    counts.clear(Slot::new(0, 0));
    assert_eq!(counts.counts().nodes, 0);
    assert!(counts.counts().bytes < empty + 64 * 1024);
    counts.apply(Slot::new(0, 0), &stored(None, 0..10)).unwrap();
    counts.find_matches_at(&query, start, &mut out);
    assert!(out.frequencies().is_empty(), "uses went with the blocks");
    counts.find_matches_at(&query, start, &mut out);
    assert_eq!(out.frequencies(), [1; 10], "an emptied tree counts again");
}

#[test]
fn all_uses_of_threads_that_ask_at_once_count() {
    use crate::{LockedRadixTree, SharedIndex};
    const ASKED: u32 = 500;
    let start = Instant::now();
    let mut tree = LockedRadixTree::with_frequencies(FrequencyWindow::new(8 * EIGHTH).unwrap(), start);
    tree.apply(Slot::new(0, 0), &stored(None, 0..20)).unwrap();
    let query: Vec<_> = (0..20).map(LocalBlockHash).collect();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut out = MatchBuffer::default();
                for _ in 0..ASKED {
                    tree.find_matches_at(&query, start, &mut out);
                }
            });
        }
    });
    let mut out = MatchBuffer::default();
    tree.find_matches_at(&query, start, &mut out);
    assert_eq!(out.frequencies(), [4 * ASKED; 20]);
}
