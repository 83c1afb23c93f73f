//! Long random histories with long runs, against a model that is fast enough for them. The small, shrinking ones are
//! in `reference_model`.

use std::collections::VecDeque;

use dynamo_engine_api::{ExternalBlockHash, KvCacheEventData, StoredBlock};
use dynamo_tokens::LocalBlockHash;
use rand::{Rng, SeedableRng, rngs::SmallRng};
use rustc_hash::FxHashMap;

use super::{ApplyError, MatchBuffer, PrefixIndex};
use crate::Slot;

/// A place: a path of local hashes.
type Place = u32;
const START: Place = 0;

/// What the names of each slot stand for.
#[derive(Default)]
struct Model {
    places: FxHashMap<(Place, u64), Place>,
    slots: Vec<Names>,
}

#[derive(Default)]
struct Names {
    places: FxHashMap<u64, Place>,
    /// How many names stand for a place.
    held: FxHashMap<Place, u32>,
}

impl Names {
    fn unname(&mut self, name: u64) -> bool {
        let Some(place) = self.places.remove(&name) else { return false };
        let count = self.held.get_mut(&place).expect("counted");
        *count -= 1;
        if *count == 0 {
            self.held.remove(&place);
        }
        true
    }
}

impl Model {
    fn apply(&mut self, slot: usize, event: &KvCacheEventData) -> Result<(), ApplyError> {
        let next = self.places.len() as Place;
        let names = &mut self.slots[slot];
        match event {
            KvCacheEventData::Stored { parent_hash, blocks } => {
                let mut place = match parent_hash {
                    Some(parent) => *names.places.get(&parent.0).ok_or(ApplyError::ParentBlockNotFound)?,
                    None => START,
                };
                let mut new = next;
                for block in blocks {
                    place = *self.places.entry((place, block.tokens_hash.0)).or_insert_with(|| {
                        new += 1;
                        new
                    });
                    names.unname(block.block_hash.0);
                    names.places.insert(block.block_hash.0, place);
                    *names.held.entry(place).or_default() += 1;
                }
                Ok(())
            }
            KvCacheEventData::Removed { block_hashes } => {
                let known = block_hashes.iter().filter(|hash| names.unname(hash.0)).count();
                if known == block_hashes.len() { Ok(()) } else { Err(ApplyError::BlockNotFound) }
            }
            KvCacheEventData::Cleared => {
                *names = Names::default();
                Ok(())
            }
        }
    }

    fn find(&self, slot: usize, query: &[LocalBlockHash]) -> u32 {
        let mut place = START;
        let mut len = 0;
        for local in query {
            match self.places.get(&(place, local.0)) {
                Some(next) if self.slots[slot].held.contains_key(next) => place = *next,
                _ => break,
            }
            len += 1;
        }
        len
    }
}

/// How the histories look.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    /// Slots, all in use.
    pub(super) slots: u32,
    /// Events of one history.
    pub(super) steps: u32,
    /// Blocks of an event at most.
    pub(super) blocks: u32,
    /// Different continuations of a sequence.
    pub(super) branches: u64,
    /// One in how many stores gives names that do not follow from content; 0: none.
    pub(super) odd_names: u32,
    /// Whether each slot has names of its own for the same content.
    pub(super) own_names: bool,
    /// Share of removals, in percent, that hit blocks anywhere rather than the ends of sequences.
    pub(super) interior: u32,
    /// Share of stores, in percent, whose last blocks come one at a time, between other events, as from an engine that
    /// decodes.
    pub(super) decoded: u32,
}

struct Sequence {
    locals: Vec<LocalBlockHash>,
    names: Vec<u64>,
}

fn mix(value: u64) -> u64 {
    let product = (value ^ 0x1234_5678_9ABC_DEF1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    product ^ product >> 29
}

impl Shape {
    /// A sequence that shares prefixes of any length with others.
    fn sequence(&self, random: &mut SmallRng, slot: u32) -> Sequence {
        let len = random.random_range(1..=self.blocks * 2);
        let turn = random.random_range(1..=self.blocks);
        let seed = if self.own_names { u64::from(slot) + 1 } else { 0 };
        let (mut locals, mut names) = (Vec::new(), Vec::new());
        let (mut name, mut branch) = (mix(seed), random.random_range(0..self.branches));
        for at in 0..len {
            if at % turn == turn - 1 && random.random_ratio(1, 3) {
                branch = random.random_range(0..self.branches);
            }
            let local = branch << 32 | u64::from(at);
            name = mix(name ^ mix(local));
            locals.push(LocalBlockHash(local));
            names.push(name);
        }
        if self.odd_names > 0 && random.random_ratio(1, self.odd_names) {
            for name in &mut names {
                *name = random.random_range(0..200);
            }
        }
        Sequence { locals, names }
    }

    fn event(&self, random: &mut SmallRng, slot: u32, held: &[u64]) -> KvCacheEventData {
        let sequence = self.sequence(random, slot);
        let hash = |&name: &u64| ExternalBlockHash(name);
        match random.random_range(0..100) {
            0..55 => {
                let from =
                    if random.random_bool(0.5) { 0 } else { random.random_range(0..sequence.names.len()) };
                let end = (from + self.blocks as usize).min(sequence.names.len());
                let block = |at: usize| StoredBlock {
                    block_hash: ExternalBlockHash(sequence.names[at]),
                    tokens_hash: sequence.locals[at],
                };
                KvCacheEventData::Stored {
                    parent_hash: from.checked_sub(1).map(|at| ExternalBlockHash(sequence.names[at])),
                    blocks: (from..end).map(block).collect(),
                }
            }
            55..98 if random.random_range(0..100) < self.interior => {
                let count = random.random_range(1..=self.blocks.min(20));
                let any = |_| match held.len() {
                    0 => ExternalBlockHash(random.random()),
                    len => ExternalBlockHash(held[random.random_range(0..len)]),
                };
                KvCacheEventData::Removed { block_hashes: (0..count).map(any).collect() }
            }
            55..98 => {
                let begin = random.random_range(0..sequence.names.len());
                let names = &sequence.names[begin..];
                let block_hashes = if random.random_bool(0.9) {
                    names.iter().rev().map(hash).collect()
                } else {
                    names.iter().map(hash).collect()
                };
                KvCacheEventData::Removed { block_hashes }
            }
            _ => KvCacheEventData::Cleared,
        }
    }
}

/// Cuts the last blocks off a store, each as an event of its own.
fn decoded(event: &mut KvCacheEventData, random: &mut SmallRng) -> Vec<KvCacheEventData> {
    const MOST: usize = 12;
    let KvCacheEventData::Stored { blocks, .. } = event else { return Vec::new() };
    let first = random.random_range(blocks.len().saturating_sub(MOST).max(1)..=blocks.len());
    let rest = blocks.split_off(first);
    let mut parent = blocks.last().map(|block| block.block_hash);
    rest.into_iter()
        .map(|block| KvCacheEventData::Stored {
            parent_hash: parent.replace(block.block_hash),
            blocks: vec![block],
        })
        .collect()
}

/// Runs one history per seed; `check` looks into the index now and then.
pub(super) fn assert_equal<I: PrefixIndex>(
    shape: Shape,
    seeds: std::ops::Range<u64>,
    make: fn() -> I,
    check: fn(&I),
) {
    for seed in seeds {
        let mut random = SmallRng::seed_from_u64(seed);
        let mut model = Model::default();
        let mut index = make();
        let mut out = MatchBuffer::default();
        let mut generations = vec![0; shape.slots as usize];
        model.slots.resize_with(shape.slots as usize, Names::default);
        let mut sample: Vec<u64> = Vec::new();
        let mut later: VecDeque<(u32, KvCacheEventData)> = VecDeque::new();
        for step in 0..shape.steps {
            let next = later.pop_front_if(|_| random.random_bool(0.7));
            let number =
                next.as_ref().map_or_else(|| random.random_range(0..shape.slots), |&(number, _)| number);
            let slot = Slot::new(number, generations[number as usize]);
            if random.random_ratio(1, 500) {
                index.clear(slot);
                model.slots[number as usize] = Names::default();
                generations[number as usize] += 1;
                continue;
            }
            if step % 16 == 0 {
                sample = model.slots[number as usize].places.keys().copied().take(200).collect();
                sample.sort_unstable();
            }
            let event = match next {
                Some((_, event)) => event,
                None => {
                    let mut event = shape.event(&mut random, number, &sample);
                    if random.random_range(0..100) < shape.decoded {
                        let events = decoded(&mut event, &mut random);
                        later.extend(events.into_iter().map(|event| (number, event)));
                    }
                    event
                }
            };
            let is_broken = match &event {
                KvCacheEventData::Stored { parent_hash, blocks } => {
                    let names =
                        parent_hash.iter().copied().chain(blocks.iter().map(|block| block.block_hash));
                    let names: Vec<_> = names.collect();
                    names.windows(2).any(|pair| pair[0] == pair[1])
                }
                _ => false,
            };
            let expected =
                if is_broken { Err(ApplyError::InvalidBlock) } else { model.apply(number as usize, &event) };
            assert_eq!(index.apply(slot, &event), expected, "{shape:?}, seed {seed}, step {step}: {event:?}");
            let query = shape.sequence(&mut random, number).locals;
            index.find_matches(&query, &mut out);
            let mut matches = 0;
            for other in 0..shape.slots {
                let slot = Slot::new(other, generations[other as usize]);
                let expected = model.find(other as usize, &query);
                assert_eq!(
                    out.device_blocks(slot),
                    expected,
                    "{shape:?}, seed {seed}, step {step}, {slot:?}"
                );
                assert_eq!(index.held_blocks(slot) as usize, model.slots[other as usize].held.len());
                matches += usize::from(expected > 0);
            }
            assert_eq!(out.matches().len(), matches, "{shape:?}, seed {seed}, step {step}");
            if step % 64 == 0 {
                check(&index);
            }
        }
        check(&index);
        let mut copy = make();
        for number in 0..shape.slots {
            let slot = Slot::new(number, generations[number as usize]);
            for event in index.dump(slot) {
                assert_eq!(copy.apply(slot, &event), Ok(()), "{shape:?}, seed {seed}");
            }
            let names = model.slots[number as usize].places.keys();
            let block_hashes = names.map(|&name| ExternalBlockHash(name)).collect();
            assert_eq!(index.apply(slot, &KvCacheEventData::Removed { block_hashes }), Ok(()));
        }
        for number in 0..shape.slots {
            let slot = Slot::new(number, generations[number as usize]);
            assert_eq!(copy.held_blocks(slot) as usize, model.slots[number as usize].held.len());
        }
        for _ in 0..50 {
            let query = shape.sequence(&mut random, 0).locals;
            copy.find_matches(&query, &mut out);
            for number in 0..shape.slots {
                let slot = Slot::new(number, generations[number as usize]);
                assert_eq!(out.device_blocks(slot), model.find(number as usize, &query), "the copy");
            }
        }
        check(&copy);
        check(&index);
        assert_eq!((index.counts().blocks, index.counts().nodes), (0, 0));
    }
}
