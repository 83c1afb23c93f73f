use std::{collections::BTreeMap, time::Duration};

use dynamo_tokens::sequence_hashes;
use proptest::prelude::*;

use super::*;

fn slot(index: u32) -> Slot {
    Slot::new(index, 0)
}

fn hashes(locals: &[u64]) -> Vec<SequenceHash> {
    let local: Vec<_> = locals.iter().map(|&local| LocalBlockHash(local)).collect();
    let mut names = Vec::new();
    sequence_hashes(&local, &mut names);
    names
}

fn route(index: &mut ApproximateIndex, to: Slot, locals: &[u64], now: Instant) {
    index.routed(to, &hashes(locals), now).unwrap();
}

fn run(index: &ApproximateIndex, of: Slot, locals: &[u64]) -> u32 {
    let mut out = MatchBuffer::default();
    index.find_matches(&hashes(locals), &mut Vec::new(), &mut out);
    out.device_blocks(of)
}

fn config(policy: CachePolicy, max_blocks: usize) -> ApproximateConfig {
    ApproximateConfig { policy, ttl: Duration::from_secs(10), max_blocks, prune_target_ratio: 0.5 }
}

#[derive(Clone, Debug)]
enum Step {
    Route(u32, Vec<u64>),
    Pass(u64),
    Clear(u32),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..3u32, prop::collection::vec(0..3u64, 1..7)).prop_map(|(slot, locals)| Step::Route(slot, locals)),
        3 => (0..8u64).prop_map(Step::Pass),
        1 => (0..3u32).prop_map(Step::Clear),
    ];
    prop::collection::vec(step, 1..60)
}

/// By slot: blocks and when, and in which turn, they were last sent.
type Model = BTreeMap<u32, BTreeMap<Vec<u64>, (u64, usize)>>;

/// Oldest first, and of one prompt the deepest.
fn oldest(blocks: &BTreeMap<Vec<u64>, (u64, usize)>) -> Option<Vec<u64>> {
    blocks.iter().min_by_key(|(path, (_, turn))| (*turn, Reverse(path.len()))).map(|(path, _)| path.clone())
}

fn assert_equal_to_model(policy: CachePolicy, capacity: usize, max_blocks: usize) {
    proptest!(|(steps in steps())| {
        let mut index = ApproximateIndex::new(config(policy, max_blocks));
        for number in 0..3 {
            index.set_capacity(slot(number), Some(capacity as u32));
        }
        let mut model = Model::new();
        let (start, mut now) = (Instant::now(), 0);
        for (turn, step) in steps.iter().enumerate() {
            match step {
                Step::Route(to, locals) => {
                    route(&mut index, slot(*to), locals, start + Duration::from_secs(now));
                    let blocks = model.entry(*to).or_default();
                    for len in 1..=locals.len() {
                        blocks.insert(locals[..len].to_vec(), (now, turn));
                    }
                    while policy == CachePolicy::Lru && blocks.len() > capacity {
                        blocks.remove(&oldest(blocks).unwrap());
                    }
                    let held = |model: &Model| model.values().map(BTreeMap::len).sum::<usize>();
                    if held(&model) > max_blocks {
                        while held(&model) > max_blocks / 2 {
                            // At equal times, slot by slot.
                            let of = model.iter().filter_map(|(&of, blocks)| {
                                Some((blocks.values().map(|&(at, _)| at).min()?, of))
                            });
                            let blocks = model.get_mut(&of.min().unwrap().1).unwrap();
                            blocks.remove(&oldest(blocks).unwrap());
                        }
                    }
                }
                Step::Pass(seconds) => {
                    now += seconds;
                    assert!(!index.expire(start + Duration::from_secs(now), usize::MAX));
                    for blocks in model.values_mut() {
                        blocks.retain(|_, (at, _)| policy == CachePolicy::Lru || *at + 10 > now);
                    }
                }
                Step::Clear(of) => {
                    index.clear(slot(*of));
                    index.set_capacity(slot(*of), Some(capacity as u32));
                    model.remove(of);
                }
            }
            for number in 0..3 {
                let blocks = model.get(&number).cloned().unwrap_or_default();
                prop_assert_eq!(index.held_blocks(slot(number)) as usize, blocks.len());
                for query in [&[0, 1, 2, 0][..], &[1, 1, 1], &[2, 0, 2, 0, 1], &[0, 0, 0, 0, 0, 0]] {
                    let expected = (1..=query.len()).take_while(|&len| blocks.contains_key(&query[..len])).count();
                    prop_assert_eq!(run(&index, slot(number), query) as usize, expected);
                }
            }
        }
    });
}

#[test]
fn entries_go_when_their_time_is_over() {
    assert_equal_to_model(CachePolicy::Ttl, 1, usize::MAX);
}

#[test]
fn a_full_rank_forgets_what_was_not_used_for_the_longest_time() {
    assert_equal_to_model(CachePolicy::Lru, 8, usize::MAX);
}

#[test]
fn too_many_entries_are_pruned_from_the_oldest_on() {
    assert_equal_to_model(CachePolicy::Ttl, 1, 12);
}

#[test]
fn pruning_goes_step_by_step_and_never_falls_behind() {
    let mut index = ApproximateIndex::new(config(CachePolicy::Ttl, 40_000));
    let now = Instant::now();
    let prompt = |number: u64| -> Vec<u64> { (0..100).map(|block| number * 1000 + block).collect() };
    let mut lowest = usize::MAX;
    for number in 0..600 {
        let before = index.counts().blocks;
        route(&mut index, slot(number as u32 % 3), &prompt(number), now);
        let blocks = index.counts().blocks;
        assert!(blocks <= 40_000 && blocks + PRUNE_STEP + 100 >= before, "{before} became {blocks}");
        if blocks < before {
            lowest = lowest.min(blocks);
        }
    }
    assert_eq!(lowest, 20_000, "it goes on to the target once it began");
}

#[test]
fn repeated_prompts_cost_no_memory_and_expired_ones_give_it_back() {
    let mut index = ApproximateIndex::new(config(CachePolicy::Ttl, 1 << 20));
    let start = Instant::now();
    let prompt: Vec<u64> = (0..2000).collect();
    let empty = index.counts().bytes;
    route(&mut index, slot(0), &prompt, start);
    let once = index.counts().bytes - empty;
    for _ in 0..200 {
        route(&mut index, slot(0), &prompt, start);
    }
    let repeated = index.counts().bytes - empty;
    assert!(repeated < once * 2, "{once} bytes became {repeated}");
    assert_eq!(index.next_expiry(), Some(start + Duration::from_secs(10)));
    assert!(index.expire(start + Duration::from_secs(10), 1500));
    assert_eq!(run(&index, slot(0), &prompt), 500, "the rest has to wait");
    assert!(!index.expire(start + Duration::from_secs(10), 1500));
    assert_eq!((index.counts().blocks, index.next_expiry()), (0, None));
    let left = index.counts().bytes - empty;
    assert!(left < 4096, "{left} bytes left");
}

#[test]
fn an_entry_costs_some_tens_of_bytes() {
    let mut index = ApproximateIndex::new(config(CachePolicy::Ttl, 1 << 20));
    let now = Instant::now();
    // Half of a prompt is the one before it.
    for number in 0..2000u64 {
        let prompt: Vec<u64> =
            (0..100).map(|block| if block < 50 { number / 2 } else { number } * 1000 + block).collect();
        route(&mut index, slot(number as u32 % 8), &prompt, now);
    }
    let counts = index.counts();
    let each = counts.bytes as f64 / counts.blocks as f64;
    assert!((30.0..80.0).contains(&each), "{each} bytes for each of {} entries", counts.blocks);
}

#[test]
fn the_larger_of_two_answers_counts() {
    let mut predicted = ApproximateIndex::new(ApproximateConfig::REFERENCE);
    let now = Instant::now();
    route(&mut predicted, slot(0), &[1, 2, 3], now);
    route(&mut predicted, slot(2), &[1], now);
    let mut known = ApproximateIndex::new(ApproximateConfig::REFERENCE);
    route(&mut known, slot(0), &[1], now);
    route(&mut known, slot(1), &[1, 2], now);
    route(&mut known, slot(2), &[1, 2, 3], now);
    let (names, mut path) = (hashes(&[1, 2, 3]), Vec::new());
    let (mut out, mut other) = (MatchBuffer::default(), MatchBuffer::default());
    known.find_matches(&names, &mut path, &mut out);
    predicted.find_matches(&names, &mut path, &mut other);
    out.raise(&other);
    let mut found: Vec<_> = out.matches().iter().map(|found| (found.slot, found.device_blocks)).collect();
    found.sort();
    assert_eq!(found, [(slot(0), 3), (slot(1), 2), (slot(2), 3)]);
    assert_eq!(out.tiers(slot(0)).any_blocks, 3);
}

#[test]
fn policies_are_read_as_they_are_written() {
    for policy in [CachePolicy::Ttl, CachePolicy::Lru] {
        assert_eq!(policy.to_string().parse(), Ok(policy));
    }
    assert!("fifo".parse::<CachePolicy>().is_err());
}
