use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;

const EXPIRY: Duration = Duration::from_secs(300);

fn tracker() -> ActiveSequences {
    ActiveSequences::new(BlockSize::new(4).unwrap(), EXPIRY, 100, PrefillLoadModel::None)
}

fn measuring() -> ActiveSequences {
    ActiveSequences::new(BlockSize::new(4).unwrap(), EXPIRY, 100, PrefillLoadModel::Measured)
}

/// The prefill tokens of a slot as a choice sees them.
fn outstanding(tracker: &ActiveSequences, index: u32, now: Instant) -> u64 {
    let mut loads = PotentialLoads::default();
    tracker.potential(&[], 0, 4, &mut loads);
    tracker.take_computed_off(&mut loads, now);
    loads.get(slot(index)).unwrap().prefill_tokens
}

fn slot(index: u32) -> Slot {
    Slot::new(index, 0)
}

fn hashes(range: std::ops::Range<u64>) -> Vec<SequenceHash> {
    range.map(SequenceHash).collect()
}

fn request<'a>(slot: Slot, prompt_blocks: &'a [SequenceHash]) -> NewRequest<'a> {
    NewRequest {
        slot,
        prompt_blocks,
        private_blocks: 0,
        prefill_tokens: prompt_blocks.len() as u64 * 4 + 2,
        expected_output_tokens: None,
    }
}

fn assert_zero(tracker: &ActiveSequences) {
    for index in 0..4 {
        assert_eq!(tracker.load(slot(index)), SlotLoad::default());
    }
    assert_eq!((tracker.len(), tracker.tracked_blocks()), (0, 0));
    assert!(tracker.is_empty());
}

#[test]
fn common_blocks_count_once_a_slot_and_prefill_until_the_first_token() {
    let (mut tracker, now) = (tracker(), Instant::now());
    let blocks = hashes(0..10);
    let first =
        tracker.add_request(&NewRequest { prefill_tokens: 30, ..request(slot(0), &blocks) }, now).unwrap();
    let second = tracker.add_request(&request(slot(0), &blocks[..6]), now).unwrap();
    let other = tracker.add_request(&request(slot(1), &blocks[..2]), now).unwrap();
    let expected = SlotLoad { prefill_tokens: 30 + 26, decode_blocks: 10.0, requests: 2 };
    assert_eq!(tracker.load(slot(0)), expected);
    tracker.mark_prefill_completed(first, now);
    tracker.mark_prefill_completed(first, now);
    assert_eq!(tracker.load(slot(0)).prefill_tokens, 26);
    assert!(tracker.free(first, now));
    assert!(!tracker.free(first, now), "freed once");
    assert_eq!(tracker.load(slot(0)), SlotLoad { prefill_tokens: 26, decode_blocks: 6.0, requests: 1 });
    tracker.free(second, now);
    tracker.free(other, now);
    assert_zero(&tracker);
}

#[test]
fn potential_adds_what_each_slot_does_not_have_yet() {
    let (mut tracker, now) = (tracker(), Instant::now());
    let blocks = hashes(0..10);
    tracker.add_request(&request(slot(0), &blocks[..6]), now).unwrap();
    tracker.add_request(&request(slot(2), &hashes(50..53)), now).unwrap();
    let mut loads = PotentialLoads::default();
    tracker.potential(&blocks, 0, 4, &mut loads);
    let decode: Vec<_> = (0..4).map(|index| loads.get(slot(index)).unwrap().decode_blocks).collect();
    assert_eq!(decode, [10.0, 10.0, 13.0, 10.0]);
    assert_eq!(loads.get(slot(0)).unwrap().prefill_tokens, 26);
    tracker.potential(&[], 5, 1, &mut loads);
    assert_eq!(loads.get(slot(2)).unwrap().decode_blocks, 8.0);
}

#[test]
fn answer_blocks_weigh_less_as_the_expected_end_comes_near() {
    let (mut tracker, now) = (tracker(), Instant::now());
    let blocks = hashes(0..2);
    let plain = tracker.add_request(&request(slot(0), &blocks), now).unwrap();
    let expecting = NewRequest { expected_output_tokens: Some(16), ..request(slot(1), &blocks) };
    let expecting = tracker.add_request(&expecting, now).unwrap();
    let mut seen = Vec::new();
    for _ in 0..5 {
        tracker.add_output_block(plain, now);
        tracker.add_output_block(expecting, now);
        seen.push((tracker.load(slot(0)).decode_blocks, tracker.load(slot(1)).decode_blocks));
    }
    // Two blocks of prompt and n of answer, at 3/4, 1/2, 1/4 and 0.
    assert_eq!(seen, [(3.0, 2.25), (4.0, 2.0), (5.0, 1.25), (6.0, 0.0), (7.0, 0.0)]);
    let sharing = tracker.add_request(&request(slot(1), &blocks[..1]), now).unwrap();
    tracker.add_output_block(expecting, now);
    assert_eq!(tracker.load(slot(1)).decode_blocks, 1.0, "what another request needs as well counts in full");
    tracker.free(sharing, now);
    tracker.free(plain, now);
    tracker.free(expecting, now);
    assert_zero(&tracker);
}

#[test]
fn silent_requests_expire_and_living_ones_do_not() {
    let (mut tracker, start) = (tracker(), Instant::now());
    let blocks = hashes(0..3);
    let silent = tracker.add_request(&request(slot(0), &blocks), start).unwrap();
    let living = tracker.add_request(&request(slot(1), &blocks), start).unwrap();
    tracker.touch(living, start + Duration::from_secs(200));
    assert_eq!(tracker.expire(start + EXPIRY - Duration::from_secs(1)), 0);
    assert_eq!(tracker.expire(start + EXPIRY), 1);
    assert!(!tracker.free(silent, start));
    assert_eq!(tracker.load(slot(1)).requests, 1);
    assert_eq!(tracker.expire(start + Duration::from_secs(499)), 0);
    assert_eq!(tracker.expire(start + Duration::from_secs(500)), 1);
    assert_zero(&tracker);
}

#[test]
fn a_lost_worker_takes_its_requests_along() {
    let (mut tracker, now) = (tracker(), Instant::now());
    let blocks = hashes(0..3);
    let lost = tracker.add_request(&request(slot(0), &blocks), now).unwrap();
    tracker.add_request(&request(slot(0), &blocks), now).unwrap();
    let kept = tracker.add_request(&request(slot(1), &blocks), now).unwrap();
    assert_eq!(tracker.clear_slot(slot(0)), 2);
    let newer = tracker.add_request(&request(slot(2), &blocks), now).unwrap();
    assert!(!tracker.free(lost, now), "an id is not used again");
    assert_eq!(tracker.len(), 2);
    tracker.free(kept, now);
    tracker.free(newer, now);
    assert_zero(&tracker);
}

#[test]
fn the_limit_refuses_and_ended_requests_leave_no_trace() {
    let (mut tracker, now) = (tracker(), Instant::now());
    for _ in 0..1000 {
        let id = tracker.add_request(&request(slot(0), &hashes(0..3)), now).unwrap();
        let other = tracker.add_request(&request(slot(0), &hashes(0..3)), now).unwrap();
        tracker.free(id, now);
        if tracker.len() == 100 {
            assert_eq!(tracker.add_request(&request(slot(0), &[]), now), Err(TooManyActive(100)));
            tracker.free(other, now);
            assert!(tracker.checks.len() <= 2 * 100 + 66, "{}", tracker.checks.len());
        }
        if tracker.len() == 99 {
            tracker.free(other, now);
        }
    }
    tracker.clear_slot(slot(0));
    assert_zero(&tracker);
}

#[test]
fn choices_see_less_of_the_oldest_prompt_and_counts_stay_as_they_are() {
    let (mut measuring, mut plain, mut now) = (measuring(), tracker(), Instant::now());
    let ms = Duration::from_millis;
    let new = |tokens| NewRequest { prefill_tokens: tokens, ..request(slot(1), &[]) };
    for _ in 0..20 {
        for tracker in [&mut measuring, &mut plain] {
            let id = tracker.add_request(&new(1000), now).unwrap();
            tracker.mark_prefill_completed(id, now + ms(100));
            tracker.free(id, now + ms(150));
        }
        now += ms(200);
    }
    let ids: Vec<_> =
        [600, 2000].iter().map(|&tokens| measuring.add_request(&new(tokens), now).unwrap()).collect();
    plain.add_request(&new(2600), now).unwrap();
    assert_eq!(outstanding(&measuring, 1, now + ms(20)), 2400);
    assert_eq!(outstanding(&plain, 1, now + ms(20)), 2600);
    assert_eq!(
        measuring.load(slot(1)).prefill_tokens,
        2600,
        "busy thresholds and gauges go by what was sent"
    );
    measuring.mark_prefill_completed(ids[0], now + ms(60));
    assert_eq!(outstanding(&measuring, 1, now + ms(70)), 1900);
    measuring.free(ids[1], now + ms(70));
    measuring.free(ids[0], now + ms(70));
    assert_zero(&measuring);
    assert_eq!(measuring.clear_slot(slot(1)), 0);
    measuring.add_request(&new(1000), now).unwrap();
    assert_eq!(outstanding(&measuring, 1, now + ms(50)), 1000, "another worker has the slot now");
}

proptest! {
    #[test]
    fn every_history_ends_at_zero(
        steps in prop::collection::vec((0..6u8, 0..4u32, 0..6u64, any::<prop::sample::Index>()), 1..300),
    ) {
        let (mut tracker, start) = (measuring(), Instant::now());
        let mut loads = PotentialLoads::default();
        let mut ids: Vec<ReservationId> = Vec::new();
        for (at, (kind, index, len, which)) in steps.into_iter().enumerate() {
            let now = start + Duration::from_secs(at as u64 * 3);
            if kind == 0 || ids.is_empty() {
                let blocks = hashes(0..len);
                let expected_output_tokens = (len > 3).then_some(9);
                let new = NewRequest { private_blocks: index, expected_output_tokens, ..request(slot(index), &blocks) };
                ids.extend(tracker.add_request(&new, now));
                continue;
            }
            let id = *which.get(&ids);
            match kind {
                1 => tracker.mark_prefill_completed(id, now),
                2 => tracker.add_output_block(id, now),
                3 => _ = tracker.free(id, now),
                4 => _ = tracker.expire(now),
                _ => _ = tracker.clear_slot(slot(index)),
            }
            let later = now + Duration::from_secs(index.into());
            tracker.potential(&[], 0, 4, &mut loads);
            tracker.take_computed_off(&mut loads, later);
            for index in 0..4 {
                let (counted, left) = (tracker.load(slot(index)).prefill_tokens, loads.get(slot(index)).unwrap().prefill_tokens);
                prop_assert!(left <= counted && (left > 0) == (counted > 0), "{} of {}", left, counted);
            }
        }
        for id in ids {
            tracker.free(id, start);
        }
        assert_zero(&tracker);
    }
}
