use std::{
    num::NonZeroUsize,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use dynamo_engine_api::StorageTier;
use dynamo_tokens::LocalBlockHash;
use rand::{Rng, SeedableRng, rngs::SmallRng};

use super::*;
use crate::index::{
    IndexCounts, IndexerKind, MatchBuffer, jolt,
    tiers::{TieredIndex, TieredWriter, with_tiers},
};

const DEVICE: StorageTier = StorageTier::Device;
const EXTERNAL: StorageTier = StorageTier::External;

fn build(lanes: usize) -> (TieredIndex, Vec<TieredWriter>) {
    with_tiers(IndexerKind::ConcurrentRadix.build(NonZeroUsize::new(lanes).unwrap()))
}

/// Blocks of the sequence 0, 1, 2, … as all call them.
fn stored(range: std::ops::Range<u64>) -> KvCacheEventData {
    KvCacheEventData::Stored {
        parent_hash: range.start.checked_sub(1).map(ExternalBlockHash),
        blocks: range
            .map(|at| StoredBlock { block_hash: ExternalBlockHash(at), tokens_hash: LocalBlockHash(at) })
            .collect(),
    }
}

fn removed(range: std::ops::Range<u64>) -> KvCacheEventData {
    KvCacheEventData::Removed { block_hashes: range.map(ExternalBlockHash).collect() }
}

fn query(blocks: u64) -> Vec<LocalBlockHash> {
    (0..blocks).map(LocalBlockHash).collect()
}

fn shared(index: &TieredIndex) -> u32 {
    let mut out = MatchBuffer::default();
    index.find_matches(&query(8), &mut out);
    out.shared_blocks()
}

#[test]
fn what_different_ranks_put_there_is_one_run() {
    let (index, mut writers) = build(1);
    let writer = &mut writers[0];
    let [a, b] = [Slot::new(0, 0), Slot::new(7, 2)];
    writer.apply(a, EXTERNAL, &stored(0..3)).unwrap();
    // The blocks before are on b's device only.
    writer.apply(b, DEVICE, &stored(0..3)).unwrap();
    assert_eq!(shared(&index), 3);
    writer.apply(b, EXTERNAL, &stored(3..6)).unwrap();
    assert_eq!(shared(&index), 6);
    writer.apply(b, StorageTier::Disk, &stored(6..8)).unwrap();
    assert_eq!(shared(&index), 6, "a disk is the worker's own");
    writer.apply(b, EXTERNAL, &stored(0..1)).unwrap();
    writer.apply(a, EXTERNAL, &removed(0..1)).unwrap();
    assert_eq!(shared(&index), 6, "b said so too");
    writer.apply(b, EXTERNAL, &removed(4..5)).unwrap();
    assert_eq!(shared(&index), 4);
    let mut out = MatchBuffer::default();
    index.find_matches(&query(8), &mut out);
    let tiers = out.tiers(b);
    assert_eq!((tiers.device_blocks, tiers.host_blocks, tiers.any_blocks), (3, 3, 4), "it is no slot's own");
    index.find_matches(&[LocalBlockHash(99)], &mut out);
    assert_eq!(out.shared_blocks(), 0, "of another prompt");
}

#[test]
fn a_rank_that_leaves_or_is_cleared_takes_what_it_alone_told_of() {
    let (index, mut writers) = build(1);
    let writer = &mut writers[0];
    let [a, b] = [Slot::new(0, 0), Slot::new(1, 0)];
    for (slot, blocks) in [(a, 0..8), (b, 0..2)] {
        writer.apply(slot, EXTERNAL, &stored(blocks)).unwrap();
    }
    writer.apply(a, EXTERNAL, &KvCacheEventData::Cleared).unwrap();
    assert_eq!(shared(&index), 2);
    writer.apply(a, EXTERNAL, &stored(0..8)).unwrap();
    writer.apply(a, DEVICE, &KvCacheEventData::Cleared).unwrap();
    assert_eq!(shared(&index), 2, "of those that know no tiers");
    writer.apply(a, EXTERNAL, &stored(0..8)).unwrap();
    writer.apply(Slot::new(0, 1), EXTERNAL, &stored(0..3)).unwrap();
    assert_eq!(shared(&index), 3, "the index has a new owner");
    writer.clear(Slot::new(0, 1));
    assert_eq!(shared(&index), 2);
    writer.clear(b);
    assert_eq!((shared(&index), index.lower_counts().nodes), (0, 0));
    writer.apply(a, EXTERNAL, &stored(0..8)).unwrap();
    assert_eq!(shared(&index), 8);
    drop(writers);
    assert_eq!((shared(&index), index.lower_counts().nodes), (0, 0));
}

#[test]
fn an_answer_takes_the_larger_run_and_none_that_may_be_of_a_hidden_slot() {
    let (mut out, mut other) = (MatchBuffer::default(), MatchBuffer::default());
    out.set_shared_blocks(2);
    out.raise(&other);
    assert_eq!(out.shared_blocks(), 2);
    other.set_shared_blocks(3);
    out.raise(&other);
    assert_eq!(out.shared_blocks(), 3);
    out.hide(&[]);
    assert_eq!(out.shared_blocks(), 3);
    out.hide(&[Slot::new(7, 0)]);
    assert_eq!(out.shared_blocks(), 0);
    other.clear();
    assert_eq!(other.shared_blocks(), 0);
}

#[test]
fn it_is_counted_in_the_gauge_and_costs_nothing_where_nobody_uses_it() {
    const BLOCKS: u64 = 3 * NAMES_AT_ONCE as u64;
    let (index, mut writers) = build(1);
    let slots = [0, 1].map(|number| Slot::new(number, 0));
    writers[0].apply(slots[0], DEVICE, &stored(0..BLOCKS)).unwrap();
    assert_eq!((shared(&index), index.lower_counts()), (0, IndexCounts::default()));
    let mut sizes = Vec::new();
    for tier in [StorageTier::Disk, EXTERNAL] {
        for slot in slots {
            writers[0].apply(slot, tier, &stored(0..BLOCKS)).unwrap();
        }
        sizes.push(index.lower_counts());
        for slot in slots {
            writers[0].apply(slot, tier, &KvCacheEventData::Cleared).unwrap();
        }
        assert_eq!((index.lower_counts().blocks, shared(&index)), (0, 0));
    }
    let [disk, external] = sizes[..] else { unreachable!() };
    assert_eq!(external.blocks - disk.blocks, BLOCKS as usize, "once, whoever has it");
    // A name of twelve bytes for each block of each slot, in a table with some room.
    let more = external.bytes - disk.bytes;
    assert!((24 * BLOCKS as usize..90 * BLOCKS as usize).contains(&more), "{more}");
    assert!(index.lower_counts().bytes < disk.bytes / 2, "{:?}", index.lower_counts());
}

#[test]
fn what_was_never_there_at_one_time_is_not_found_there() {
    const ANSWERS: usize = 2000;
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(240);
    let (index, mut writers) = build(2);
    let slots = [0, 1].map(|number| Slot::new(number, 0));
    // The devices keep the places, so that the storage's names come and go among nodes that stay.
    for (slot, writer) in slots.into_iter().zip(&mut writers) {
        writer.apply(slot, DEVICE, &stored(0..3)).unwrap();
    }
    writers[0].apply(slots[0], EXTERNAL, &stored(0..2)).unwrap();
    // Two of two lanes tell of the first two blocks, then of the last two, and never of all.
    let round =
        [(0, removed(0..1)), (1, stored(2..3)), (1, removed(2..3)), (0, stored(0..1)), (1, removed(2..3))];
    let answers = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            jolt::enable(11);
            let mut out = MatchBuffer::default();
            let mut seen = [0; 4];
            while answers.fetch_add(1, Ordering::SeqCst) < ANSWERS {
                index.find_matches(&query(3), &mut out);
                seen[out.shared_blocks() as usize] += 1;
                assert!(out.shared_blocks() <= 2, "{seen:?}");
                assert_eq!(out.device_blocks(slots[0]), 3);
            }
            seen
        });
        while !reading.is_finished() {
            for (lane, event) in &round {
                // The last one takes away what is not there.
                let _ = writers[*lane].apply(slots[*lane], EXTERNAL, event);
            }
            assert!(std::time::Instant::now() < deadline, "only {answers:?} answers in time");
        }
        let seen = reading.join().unwrap();
        assert!(seen[0] > 0 && seen[2] > 0, "{seen:?}");
    });
}

#[test]
fn lanes_that_write_at_once_leave_what_they_told_of() {
    const LANES: usize = 2;
    const ROUNDS: usize = 4000;
    const BLOCKS: u64 = 8;
    let (index, mut writers) = build(LANES);
    let slot = |number: usize| Slot::new(number as u32, 0);
    // It stays, and keeps the first two blocks there.
    let stays = slot(2 * LANES);
    writers[0].apply(stays, EXTERNAL, &stored(0..2)).unwrap();
    let is_over = AtomicBool::new(false);
    let held: Vec<[bool; BLOCKS as usize]> = std::thread::scope(|scope| {
        let lanes: Vec<_> = (0..)
            .zip(&mut writers)
            .map(|(lane, writer)| {
                scope.spawn(move || {
                    jolt::enable(lane as u64 + 1);
                    let mut random = SmallRng::seed_from_u64(lane as u64);
                    let mut held = [[false; BLOCKS as usize]; 2];
                    for _ in 0..ROUNDS {
                        let number = random.random_range(0..2);
                        let slot = slot(2 * lane + number);
                        let mine = &mut held[number];
                        let from = random.random_range(0..BLOCKS);
                        let range = from..random.random_range(from..BLOCKS) + 1;
                        let (event, then) = match random.random_range(0..10) {
                            0 => {
                                writer.clear(slot);
                                *mine = Default::default();
                                continue;
                            }
                            1..=5 => (stored(range.clone()), true),
                            _ => (removed(range.clone()), false),
                        };
                        // A parent may not be there: then nothing changes.
                        let result = writer.apply(slot, EXTERNAL, &event);
                        if result != Err(ApplyError::ParentBlockNotFound) {
                            range.for_each(|at| mine[at as usize] = then);
                        }
                    }
                    held
                })
            })
            .collect();
        let reader = scope.spawn(|| {
            jolt::enable(5);
            let mut out = MatchBuffer::default();
            while !is_over.load(Ordering::SeqCst) {
                index.find_matches(&query(BLOCKS), &mut out);
                assert!((2..=BLOCKS as u32).contains(&out.shared_blocks()), "{}", out.shared_blocks());
            }
        });
        let held = lanes.into_iter().flat_map(|lane| lane.join().unwrap()).collect();
        is_over.store(true, Ordering::SeqCst);
        reader.join().unwrap();
        held
    });
    let is_there = |at: &u64| *at < 2 || held.iter().any(|held| held[*at as usize]);
    let expected = (0..BLOCKS).take_while(is_there).count();
    assert_eq!(shared(&index), expected as u32);
    for number in 0..=2 * LANES {
        writers[number / 2 % LANES].clear(slot(number));
    }
    assert_eq!((shared(&index), index.lower_counts().blocks, index.lower_counts().nodes), (0, 0, 0));
}
