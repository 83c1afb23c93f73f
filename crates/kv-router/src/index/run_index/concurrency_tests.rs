//! Readers beside the writer: what they answer was true while they asked.

use std::sync::{
    Mutex,
    atomic::{AtomicBool, Ordering::SeqCst},
};

use dynamo_engine_api::{ExternalBlockHash, KvCacheEventData, StoredBlock};
use dynamo_tokens::LocalBlockHash;
use rand::{Rng, SeedableRng, rngs::SmallRng};

use super::*;

const SLOTS: u32 = 7;
const LEN: u32 = 60;
/// Miri is a thousand times slower.
const STEPS: u32 = if cfg!(miri) { 60 } else { 20_000 };

/// Sequence `which` shares its first blocks with the sequence 0, and has its own behind.
fn local(which: u32, at: u32) -> u64 {
    let own = if at < 10 * which { 0 } else { which };
    u64::from(own) << 32 | u64::from(at)
}

/// The path up to `at` is the same for all that still share it.
fn name(which: u32, at: u32) -> u64 {
    local(which, at) | 1 << 60
}

const SEQUENCES: u32 = 3;

fn query(which: u32) -> Vec<LocalBlockHash> {
    (0..LEN).map(|at| LocalBlockHash(local(which, at))).collect()
}

/// Blocks of each path that a slot holds.
type Held = [[bool; LEN as usize]; SEQUENCES as usize];

fn leading(held: &Held, which: usize) -> u32 {
    held[which].iter().take_while(|&&held| held).count() as u32
}

/// Marks block `at` of the path `which` in all sequences that share it.
fn mark(held: &mut Held, which: u32, at: u32, is_held: bool) {
    for other in 0..SEQUENCES {
        if name(other, at) == name(which, at) {
            held[other as usize][at as usize] = is_held;
        }
    }
}

/// A log of every slot's answers over time: an answer has to lie between the least and the most of what was true from
/// the last event that ended before the query began to the first that began after it ended.
fn bounds(log: &[(u64, u64, [u32; SEQUENCES as usize])], from: u64, to: u64, which: usize) -> (u32, u32) {
    let first = log.partition_point(|&(_, ended, _)| ended < from).saturating_sub(1);
    let during = log[first..].iter().take_while(|&&(began, ..)| began <= to);
    let values: Vec<u32> = during.map(|&(.., values)| values[which]).collect();
    (values.iter().copied().min().unwrap_or(0), values.iter().copied().max().unwrap_or(0))
}

fn run_history(seed: u64, interior: u32) {
    let clock = std::sync::atomic::AtomicU64::new(1);
    let stop = AtomicBool::new(false);
    let answers = Mutex::new(Vec::new());
    let mut index = RunIndex::new();
    let readers: Vec<_> = (0..2).map(|_| index.reader()).collect();
    let mut logs = vec![vec![(0, 0, [0; SEQUENCES as usize])]; SLOTS as usize];
    std::thread::scope(|scope| {
        for (number, reader) in readers.iter().enumerate() {
            let (clock, stop, answers) = (&clock, &stop, &answers);
            scope.spawn(move || {
                let mut random = SmallRng::seed_from_u64(seed + 100 + number as u64);
                let (mut out, mut found) = (MatchBuffer::default(), Vec::new());
                while !stop.load(SeqCst) && found.len() < 4 * STEPS as usize {
                    let which = random.random_range(0..SEQUENCES);
                    let query = query(which);
                    let from = clock.fetch_add(1, SeqCst);
                    reader.find_matches(&query, &mut out);
                    let to = clock.fetch_add(1, SeqCst);
                    let mut depths = [0; SLOTS as usize];
                    for found in out.matches() {
                        depths[found.slot.index()] = found.device_blocks;
                    }
                    found.push((which, from, to, depths));
                }
                answers.lock().unwrap().extend(found);
            });
        }
        let mut random = SmallRng::seed_from_u64(seed);
        let mut all = vec![[[false; LEN as usize]; SEQUENCES as usize]; SLOTS as usize];
        for _ in 0..STEPS {
            let number = random.random_range(0..SLOTS);
            let held = &mut all[number as usize];
            let which = random.random_range(0..SEQUENCES);
            let mut next = *held;
            let event = match random.random_range(0..100) {
                0..50 => {
                    let begin = leading(held, which as usize).min(LEN - 1);
                    let begin = if random.random_bool(0.3) { random.random_range(0..=begin) } else { begin };
                    let end = random.random_range(begin + 1..=LEN);
                    (begin..end).for_each(|at| mark(&mut next, which, at, true));
                    KvCacheEventData::Stored {
                        parent_hash: begin.checked_sub(1).map(|at| ExternalBlockHash(name(which, at))),
                        blocks: (begin..end)
                            .map(|at| StoredBlock {
                                block_hash: ExternalBlockHash(name(which, at)),
                                tokens_hash: LocalBlockHash(local(which, at)),
                            })
                            .collect(),
                    }
                }
                50..98 => {
                    let path = &held[which as usize];
                    let held_at: Vec<u32> = (0..LEN).filter(|&at| path[at as usize]).collect();
                    let mut gone = Vec::new();
                    if random.random_range(0..100) < interior && !held_at.is_empty() {
                        gone.push(held_at[random.random_range(0..held_at.len())]);
                    } else {
                        let keep = random.random_range(0..=held_at.len());
                        gone.extend(held_at[keep..].iter().rev());
                    }
                    gone.iter().for_each(|&at| mark(&mut next, which, at, false));
                    let block_hashes = gone.iter().map(|&at| ExternalBlockHash(name(which, at))).collect();
                    KvCacheEventData::Removed { block_hashes }
                }
                _ => {
                    next = [[false; LEN as usize]; SEQUENCES as usize];
                    KvCacheEventData::Cleared
                }
            };
            let began = clock.fetch_add(1, SeqCst);
            index.apply(Slot::new(number, 0), &event).unwrap();
            let ended = clock.fetch_add(1, SeqCst);
            let values = std::array::from_fn(|which| leading(&next, which));
            logs[number as usize].push((began, ended, values));
            *held = next;
        }
        stop.store(true, SeqCst);
    });
    for (which, from, to, depths) in answers.into_inner().unwrap() {
        for (log, depth) in logs.iter().zip(depths) {
            let (least, most) = bounds(log, from, to, which as usize);
            assert!((least..=most).contains(&depth), "{depth} is not within {least}..={most}, seed {seed}");
        }
    }
}

#[test]
fn answers_beside_a_writer_were_true_while_they_were_sought() {
    for seed in 0..3 {
        run_history(seed, 10);
        run_history(seed + 10, 80);
    }
}

#[test]
fn readers_that_share_a_handle_do_not_disturb_one_another() {
    let mut index = RunIndex::new();
    let blocks = query(0).into_iter().enumerate();
    let blocks = blocks.map(|(at, tokens_hash)| StoredBlock {
        block_hash: ExternalBlockHash(name(0, at as u32)),
        tokens_hash,
    });
    let event = KvCacheEventData::Stored { parent_hash: None, blocks: blocks.collect() };
    index.apply(Slot::new(0, 0), &event).unwrap();
    let reader = index.reader();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut out = MatchBuffer::default();
                for _ in 0..STEPS / 10 {
                    reader.find_matches(&query(0), &mut out);
                    assert_eq!(out.device_blocks(Slot::new(0, 0)), LEN);
                }
            });
        }
    });
}
