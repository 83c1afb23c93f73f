use std::time::{Duration, Instant};

use dynamo_tokens::BlockSize;

use super::*;
use crate::{KvRouterConfig, KvScheduler, Slot, SlotLoad, WorkerSlot};

const HERE: WorkerRank = WorkerRank { worker_id: 7, dp_rank: 0 };

fn scheduler() -> KvScheduler {
    scheduler_of(KvRouterConfig::REFERENCE)
}

fn scheduler_of(config: KvRouterConfig) -> KvScheduler {
    let mut scheduler = KvScheduler::new(config, BlockSize::new(4).unwrap(), 1).unwrap();
    scheduler.set_worker(7, 1, &[WorkerSlot { dp_rank: 0, slot: Slot::new(0, 0) }], false);
    scheduler
}

fn event(router_id: u64, request_id: &str, data: ActiveSequenceChange) -> ActiveSequenceEvent {
    ActiveSequenceEvent { request_id: request_id.to_owned(), worker: HERE, data, router_id, lora_name: None }
}

fn added(blocks: std::ops::Range<u64>) -> ActiveSequenceChange {
    ActiveSequenceChange::AddRequest {
        token_sequence: Some(blocks.map(SequenceHash).collect()),
        track_prefill_tokens: true,
        expected_output_tokens: None,
        prefill_load_hint: Some(PrefillLoadHint { initial_effective_prefill_tokens: 30 }),
    }
}

fn load(scheduler: &KvScheduler) -> SlotLoad {
    scheduler.worker_loads().next().unwrap().1
}

#[test]
fn what_other_routers_say_counts_like_ones_own() {
    let (mut scheduler, now) = (scheduler(), Instant::now());
    let mut bookings = ReplicaBookings::new(1, now);
    let mut apply =
        |event: &ActiveSequenceEvent, scheduler: &mut KvScheduler| bookings.apply(event, scheduler, now);
    use ActiveSequenceChange::{Free, MarkPrefillCompleted};
    assert_eq!(apply(&event(1, "a", added(0..5)), &mut scheduler), ReplicaOutcome::Own);
    assert_eq!(apply(&event(2, "a", added(0..5)), &mut scheduler), ReplicaOutcome::Applied);
    assert_eq!(apply(&event(2, "a", added(0..5)), &mut scheduler), ReplicaOutcome::Duplicate);
    assert_eq!(apply(&event(3, "a", added(0..7)), &mut scheduler), ReplicaOutcome::Applied);
    assert_eq!(load(&scheduler), SlotLoad { prefill_tokens: 60, decode_blocks: 7.0, requests: 2 });
    assert_eq!(apply(&event(3, "a", MarkPrefillCompleted), &mut scheduler), ReplicaOutcome::Applied);
    assert_eq!(load(&scheduler).prefill_tokens, 30);
    assert_eq!(apply(&event(3, "a", Free), &mut scheduler), ReplicaOutcome::Applied);
    assert_eq!(apply(&event(3, "a", Free), &mut scheduler), ReplicaOutcome::UnknownRequest);
    assert_eq!(apply(&event(3, "a", MarkPrefillCompleted), &mut scheduler), ReplicaOutcome::UnknownRequest);
    let elsewhere =
        ActiveSequenceEvent { worker: WorkerRank { worker_id: 8, dp_rank: 0 }, ..event(2, "b", added(0..1)) };
    assert_eq!(apply(&elsewhere, &mut scheduler), ReplicaOutcome::UnknownWorker);
    assert_eq!(load(&scheduler), SlotLoad { prefill_tokens: 30, decode_blocks: 5.0, requests: 1 });
    assert_eq!(bookings.len(), 1);
}

#[test]
fn what_a_dead_router_booked_goes_with_it_or_expires() {
    let (mut scheduler, now) = (scheduler(), Instant::now());
    let mut bookings = ReplicaBookings::new(1, now);
    for (router, request) in [(2, "a"), (2, "b"), (3, "a")] {
        bookings.apply(&event(router, request, added(0..5)), &mut scheduler, now);
    }
    assert_eq!(bookings.forget_router(2, &mut scheduler, now), 2);
    assert_eq!((load(&scheduler).requests, bookings.len()), (1, 1));
    let later = now + KvRouterConfig::REFERENCE.active_request_expiry;
    assert_eq!(scheduler.expire(later), 1);
    assert_eq!(load(&scheduler), SlotLoad::default());
    bookings.sweep(&scheduler, later);
    assert!(bookings.is_empty());
    let again = bookings.apply(&event(3, "a", added(0..5)), &mut scheduler, later);
    assert_eq!(again, ReplicaOutcome::Applied, "the name is free again");
}

#[test]
fn the_wire_form_is_a_list_of_named_maps() {
    let events = [event(5, "r", added(1..3)), event(5, "r", ActiveSequenceChange::Free)];
    let bytes = rmp_serde::to_vec_named(&events[..]).unwrap();
    let read: Vec<ActiveSequenceEvent> = rmp_serde::from_slice(&bytes).unwrap();
    assert_eq!(read, events);
    let text = String::from_utf8_lossy(&bytes);
    for name in [
        "request_id",
        "worker",
        "worker_id",
        "dp_rank",
        "data",
        "AddRequest",
        "token_sequence",
        "router_id",
        "Free",
    ] {
        assert!(text.contains(name), "{name}");
    }
}

#[test]
fn a_full_outbox_drops_the_newest_and_counts() {
    let mut outbox = ReplicaOutbox::default();
    let mut pushed = 0;
    while outbox.push(event(1, &pushed.to_string(), ActiveSequenceChange::Free)) {
        pushed += 1;
    }
    assert_eq!((outbox.len(), outbox.dropped()), (pushed, 1));
    let (mut batch, mut seen) = (Vec::new(), 0);
    loop {
        outbox.take_batch(&mut batch);
        if batch.is_empty() {
            break;
        }
        assert!(batch.len() <= MAX_REPLICA_BATCH);
        for event in &batch {
            assert_eq!(event.request_id, seen.to_string());
            seen += 1;
        }
    }
    assert_eq!((seen, outbox.is_empty()), (pushed, true));
    let long = || event(1, "long", added(0..1_500_000));
    assert!(outbox.push(long()) && !outbox.push(long()), "bytes are bounded too");
    for _ in 0..3 {
        assert!(outbox.push(event(1, "a", added(0..7_000))));
    }
    let mut sizes = Vec::new();
    while !outbox.is_empty() {
        outbox.take_batch(&mut batch);
        sizes.push(batch.len());
    }
    assert_eq!(sizes, [1, 2, 1]);
}

#[test]
fn prompts_of_other_routers_count_less_while_they_are_computed() {
    use ActiveSequenceChange::{Free, MarkPrefillCompleted};
    let config =
        KvRouterConfig { prefill_load_model: crate::PrefillLoadModel::Measured, ..KvRouterConfig::REFERENCE };
    let (mut scheduler, mut now) = (scheduler_of(config), Instant::now());
    let mut bookings = ReplicaBookings::new(1, now);
    let ms = Duration::from_millis;
    for name in 0..20 {
        let name = name.to_string();
        for (change, after) in [(added(0..0), 0), (MarkPrefillCompleted, 30), (Free, 30)] {
            bookings.apply(&event(2, &name, change), &mut scheduler, now + ms(after));
        }
        now += ms(50);
    }
    bookings.apply(&event(3, "a", added(0..0)), &mut scheduler, now);
    let cost = |scheduler: &mut KvScheduler, now| {
        scheduler
            .choose(&crate::ScheduleRequest::default(), &crate::MatchBuffer::default(), now)
            .unwrap()
            .cost
    };
    let at_first = cost(&mut scheduler, now);
    // A token in a millisecond: 20 of 30 are left.
    assert!((cost(&mut scheduler, now + ms(10)) - at_first * 20.0 / 30.0).abs() < 1e-9);
    assert_eq!(load(&scheduler).prefill_tokens, 30);
}
