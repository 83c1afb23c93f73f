//! Random histories on many threads: every answer must lie between the least and the most that was true while it
//! was sought.

use std::{
    num::NonZeroUsize,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
};

use dynamo_engine_api::{ExternalBlockHash, KvCacheEventData, StoredBlock};
use dynamo_tokens::{LocalBlockHash, SequenceHash};
use proptest::{
    strategy::{Strategy, ValueTree},
    test_runner::TestRunner,
};
use rand::{Rng, SeedableRng, rngs::SmallRng};

use super::{
    IndexParts, IndexerKind, MatchBuffer, jolt,
    reference_model::{Model, Names, Step, steps},
};
use crate::Slot;

const SLOTS: usize = 3;
const STEPS: usize = 6000;
const HISTORIES: u64 = 6;
const QUERIES: [&[u64]; 7] =
    [&[0, 0, 0, 0, 0, 0], &[0, 1, 2], &[1, 0, 1, 0], &[2, 2, 2, 2], &[1, 1, 1], &[0, 2, 0, 2], &[2, 1, 0]];

/// What happens to one slot, and what is true of it after each little step of that: one block more or less.
struct SlotHistory {
    events: Vec<(Slot, Option<KvCacheEventData>)>,
    /// By event: the number of the state after it.
    after: Vec<usize>,
    /// By state: the length of each query's run.
    states: Vec<[u32; QUERIES.len()]>,
}

impl SlotHistory {
    fn new(steps: &[Step], index: u32) -> Self {
        let mut history = Self { events: Vec::new(), after: Vec::new(), states: vec![[0; QUERIES.len()]] };
        let mut model = Model::default();
        let mut slot = Slot::new(index, 0);
        for step in steps {
            match step {
                Step::Event { slot: of, event } if *of == index => {
                    history.run(&mut model, slot, event);
                    history.events.push((slot, Some(event.clone())));
                }
                Step::Replace { slot: of, generation } if *of == index => {
                    model = Model::default();
                    history.note(&model, slot);
                    history.events.push((slot, None));
                    slot = Slot::new(index, *generation);
                }
                _ => continue,
            }
            history.after.push(history.states.len() - 1);
        }
        history
    }

    fn note(&mut self, model: &Model, slot: Slot) {
        self.states.push(
            QUERIES.map(|query| {
                model.find(query).iter().find(|found| found.0 == slot).map_or(0, |found| found.1)
            }),
        );
    }

    /// Block by block, as an index may be seen to apply an event.
    fn run(&mut self, model: &mut Model, slot: Slot, event: &KvCacheEventData) {
        match event {
            KvCacheEventData::Stored { parent_hash, blocks } => {
                if model.clone().apply(slot, event).is_err() {
                    return;
                }
                let mut parent = *parent_hash;
                for &block in blocks {
                    let one = KvCacheEventData::Stored { parent_hash: parent, blocks: vec![block] };
                    let mut after = model.clone();
                    let _ = after.apply(slot, &one);
                    if after.places(slot) != model.places(slot) {
                        // A name that stood for another place leaves it first.
                        let gone = KvCacheEventData::Removed { block_hashes: vec![block.block_hash] };
                        if model.apply(slot, &gone).is_ok() {
                            self.note(model, slot);
                        }
                    }
                    *model = after;
                    self.note(model, slot);
                    parent = Some(block.block_hash);
                }
            }
            KvCacheEventData::Removed { block_hashes } => {
                for &hash in block_hashes {
                    let one = KvCacheEventData::Removed { block_hashes: vec![hash] };
                    if model.apply(slot, &one).is_ok() {
                        self.note(model, slot);
                    }
                }
            }
            KvCacheEventData::Cleared => {
                let _ = model.apply(slot, event);
                self.note(model, slot);
            }
        }
    }
}

/// The states that a slot may be in: from the last that is reached for sure to the last that may be.
#[derive(Default)]
struct Progress {
    reached: AtomicUsize,
    begun: AtomicUsize,
}

fn assert_answers_are_true(names: Names, kind: IndexerKind) {
    let mut runner = TestRunner::deterministic();
    let mut checked = 0;
    for seed in 0..HISTORIES {
        let steps = steps(names, STEPS + 1).new_tree(&mut runner).unwrap().current();
        let histories: Vec<_> = (0..SLOTS as u32).map(|slot| SlotHistory::new(&steps, slot)).collect();
        let progress: Vec<_> = histories.iter().map(|_| Progress::default()).collect();
        let IndexParts { reader, writers } = kind.build(NonZeroUsize::new(2).unwrap());
        let writing = AtomicUsize::new(writers.len());
        let count = writers.len();
        let reading = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for (number, mut writer) in writers.into_iter().enumerate() {
                let (histories, progress, writing, reading) = (&histories, &progress, &writing, &reading);
                scope.spawn(move || {
                    jolt::enable(seed * 100 + number as u64);
                    while !reading.load(Ordering::SeqCst) {
                        std::thread::yield_now();
                    }
                    let longest = histories.iter().map(|history| history.events.len()).max().unwrap_or(0);
                    for at in 0..longest {
                        for slot in (number..SLOTS).step_by(count) {
                            let history = &histories[slot];
                            let Some((of, event)) = history.events.get(at) else { continue };
                            progress[slot].begun.store(history.after[at], Ordering::SeqCst);
                            match event {
                                Some(event) => drop(writer.apply(*of, event)),
                                None => writer.clear(*of),
                            }
                            progress[slot].reached.store(history.after[at], Ordering::SeqCst);
                        }
                    }
                    writing.fetch_sub(1, Ordering::SeqCst);
                });
            }
            let readers: Vec<_> = (0..2)
                .map(|number| {
                    let (histories, progress, reading) = (&histories, &progress, &reading);
                    let (writing, reader) = (&writing, &reader);
                    scope.spawn(move || {
                        jolt::enable(seed * 100 + 50 + number);
                        let mut random = SmallRng::seed_from_u64(seed * 2 + number);
                        let mut out = MatchBuffer::default();
                        let mut checked = 0;
                        reading.store(true, Ordering::SeqCst);
                        while writing.load(Ordering::SeqCst) > 0 {
                            let number = random.random_range(0..QUERIES.len());
                            let query: Vec<_> = QUERIES[number].iter().map(|&l| LocalBlockHash(l)).collect();
                            let reached: Vec<_> =
                                progress.iter().map(|slot| slot.reached.load(Ordering::SeqCst)).collect();
                            reader.find_matches(&query, &mut out);
                            for slot in 0..SLOTS {
                                let begun = progress[slot].begun.load(Ordering::SeqCst);
                                let states = &histories[slot].states[reached[slot]..=begun];
                                let found: Vec<_> =
                                    out.matches().iter().filter(|found| found.slot.index() == slot).collect();
                                let got = found.first().map_or(0, |found| found.device_blocks);
                                let least = states.iter().map(|state| state[number]).min().unwrap();
                                let most = states.iter().map(|state| state[number]).max().unwrap();
                                assert!(
                                    found.len() <= 1 && (least..=most).contains(&got),
                                    "{kind}: slot {slot} has {got} of {:?}, but {least} to {most} were true",
                                    QUERIES[number]
                                );
                                checked += 1;
                            }
                        }
                        checked
                    })
                })
                .collect();
            checked += readers.into_iter().map(|reader| reader.join().unwrap()).sum::<usize>();
        });
    }
    assert!(checked > 1000, "only {checked} answers were checked");
}

/// A slot that goes round: it has the first two blocks of a query, then the last two, and never all three.
fn assert_never_three(kind: IndexerKind) {
    const ANSWERS: usize = 2000;
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(240);
    let locals = [1u64, 2, 3].map(LocalBlockHash);
    let mut names = Vec::new();
    dynamo_tokens::sequence_hashes(&locals, &mut names);
    let names: Vec<_> = names.iter().map(|name| ExternalBlockHash(name.0)).collect();
    let block = |at: usize| StoredBlock { block_hash: names[at], tokens_hash: locals[at] };
    let aside = |at: usize| {
        let tokens_hash = LocalBlockHash(99);
        let name = SequenceHash(names[at].0).then(tokens_hash);
        StoredBlock { block_hash: ExternalBlockHash(name.0), tokens_hash }
    };
    let stored = |at: usize, blocks| KvCacheEventData::Stored {
        parent_hash: at.checked_sub(1).map(|before| names[before]),
        blocks,
    };
    let removed = |at: usize| KvCacheEventData::Removed { block_hashes: vec![names[at]] };
    let IndexParts { reader, writers } = kind.build(NonZeroUsize::MIN);
    let mut writer = writers.into_iter().next().unwrap();
    // Others keep the blocks, each behind something else, so that a tree looks for each anew.
    let slot = |index| Slot::new(index, 0);
    writer.apply(slot(0), &stored(0, vec![block(0), aside(0)])).unwrap();
    writer.apply(slot(1), &stored(0, vec![block(0), block(1), aside(1)])).unwrap();
    writer.apply(slot(2), &stored(0, vec![block(0), block(1), block(2)])).unwrap();
    writer.apply(slot(3), &stored(0, vec![block(0), block(1)])).unwrap();
    let round = [removed(0), stored(2, vec![block(2)]), removed(2), stored(0, vec![block(0)])];
    let answers = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            jolt::enable(7);
            let mut out = MatchBuffer::default();
            let mut seen = [0; 4];
            while answers.fetch_add(1, Ordering::SeqCst) < ANSWERS {
                reader.find_matches(&locals, &mut out);
                let got = out.device_blocks(slot(3)) as usize;
                seen[got] += 1;
                // With 0 and 2 true during one call, 1 is between them.
                assert!(got <= 2, "{kind}: {got} blocks, but at most 2 were there at one time: {seen:?}");
                assert_eq!(out.device_blocks(slot(2)), 3);
            }
        });
        while !reading.is_finished() {
            for event in &round {
                writer.apply(slot(3), event).unwrap();
            }
            let answers = answers.load(Ordering::SeqCst);
            assert!(std::time::Instant::now() < deadline, "{kind}: only {answers} answers in time");
        }
        reading.join().unwrap();
    });
}

#[test]
fn nobody_is_credited_with_what_was_never_there_at_one_time() {
    for kind in IndexerKind::ALL {
        assert_never_three(kind);
    }
}

#[test]
fn run_index_answers_are_true_while_it_is_written() {
    assert_answers_are_true(Names::Any, IndexerKind::Run);
}

#[test]
fn radix_tree_answers_are_true_while_it_is_written() {
    assert_answers_are_true(Names::Any, IndexerKind::Radix);
}

#[test]
fn concurrent_radix_tree_answers_are_true_while_it_is_written() {
    assert_answers_are_true(Names::Any, IndexerKind::ConcurrentRadix);
    assert_answers_are_true(Names::Chained, IndexerKind::ConcurrentRadix);
}

#[test]
fn positional_index_answers_are_true_while_it_is_written() {
    assert_answers_are_true(Names::Chained, IndexerKind::Positional);
}
