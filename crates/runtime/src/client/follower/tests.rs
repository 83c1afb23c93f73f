use std::sync::Arc;

use tokio::time::Instant;

use super::{DOUBT, Follower};
use crate::client::InstanceState;
use crate::discovery::test_records::endpoint;
use crate::discovery::{Change, Record, RecordState};
use crate::identity::Epoch;

fn record(id: u64, edit: impl FnOnce(&mut crate::discovery::EndpointRecord)) -> Record {
    let Record::Endpoint(mut record) = endpoint("ns/comp/ep", id) else { unreachable!() };
    edit(&mut record);
    Record::Endpoint(record)
}

fn states(follower: &Follower) -> Vec<(u64, InstanceState)> {
    follower.snapshot().iter().map(|i| (i.worker_id().get(), i.state())).collect()
}

#[test]
fn a_worker_that_drained_is_forgotten_and_one_that_vanished_is_in_doubt() {
    let (mut follower, now) = (Follower::default(), Instant::now());
    follower.apply(Change::Snapshot(vec![record(1, |_| {}), record(2, |_| {})]), now);
    follower.apply(Change::Put(record(1, |r| r.state = RecordState::Draining)), now);
    assert_eq!(states(&follower), [(1, InstanceState::Draining), (2, InstanceState::Ready)]);
    follower.apply(Change::Removed(record(1, |_| {}).key()), now);
    follower.apply(Change::Removed(record(2, |_| {}).key()), now);
    assert_eq!(states(&follower), [(2, InstanceState::InDoubt)]);
    assert_eq!((follower.in_doubt(), follower.next_expiry()), (1, Some(now + DOUBT)));
    assert!(!follower.expire(now + DOUBT / 2));
    assert!(follower.expire(now + DOUBT));
    assert_eq!(states(&follower), []);
}

#[test]
fn a_snapshot_casts_doubt_on_whom_it_does_not_mention() {
    let (mut follower, now) = (Follower::default(), Instant::now());
    follower.apply(Change::Snapshot(vec![record(1, |_| {}), record(2, |_| {})]), now);
    follower.apply(Change::Snapshot(vec![record(2, |_| {})]), now);
    assert_eq!(states(&follower), [(1, InstanceState::InDoubt), (2, InstanceState::Ready)]);
    // The record comes back: so does the worker.
    follower.apply(Change::Put(record(1, |_| {})), now);
    assert_eq!(states(&follower), [(1, InstanceState::Ready), (2, InstanceState::Ready)]);
    assert_eq!(follower.next_expiry(), None);
}

#[test]
fn a_doubtful_worker_that_does_not_answer_is_given_up_at_once() {
    let (mut follower, now) = (Follower::default(), Instant::now());
    let incarnation = record(1, |_| {}).incarnation();
    follower.apply(Change::Put(record(1, |_| {})), now);
    assert!(!follower.give_up(incarnation), "while discovery knows it, its breaker decides");
    follower.apply(Change::Snapshot(vec![]), now);
    assert!(follower.give_up(incarnation));
    assert_eq!(states(&follower), []);
}

#[test]
fn a_later_incarnation_starts_with_a_clean_record_and_an_earlier_one_is_ignored() {
    let (mut follower, now) = (Follower::default(), Instant::now());
    follower.apply(Change::Put(record(1, |_| {})), now);
    let first = follower.snapshot()[0].clone();
    follower.apply(Change::Put(record(1, |r| r.state = RecordState::Draining)), now);
    assert!(
        Arc::ptr_eq(&first.breaker, &follower.snapshot()[0].breaker),
        "the same incarnation keeps its breaker"
    );
    let later = record(1, |r| r.incarnation.epoch = Epoch::from_unix_ms(2000));
    follower.apply(Change::Put(later), now);
    let second = follower.snapshot()[0].clone();
    assert!(!Arc::ptr_eq(&first.breaker, &second.breaker));
    assert!(!follower.apply(Change::Put(record(1, |r| r.state = RecordState::Draining)), now));
    assert_eq!(follower.snapshot()[0].incarnation().epoch.get(), 2000);
}

#[test]
fn a_record_without_a_usable_address_is_skipped() {
    let mut follower = Follower::default();
    assert!(!follower.apply(Change::Put(record(1, |r| r.address = "nowhere".into())), Instant::now()));
    assert_eq!(states(&follower), []);
}
