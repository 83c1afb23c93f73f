use std::{collections::BTreeSet, num::NonZeroUsize};

use dynamo_engine_api::{ExternalBlockHash, StoredBlock};
use dynamo_tokens::LocalBlockHash;
use proptest::prelude::*;

use super::*;
use crate::{
    IndexerKind, LOCAL_EVENT_BUFFER, LocalIndexer, MatchBuffer, Slot, TieredIndex, TieredWriter, with_tiers,
};

const EPOCH: u64 = 9;

fn stored(hash: u64) -> KvCacheEventData {
    let block = StoredBlock { block_hash: ExternalBlockHash(hash), tokens_hash: LocalBlockHash(hash) };
    KvCacheEventData::Stored { parent_hash: hash.checked_sub(1).map(ExternalBlockHash), blocks: vec![block] }
}

const DEVICE: StorageTier = StorageTier::Device;

fn event(event_id: u64) -> RankEvent {
    RankEvent { event_id, data: stored(event_id), dp_rank: 0, storage_tier: DEVICE }
}

/// As it is to be applied.
fn change(hash: u64) -> (StorageTier, KvCacheEventData) {
    (DEVICE, stored(hash))
}

fn order() -> EventOrder {
    EventOrder::new(0, EPOCH, RecoveryPolicy::REFERENCE)
}

/// An order that has applied events up to `last`.
fn live(last: u64, now: Instant) -> EventOrder {
    let mut order = order();
    let token = order.request_dump(now).unwrap().token;
    order.answered(token, KvQueryAnswer::TreeDump { events: vec![], last_event_id: last }, now);
    order
}

fn recover(observed: Observed) -> RecoveryRequest {
    match observed {
        Observed::Recover(request) => request,
        other => panic!("{other:?}"),
    }
}

fn range(start: u64, end: u64) -> KvQuery {
    KvQuery { dp_rank: 0, start_event_id: Some(start), end_event_id: Some(end) }
}

#[test]
fn events_in_order_are_applied_and_repeats_dropped() {
    let (mut order, now) = (order(), Instant::now());
    assert_eq!(order.observe(EPOCH, event(1), now), Observed::Apply(event(1)));
    assert_eq!(order.observe(EPOCH, event(2), now), Observed::Apply(event(2)));
    assert_eq!(order.observe(EPOCH, event(2), now), Observed::Drop(DropReason::Stale));
    assert_eq!(order.observe(EPOCH - 1, event(3), now), Observed::Drop(DropReason::StaleEpoch));
    assert_eq!(order.last_event_id(), Some(2));
}

#[test]
fn a_gap_is_asked_for_and_what_came_meanwhile_follows() {
    let now = Instant::now();
    let mut order = live(3, now);
    let request = recover(order.observe(EPOCH, event(6), now));
    assert_eq!((request.query, request.not_before), (range(4, 5), now));
    assert_eq!(order.observe(EPOCH, event(7), now), Observed::Held);
    assert_eq!(order.observe(EPOCH, event(7), now), Observed::Drop(DropReason::Stale));
    assert_eq!(order.observe(EPOCH, event(9), now), Observed::Held);
    assert!(order.is_recovering());
    let answer = KvQueryAnswer::Events { events: vec![event(4), event(5)], last_event_id: 5 };
    let recovered = order.answered(request.token, answer.clone(), now);
    assert_eq!(recovered.events, [4, 5, 6, 7].map(change));
    assert_eq!(recovered.next.unwrap().query, range(8, 8));
    assert_eq!(order.answered(request.token, answer, now), Recovered::default(), "an old answer");
    let answer = KvQueryAnswer::Events { events: vec![event(8)], last_event_id: 8 };
    let recovered = order.answered(recovered.next.unwrap().token, answer, now);
    assert_eq!((recovered.events, recovered.next), ([8, 9].map(change).to_vec(), None));
    assert_eq!(order.observe(EPOCH, event(10), now), Observed::Apply(event(10)));
}

#[test]
fn an_unknown_start_asks_for_a_dump_which_sets_the_cursor() {
    let (mut order, now) = (order(), Instant::now());
    let request = recover(order.observe(EPOCH, event(5), now));
    assert_eq!(request.query.start_event_id, None);
    assert_eq!(order.request_dump(now), None, "one question at a time");
    order.observe(EPOCH, event(6), now);
    order.observe(EPOCH, event(7), now);
    let events = vec![RankEvent { event_id: 0, ..event(1) }];
    let dump = KvQueryAnswer::TreeDump { events, last_event_id: 6 };
    let recovered = order.answered(request.token, dump, now);
    assert_eq!((recovered.replace, recovered.events), (true, [1, 7].map(change).to_vec()));
    assert_eq!(order.last_event_id(), Some(7));
}

#[test]
fn failures_back_off_and_end_in_applying_what_is_there() {
    let mut now = Instant::now();
    let mut order = live(3, now);
    let mut request = recover(order.observe(EPOCH, event(6), now));
    let mut waits = Vec::new();
    let gave_up = loop {
        let recovered = order.failed(request.token, now);
        let Some(next) = recovered.next else { break recovered };
        assert_eq!(next.query, request.query);
        waits.push((next.not_before - now).as_millis());
        now = next.not_before;
        request = next;
    };
    assert_eq!(waits, [200, 400, 800, 1600, 3200, 6400, 12800, 25600]);
    assert_eq!(gave_up, Recovered { events: vec![change(6)], gave_up: true, ..Recovered::default() });
    assert_eq!(order.observe(EPOCH, event(7), now), Observed::Apply(event(7)));
}

#[test]
fn a_worker_that_does_not_have_its_own_events_is_asked_for_all_and_not_for_ever() {
    let now = Instant::now();
    let mut order = live(3, now);
    let mut request = recover(order.observe(EPOCH, event(6), now));
    let mut questions = 0;
    let last = loop {
        questions += 1;
        let answer = match request.query.start_event_id {
            Some(start) => {
                KvQueryAnswer::TooNew { requested_start: start, requested_end: None, newest_available: 3 }
            }
            None => KvQueryAnswer::TreeDump { events: vec![], last_event_id: 3 },
        };
        let recovered = order.answered(request.token, answer, now);
        match recovered.next {
            Some(next) => request = next,
            None => break recovered,
        }
    };
    assert!(last.gave_up && questions == 9, "{questions}");
    assert_eq!(order.last_event_id(), Some(6));
}

#[test]
fn a_higher_epoch_starts_anew() {
    let now = Instant::now();
    let mut order = live(30, now);
    let old = recover(order.observe(EPOCH, event(40), now));
    assert_eq!(order.observe(EPOCH + 1, event(1), now), Observed::Apply(event(1)));
    assert_eq!(order.epoch(), EPOCH + 1);
    let late = KvQueryAnswer::Events { events: vec![event(31)], last_event_id: 31 };
    assert_eq!(order.answered(old.token, late, now), Recovered::default());
    assert_eq!(order.observe(EPOCH, event(41), now), Observed::Drop(DropReason::StaleEpoch));
}

#[test]
fn a_clear_voids_what_was_missing() {
    let now = Instant::now();
    let mut order = live(3, now);
    let lost = recover(order.observe(EPOCH, event(6), now));
    let cleared = RankEvent { data: KvCacheEventData::Cleared, ..event(9) };
    // That of a lower tier alone voids nothing else.
    let host = RankEvent { event_id: 8, storage_tier: StorageTier::HostPinned, ..cleared.clone() };
    assert_eq!(order.observe(EPOCH, host, now), Observed::Held);
    assert_eq!(order.observe(EPOCH, cleared.clone(), now), Observed::Apply(cleared));
    assert_eq!(order.failed(lost.token, now), Recovered::default());
    assert_eq!(order.observe(EPOCH, event(10), now), Observed::Apply(event(10)));
}

#[test]
fn the_buffer_is_bounded_and_what_it_lost_is_asked_for_again() {
    let now = Instant::now();
    let mut order = live(0, now);
    let first = recover(order.observe(EPOCH, event(3), now));
    let end = MAX_HELD_EVENTS as u64 + 13;
    for id in 4..end {
        assert_eq!(order.observe(EPOCH, event(id), now), Observed::Held);
    }
    assert_eq!((order.held.len(), order.overflowed_events()), (MAX_HELD_EVENTS, 10));
    let answer = KvQueryAnswer::Events { events: vec![event(1), event(2)], last_event_id: 2 };
    let next = order.answered(first.token, answer, now).next.unwrap();
    assert_eq!(next.query, range(3, 12));
}

/// A worker, a wire that loses events, and a router that recovers.
struct World {
    worker: LocalIndexer,
    order: EventOrder,
    reader: TieredIndex,
    index: TieredWriter,
    question: Option<RecoveryRequest>,
    now: Instant,
}

const SLOT: Slot = Slot::new(0, 0);

impl World {
    fn apply(&mut self, tier: StorageTier, data: &KvCacheEventData) {
        self.index.apply(SLOT, tier, data).unwrap();
    }

    fn deliver(&mut self, event: RankEvent) {
        match self.order.observe(EPOCH, event, self.now) {
            Observed::Apply(event) => self.apply(event.storage_tier, &event.data),
            Observed::Recover(request) => self.question = Some(request),
            Observed::Held => {}
            Observed::Drop(reason) => panic!("{reason:?}"),
        }
    }

    fn answer(&mut self, fails: bool) {
        let Some(request) = self.question.take() else { return };
        self.now = self.now.max(request.not_before);
        let recovered = if fails {
            self.order.failed(request.token, self.now)
        } else {
            let answer = self.worker.answer(&request.query);
            self.order.answered(request.token, answer, self.now)
        };
        assert!(!recovered.gave_up);
        if recovered.replace {
            self.index.clear(SLOT);
        }
        for (tier, data) in &recovered.events {
            self.apply(*tier, data);
        }
        self.question = recovered.next;
    }
}

proptest! {
    #[test]
    fn whatever_is_lost_the_index_ends_up_like_the_worker(
        steps in prop::collection::vec((0..10u8, 0..6u64, any::<bool>(), 0..4u8, 0..20u8), 1..200),
        burst in prop::option::of(0..LOCAL_EVENT_BUFFER + 200),
    ) {
        let order = order();
        let now = Instant::now();
        let (reader, mut writers) = with_tiers(IndexerKind::Radix.build(NonZeroUsize::MIN));
        let (worker, index) = (LocalIndexer::new(0), writers.remove(0));
        let mut world = World { worker, order, reader, index, question: None, now };
        let mut held: Vec<u64> = Vec::new();
        let mut on_host: BTreeSet<u64> = BTreeSet::new();
        let mut failures = 0;
        for (kind, len, arrives, answers, fails) in steps {
            let mut tier = DEVICE;
            let data = match kind {
                0 if !held.is_empty() => {
                    let last = held.pop().unwrap();
                    KvCacheEventData::Removed { block_hashes: vec![ExternalBlockHash(last)] }
                }
                1 if len == 0 => {
                    held.clear();
                    on_host.clear();
                    KvCacheEventData::Cleared
                }
                2 if !held.is_empty() => {
                    tier = StorageTier::HostPinned;
                    let block = len % held.len() as u64;
                    on_host.insert(block);
                    stored(block)
                }
                3 if !on_host.is_empty() => {
                    tier = StorageTier::HostPinned;
                    let block = if len % 2 == 0 { on_host.pop_first() } else { on_host.pop_last() };
                    KvCacheEventData::Removed { block_hashes: vec![ExternalBlockHash(block.unwrap())] }
                }
                _ => {
                    held.push(held.len() as u64);
                    stored(held.len() as u64 - 1)
                }
            };
            let event = match tier {
                DEVICE => world.worker.record(data),
                lower => world.worker.record_lower(lower, data).unwrap(),
            };
            if arrives {
                world.deliver(event);
            }
            if answers == 0 {
                let fails = fails == 0 && failures < 5;
                failures += usize::from(fails);
                world.answer(fails);
            }
        }
        for _ in 0..burst.unwrap_or(0) {
            held.push(held.len() as u64);
            world.worker.record(stored(held.len() as u64 - 1));
        }
        // The next event that arrives shows whatever was lost before it.
        held.push(held.len() as u64);
        let event = world.worker.record(stored(held.len() as u64 - 1));
        world.deliver(event);
        while world.question.is_some() {
            world.answer(false);
        }
        prop_assert_eq!(world.order.last_event_id(), Some(world.worker.last_event_id()));
        prop_assert_eq!(world.index.held_blocks(SLOT), held.len() as u32);
        let end = on_host.last().map_or(0, |last| last + 1).max(held.len() as u64);
        let query: Vec<_> = (0..end).map(LocalBlockHash).collect();
        let mut out = MatchBuffer::default();
        world.reader.find_matches(&query, &mut out);
        prop_assert_eq!(out.device_blocks(SLOT), held.len() as u32);
        let on_any = (0..end).take_while(|&block| block < held.len() as u64 || on_host.contains(&block));
        prop_assert_eq!(out.tiers(SLOT).host_blocks, on_any.count() as u32);
    }
}
