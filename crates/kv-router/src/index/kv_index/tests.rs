use dynamo_engine_api::{ExternalBlockHash, StoredBlock};

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
