//! The writer beside one query, in every order, and with all that a processor may let the reader see:
//! `scripts/test.sh loom`.
//!
//! Each test is a hazard of reading without locks. Events go on while a query is under way; for each slot the query
//! has to find what it had after one of them: not before the last that the reader knew to be over when it began, nor
//! after the last that had begun when it ended. Beside that, loom reports a block that is read as a plain word while
//! it may be written, and memory that is given back while it may be looked at.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex,
        atomic::{
            AtomicUsize,
            Ordering::{Acquire, Release, SeqCst},
        },
    },
};

use dynamo_engine_api::{ExternalBlockHash, StoredBlock};
use loom::thread;

use super::{
    shared::{child_hash, child_part},
    *,
};
use crate::index::reference_model::Model;

type Event = (u32, KvCacheEventData);

/// Blocks that a slot stores; a block's name is its local hash, since no two are the same.
fn stored(slot: u32, parent: Option<u64>, blocks: &[u64]) -> Event {
    let block = |&block: &u64| StoredBlock {
        block_hash: ExternalBlockHash(block),
        tokens_hash: LocalBlockHash(block),
    };
    let blocks = blocks.iter().map(block).collect();
    (slot, KvCacheEventData::Stored { parent_hash: parent.map(ExternalBlockHash), blocks })
}

fn removed(slot: u32, blocks: &[u64]) -> Event {
    let block_hashes = blocks.iter().copied().map(ExternalBlockHash).collect();
    (slot, KvCacheEventData::Removed { block_hashes })
}

fn apply(index: &mut RunIndex, (slot, event): &Event) {
    index.apply(Slot::new(*slot, 0), event).expect("an event that applies");
}

/// Blocks of the query by slot.
type Answer = BTreeMap<Slot, u32>;

struct Story {
    before: Vec<Event>,
    beside: Vec<Event>,
    query: Vec<u64>,
}

impl Story {
    /// What is true after the first events, and after each one beside the query.
    fn states(&self) -> Vec<Answer> {
        let mut model = Model::default();
        let after = |(slot, event): &Event| {
            model.apply(Slot::new(*slot, 0), event).expect("an event that applies");
            model.find(&self.query).into_iter().collect()
        };
        let mut states: Vec<_> = self.before.iter().chain(&self.beside).map(after).collect();
        states.split_off(self.before.len() - 1)
    }

    /// Tells it in every order with up to `preemptions` changes from one thread to the other where none has to wait.
    fn holds(self, preemptions: usize) {
        let states = self.states();
        let seen = Arc::new(Mutex::new(BTreeSet::new()));
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(preemptions);
        model.max_branches = 20_000;
        let tell = {
            let (states, seen) = (Arc::new(states.clone()), seen.clone());
            move || tell(&self, &states, &seen)
        };
        model.check(tell);
        let seen = seen.lock().expect("no panic");
        for state in &states {
            assert!(seen.contains(state), "the query never came at the time of {state:?}");
        }
    }
}

fn tell(story: &Story, states: &Arc<Vec<Answer>>, seen: &Arc<Mutex<BTreeSet<Answer>>>) {
    let mut index = RunIndex::new();
    story.before.iter().for_each(|event| apply(&mut index, event));
    // The reader learns from the one that events are over, and with it what they wrote. The other is no part of the
    // program: nobody can see what was not written yet.
    let over = Arc::new(loom::sync::atomic::AtomicUsize::new(0));
    let begun = Arc::new(AtomicUsize::new(0));
    let reader = {
        let (reader, over, begun) = (index.reader(), over.clone(), begun.clone());
        let (states, seen) = (states.clone(), seen.clone());
        let query: Vec<_> = story.query.iter().copied().map(LocalBlockHash).collect();
        thread::spawn(move || {
            let mut out = MatchBuffer::default();
            let first = over.load(Acquire);
            reader.find_matches(&query, &mut out);
            let during = &states[first..=begun.load(SeqCst)];
            let answer: Answer =
                out.matches().iter().map(|found| (found.slot, found.device_blocks)).collect();
            let slots: BTreeSet<_> = during.iter().chain([&answer]).flat_map(|state| state.keys()).collect();
            for slot in slots {
                let is_true = during.iter().any(|state| state.get(slot) == answer.get(slot));
                assert!(is_true, "{answer:?} is none of {during:?} for {slot:?}");
            }
            seen.lock().expect("no panic").insert(answer);
        })
    };
    for (number, event) in (1..).zip(&story.beside) {
        begun.store(number, SeqCst);
        apply(&mut index, event);
        over.store(number, Release);
    }
    reader.join().expect("no panic");
}

#[test]
fn a_slot_gains_and_loses_blocks_of_a_run() {
    let story = Story {
        before: vec![stored(0, None, &[1, 2, 3]), stored(1, None, &[1])],
        beside: vec![stored(1, Some(1), &[2, 3]), removed(1, &[3])],
        query: vec![1, 2, 3],
    };
    story.holds(3);
}

/// The first five holders of two blocks, which fill the header.
#[test]
fn a_run_grows_block_by_block() {
    let story = Story {
        before: vec![stored(0, None, &[1]), stored(1, None, &[1])],
        beside: vec![stored(0, Some(1), &[2]), stored(0, Some(2), &[3])],
        query: vec![1, 2, 3],
    };
    story.holds(3);
}

fn five_holders() -> Vec<Event> {
    (0..5).map(|slot| stored(slot, None, &[1, 2])).collect()
}

#[test]
fn a_sixth_holder_moves_the_words_into_a_list() {
    let story = Story {
        before: five_holders(),
        beside: vec![stored(5, None, &[1]), removed(4, &[2])],
        query: vec![1, 2],
    };
    story.holds(2);
}

#[test]
fn a_list_that_few_are_left_in_goes_back_into_the_header() {
    let mut before = five_holders();
    before.extend([stored(5, None, &[1, 2]), removed(4, &[2, 1]), removed(5, &[2, 1])]);
    // Something else is given back, so that a reader that comes now did not see the header in use.
    before.extend([stored(0, None, &[9]), removed(0, &[9])]);
    let beside = vec![removed(1, &[2, 1]), removed(3, &[2]), stored(1, None, &[1])];
    Story { before, beside, query: vec![1, 2] }.holds(2);
}

#[test]
fn the_header_is_left_alone_while_readers_may_look_at_it_for_holders_in_a_list() {
    let beside = vec![stored(5, None, &[1]), removed(0, &[2, 1]), removed(1, &[2, 1]), removed(5, &[1])];
    Story { before: five_holders(), beside, query: vec![1, 2] }.holds(2);
}

#[test]
fn a_shortened_run_is_not_lengthened_by_another_block_under_a_readers_eyes() {
    for query in [vec![1, 2, 3], vec![1, 2, 4]] {
        let story = Story {
            before: vec![stored(0, None, &[1, 2, 3]), stored(1, None, &[1, 2])],
            beside: vec![removed(0, &[3]), stored(1, Some(2), &[4])],
            query,
        };
        story.holds(3);
    }
}

#[test]
fn a_run_moves_and_others_get_its_room() {
    let blocks: Vec<u64> = (1..=8).collect();
    let query: Vec<u64> = (1..=9).collect();
    let story = Story {
        // The second run is in the way of the first.
        before: vec![stored(0, None, &blocks), stored(0, None, &[20])],
        beside: vec![stored(0, Some(8), &[9]), stored(1, None, &[30, 31])],
        query,
    };
    story.holds(2);
}

/// Slot 0 has a block in a run that others go on in another way, and a run behind that block.
fn two_runs() -> Vec<Event> {
    vec![stored(1, None, &[1, 2]), stored(0, None, &[1]), stored(0, Some(1), &[3])]
}

#[test]
fn a_block_in_front_of_others_is_lost_and_regained_in_one_step() {
    let story = Story {
        before: two_runs(),
        beside: vec![removed(0, &[1]), stored(0, None, &[1])],
        query: vec![1, 3],
    };
    story.holds(2);
}

#[test]
fn what_is_regained_and_what_is_lost_behind_are_not_mixed_up() {
    let mut before = two_runs();
    before.push(removed(0, &[1]));
    let beside = vec![stored(0, None, &[1]), removed(0, &[3])];
    Story { before, beside, query: vec![1, 3] }.holds(2);
}

#[test]
fn a_runs_number_and_blocks_are_used_again_by_another() {
    for query in [vec![1, 2], vec![1, 8]] {
        let story = Story {
            before: vec![stored(0, None, &[1, 2]), stored(1, None, &[9])],
            beside: vec![removed(0, &[2, 1]), stored(1, None, &[1, 8])],
            query,
        };
        story.holds(2);
    }
}

#[test]
fn chunks_go_with_the_last_block_and_are_made_again() {
    let story = Story {
        before: vec![stored(0, None, &[1, 2])],
        beside: vec![removed(0, &[2, 1]), stored(1, None, &[1, 8])],
        query: vec![1, 2],
    };
    story.holds(2);
}

/// First blocks that hang in one part of the table of children.
fn firsts(part: usize) -> impl Iterator<Item = u64> {
    (1..).filter(move |&local| child_part(child_hash(ROOT, 0, local)) == part)
}

#[test]
fn a_part_of_the_table_of_children_is_written_anew_and_its_room_used_again() {
    let ours: Vec<u64> = firsts(0).take(6).collect();
    let before = ours[..5].iter().map(|&first| stored(0, None, &[first])).collect();
    let beside = vec![stored(0, None, &ours[5..]), stored(0, None, &[firsts(1).next().expect("any")])];
    Story { before, beside, query: vec![ours[0]] }.holds(2);
}

#[test]
fn a_part_of_the_table_of_children_becomes_empty_and_is_filled_again() {
    let first = firsts(0).next().expect("any");
    let others = firsts(1).next().expect("any");
    let story = Story {
        before: vec![stored(0, None, &[first]), stored(0, None, &[others])],
        beside: vec![removed(0, &[first]), stored(1, None, &[first])],
        query: vec![first],
    };
    story.holds(2);
}
