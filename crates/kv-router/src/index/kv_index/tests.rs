use std::collections::BTreeMap;

use dynamo_engine_api::{ExternalBlockHash, StoredBlock};
use proptest::prelude::*;

use super::*;

fn stored(parent: Option<u64>, hashes: &[u64]) -> KvCacheEventData {
    KvCacheEventData::Stored {
        parent_hash: parent.map(ExternalBlockHash),
        blocks: hashes
            .iter()
            .map(|&hash| StoredBlock {
                block_hash: ExternalBlockHash(hash),
                tokens_hash: LocalBlockHash(hash),
            })
            .collect(),
    }
}

fn rank(worker_id: WorkerId, dp_rank: DpRank) -> WorkerRank {
    WorkerRank { worker_id, dp_rank }
}

fn found(index: &KvIndex, query: &[u64]) -> Vec<(WorkerRank, u32)> {
    let query: Vec<_> = query.iter().map(|&hash| LocalBlockHash(hash)).collect();
    let mut out = MatchBuffer::default();
    index.find_matches(&query, &mut out);
    let mut found: Vec<_> =
        out.matches().iter().map(|found| (index.owner(found.slot).unwrap(), found.device_blocks)).collect();
    found.sort();
    found
}

fn two_workers() -> KvIndex {
    let mut index = KvIndex::default();
    index.add_worker(1, 5, 0..2, Some(4)).unwrap();
    index.add_worker(2, 5, 0..1, None).unwrap();
    index
}

#[test]
fn a_higher_epoch_drops_all_ranks_and_a_lower_one_is_ignored() {
    let mut index = two_workers();
    index.apply(rank(1, 0), 5, &stored(None, &[1, 2])).unwrap();
    index.apply(rank(1, 1), 5, &stored(None, &[1])).unwrap();
    index.apply(rank(2, 0), 5, &stored(None, &[1])).unwrap();
    assert_eq!(found(&index, &[1, 2]), [(rank(1, 0), 2), (rank(1, 1), 1), (rank(2, 0), 1)]);
    index.apply(rank(1, 1), 6, &stored(None, &[1, 2, 3])).unwrap();
    assert_eq!(found(&index, &[1, 2]), [(rank(1, 1), 2), (rank(2, 0), 1)]);
    let stale = index.apply(rank(1, 1), 5, &KvCacheEventData::Cleared);
    assert_eq!(stale, Err(IndexError::StaleEpoch { offered: 5, known: 6 }));
    assert_eq!(found(&index, &[1])[0], (rank(1, 1), 1));
    index.add_worker(1, 7, 0..2, None).unwrap();
    assert_eq!(found(&index, &[1]), [(rank(2, 0), 1)]);
}

#[test]
fn cleared_concerns_one_rank_and_removal_all() {
    let mut index = two_workers();
    for worker in [rank(1, 0), rank(1, 1), rank(2, 0)] {
        index.apply(worker, 5, &stored(None, &[1])).unwrap();
    }
    index.apply(rank(1, 0), 5, &KvCacheEventData::Cleared).unwrap();
    assert_eq!(found(&index, &[1]), [(rank(1, 1), 1), (rank(2, 0), 1)]);
    index.remove_worker(1);
    assert_eq!(found(&index, &[1]), [(rank(2, 0), 1)]);
    let gone = index.apply(rank(1, 1), 5, &stored(None, &[1]));
    assert_eq!(gone, Err(IndexError::UnknownWorker { worker_id: 1, dp_rank: 1 }));
    // A newcomer takes the freed slots and finds them empty.
    index.add_worker(3, 1, 0..2, None).unwrap();
    assert_eq!(found(&index, &[1]), [(rank(2, 0), 1)]);
}

#[test]
fn more_blocks_than_the_card_says_are_reported_and_bounded() {
    let mut index = two_workers();
    index.apply(rank(1, 0), 5, &stored(None, &[1, 2, 3])).unwrap();
    let over = index.apply(rank(1, 0), 5, &stored(Some(3), &[4, 5]));
    assert_eq!(over, Err(IndexError::OverCapacity { held: 5, capacity: 4 }));
    let refused = index.apply(rank(1, 0), 5, &stored(Some(5), &[6]));
    assert_eq!(refused, Err(IndexError::OverCapacity { held: 5, capacity: 4 }));
    index.clear_rank(rank(1, 0));
    index.apply(rank(1, 0), 5, &stored(None, &[1, 2, 3, 4])).unwrap();
    assert_eq!(index.held_blocks(rank(1, 0)), 4);
}

#[test]
fn outcomes_are_counted_by_kind_and_status() {
    let mut index = two_workers();
    index.apply(rank(2, 0), 5, &stored(None, &[1, 2])).unwrap();
    index.apply(rank(2, 0), 5, &stored(Some(9), &[3])).unwrap_err();
    index.apply(rank(2, 0), 5, &stored(Some(1), &[1])).unwrap_err();
    let removed =
        KvCacheEventData::Removed { block_hashes: vec![ExternalBlockHash(9), ExternalBlockHash(2)] };
    assert_eq!(index.apply(rank(2, 0), 5, &removed), Err(IndexError::Apply(ApplyError::BlockNotFound)));
    assert_eq!(found(&index, &[1, 2]), [(rank(2, 0), 1)], "the known block went all the same");
    let counted: Vec<_> = index
        .counters()
        .iter()
        .filter(|(_, _, count)| *count > 0)
        .map(|(kind, status, count)| (kind.label(), status.label(), count))
        .collect();
    assert_eq!(
        counted,
        [
            ("stored", "ok", 1),
            ("stored", "parent_block_not_found", 1),
            ("stored", "invalid_block", 1),
            ("removed", "block_not_found", 1),
        ]
    );
}

#[test]
fn a_dump_rebuilds_the_index() {
    let mut index = two_workers();
    index.apply(rank(1, 1), 5, &stored(None, &[1, 2, 3])).unwrap();
    index.apply(rank(2, 0), 5, &stored(None, &[1, 4])).unwrap();
    let mut copy = two_workers();
    for event in index.dump() {
        let worker = rank(event.worker_id, event.event.dp_rank);
        copy.apply(worker, 5, &event.event.data).unwrap();
    }
    for query in [&[1, 2, 3][..], &[1, 4]] {
        assert_eq!(found(&copy, query), found(&index, query));
    }
}

#[derive(Clone, Debug)]
enum Step {
    Add { epoch: u64, ranks: u32 },
    Remove,
    Store { epoch: u64, dp_rank: u32, blocks: u64 },
    Clear { epoch: u64, dp_rank: u32 },
}

fn steps() -> impl Strategy<Value = Vec<(WorkerId, Step)>> {
    let step = prop_oneof![
        2 => (1..4u64, 1..3u32).prop_map(|(epoch, ranks)| Step::Add { epoch, ranks }),
        1 => Just(Step::Remove),
        6 => (1..4u64, 0..3u32, 1..6u64)
            .prop_map(|(epoch, dp_rank, blocks)| Step::Store { epoch, dp_rank, blocks }),
        1 => (1..4u64, 0..3u32).prop_map(|(epoch, dp_rank)| Step::Clear { epoch, dp_rank }),
    ];
    prop::collection::vec((0..3u64, step), 1..60)
}

/// Per worker: its epoch, and the run of each rank.
type Incarnations = BTreeMap<WorkerId, (u64, Vec<u32>)>;

fn model_event(model: &mut Incarnations, worker: WorkerRank, epoch: u64, change: impl Fn(&mut u32)) -> bool {
    let Some((known, runs)) = model.get_mut(&worker.worker_id) else { return false };
    let rank = worker.dp_rank as usize;
    if epoch < *known || rank >= runs.len() {
        return false;
    }
    if epoch > *known {
        *known = epoch;
        runs.fill(0);
    }
    change(&mut runs[rank]);
    true
}

proptest! {
    #[test]
    fn incarnations_come_and_go_as_in_the_model(steps in steps()) {
        let (mut index, mut model) = (KvIndex::<RadixTree>::default(), Incarnations::new());
        for (worker_id, step) in steps {
            match step {
                Step::Add { epoch, ranks } => {
                    let known = model.get(&worker_id).map_or(0, |known| known.0);
                    let added = index.add_worker(worker_id, epoch, 0..ranks, None);
                    prop_assert_eq!(added.is_ok(), epoch >= known);
                    if epoch >= known {
                        let entry = model.entry(worker_id).or_default();
                        if epoch > known {
                            entry.1.clear();
                        }
                        entry.0 = epoch;
                        entry.1.resize(ranks as usize, 0);
                    }
                }
                Step::Remove => {
                    index.remove_worker(worker_id);
                    model.remove(&worker_id);
                }
                Step::Store { epoch, dp_rank, blocks } => {
                    let worker = rank(worker_id, dp_rank);
                    let hashes: Vec<_> = (1..=blocks).collect();
                    let applied = index.apply(worker, epoch, &stored(None, &hashes)).is_ok();
                    let grow = |run: &mut u32| *run = (*run).max(blocks as u32);
                    prop_assert_eq!(applied, model_event(&mut model, worker, epoch, grow));
                }
                Step::Clear { epoch, dp_rank } => {
                    let worker = rank(worker_id, dp_rank);
                    let applied = index.apply(worker, epoch, &KvCacheEventData::Cleared).is_ok();
                    prop_assert_eq!(applied, model_event(&mut model, worker, epoch, |run| *run = 0));
                }
            }
            let expected: Vec<_> = model
                .iter()
                .flat_map(|(&id, (_, runs))| (0..).zip(runs).map(move |(dp_rank, &run)| (rank(id, dp_rank), run)))
                .filter(|(_, run)| *run > 0)
                .collect();
            prop_assert_eq!(found(&index, &[1, 2, 3, 4, 5]), expected);
        }
    }
}
