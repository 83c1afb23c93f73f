use super::*;

fn incarnation(id: u64, epoch: u64) -> Incarnation {
    Incarnation { worker_id: WorkerId::from_bits(id), epoch: Epoch::from_unix_ms(epoch) }
}

fn members(list: &[(u64, u64)]) -> Members {
    list.iter().map(|&(id, epoch)| (WorkerId::from_bits(id), Epoch::from_unix_ms(epoch))).collect()
}

fn verdict(tracker: &mut Tracker, publisher: Incarnation, sequence: u64) -> Verdict {
    let observed = tracker.observe(publisher, sequence);
    assert_eq!(observed.replaced, None);
    observed.verdict
}

#[test]
fn numbers_that_follow_are_delivered_and_jumps_are_gaps() {
    let mut tracker = Tracker::default();
    assert_eq!(tracker.reconcile(&members(&[(1, 10), (2, 10)])), []);
    let one = incarnation(1, 10);
    assert_eq!(verdict(&mut tracker, one, 0), Verdict::Deliver);
    assert_eq!(verdict(&mut tracker, one, 1), Verdict::Deliver);
    assert_eq!(verdict(&mut tracker, one, 5), Verdict::DeliverAfterGap { from: 2, to: 4 });
    assert_eq!(verdict(&mut tracker, one, 6), Verdict::Deliver);
    assert_eq!(verdict(&mut tracker, incarnation(2, 10), 3), Verdict::DeliverAfterGap { from: 0, to: 2 });
}

#[test]
fn what_was_seen_or_reported_missing_is_a_duplicate() {
    let mut tracker = Tracker::default();
    tracker.reconcile(&members(&[(1, 10)]));
    let one = incarnation(1, 10);
    tracker.observe(one, 5);
    for sequence in [5, 3, 0] {
        assert_eq!(verdict(&mut tracker, one, sequence), Verdict::Discard(Discard::Duplicate));
    }
    assert_eq!(verdict(&mut tracker, one, u64::MAX), Verdict::DeliverAfterGap { from: 6, to: u64::MAX - 1 });
}

#[test]
fn only_members_are_heard() {
    let mut tracker = Tracker::default();
    let one = incarnation(1, 10);
    assert_eq!(verdict(&mut tracker, one, 0), Verdict::Discard(Discard::UnknownPublisher));
    tracker.reconcile(&members(&[(1, 10)]));
    tracker.observe(one, 0);
    assert_eq!(tracker.reconcile(&members(&[])), [one]);
    assert_eq!(verdict(&mut tracker, one, 1), Verdict::Discard(Discard::UnknownPublisher));
}

#[test]
fn a_higher_epoch_replaces_a_lower_one_for_good() {
    let mut tracker = Tracker::default();
    tracker.reconcile(&members(&[(1, 10)]));
    tracker.observe(incarnation(1, 10), 0);
    assert_eq!(tracker.reconcile(&members(&[(1, 20)])), [incarnation(1, 10)]);
    assert_eq!(verdict(&mut tracker, incarnation(1, 10), 1), Verdict::Discard(Discard::Stale));
    assert_eq!(verdict(&mut tracker, incarnation(1, 20), 0), Verdict::Deliver);
}

#[test]
fn an_event_may_be_faster_than_discovery() {
    let mut tracker = Tracker::default();
    tracker.reconcile(&members(&[(1, 10)]));
    let observed = tracker.observe(incarnation(1, 20), 0);
    assert_eq!(observed, Observed { replaced: Some(incarnation(1, 10)), verdict: Verdict::Deliver });
    assert_eq!(tracker.reconcile(&members(&[(1, 10)])), []);
    assert_eq!(tracker.reconcile(&members(&[(1, 20)])), []);
    assert_eq!(verdict(&mut tracker, incarnation(1, 20), 1), Verdict::Deliver);
}

#[test]
fn a_publisher_without_epochs_is_the_one_that_discovery_knows() {
    let mut tracker = Tracker::default();
    tracker.reconcile(&members(&[(1, 10)]));
    assert_eq!(verdict(&mut tracker, incarnation(1, 0), 0), Verdict::Deliver);
    assert_eq!(tracker.incarnation(WorkerId::from_bits(1)), Some(incarnation(1, 10)));
}

#[test]
fn a_reader_of_any_stream_accounts_for_every_number() {
    use proptest::prelude::*;
    proptest!(|(sequences in proptest::collection::vec(0u64..50, 0..60))| {
        let mut tracker = Tracker::default();
        tracker.reconcile(&members(&[(1, 10)]));
        let mut accounted = 0;
        for sequence in sequences {
            match tracker.observe(incarnation(1, 10), sequence).verdict {
                Verdict::Deliver => prop_assert_eq!(sequence, accounted),
                Verdict::DeliverAfterGap { from, to } => {
                    prop_assert_eq!((from, to), (accounted, sequence - 1));
                }
                Verdict::Discard(_) => {
                    prop_assert!(sequence < accounted);
                    continue;
                }
            }
            accounted = sequence + 1;
        }
    });
}
