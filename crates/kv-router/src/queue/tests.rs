use std::time::Duration;

use proptest::prelude::*;

use super::*;

fn config(policy: QueuePolicy) -> QueueConfig {
    QueueConfig {
        threshold: Some(1.0),
        policy,
        max_requests: 100,
        max_isl_tokens: 10_000,
        ..QueueConfig::OFF
    }
}

const PLAIN: Waiting = Waiting {
    class: ClassId::DEFAULT,
    lane: 0,
    strict_priority: 0,
    priority_jump: 0.0,
    isl_tokens: 10,
    cached_tokens: 0,
    deadline: None,
};

/// Lets requests come a second apart, and says in what order they leave.
fn order(policy: QueuePolicy, requests: &[Waiting]) -> Vec<usize> {
    let start = Instant::now();
    let mut queue = RouterQueue::new(config(policy), start);
    for (number, waiting) in requests.iter().enumerate() {
        queue.push(*waiting, number, start + Duration::from_secs(number as u64)).unwrap();
    }
    std::iter::from_fn(|| queue.pop(|_| true)).collect()
}

#[test]
fn first_and_last_come_first_and_a_jump_counts_as_seconds() {
    let jumping = |seconds| Waiting { priority_jump: seconds, ..PLAIN };
    let requests = [PLAIN, PLAIN, jumping(1.5), jumping(-7.0)];
    assert_eq!(order(QueuePolicy::Fcfs, &requests), [0, 2, 1, 3]);
    assert_eq!(order(QueuePolicy::Lcfs, &requests), [2, 3, 1, 0]);
}

#[test]
fn the_shortest_new_work_is_first_and_weighs_by_priority() {
    let of = |isl_tokens, cached_tokens, priority_jump| Waiting {
        isl_tokens,
        cached_tokens,
        priority_jump,
        ..PLAIN
    };
    let requests = [of(100, 0, 0.0), of(1000, 990, 0.0), of(300, 0, 5.0), of(5, 9, 0.0)];
    assert_eq!(order(QueuePolicy::Wspt, &requests), [3, 1, 2, 0]);
}

#[test]
fn the_earliest_deadline_is_first_and_none_is_last() {
    let now = Instant::now();
    let due = |seconds| Waiting { deadline: Some(now + Duration::from_secs(seconds)), ..PLAIN };
    assert_eq!(order(QueuePolicy::Edf, &[PLAIN, due(90), due(50), PLAIN]), [2, 1, 0, 3]);
}

#[test]
fn strict_priority_goes_over_everything() {
    let strict = |strict_priority| Waiting { strict_priority, ..PLAIN };
    let urgent = Waiting { priority_jump: 1e9, ..PLAIN };
    for policy in [QueuePolicy::Fcfs, QueuePolicy::Wspt] {
        assert_eq!(order(policy, &[urgent, strict(1), strict(2)]), [2, 1, 0]);
    }
}

#[test]
fn a_lane_that_cannot_go_holds_up_no_other() {
    let now = Instant::now();
    let mut queue = RouterQueue::new(config(QueuePolicy::Fcfs), now);
    for (number, lane) in [7, 7, 0, 8].into_iter().enumerate() {
        queue.push(Waiting { lane, ..PLAIN }, (lane, number), now).unwrap();
    }
    let mut asked = Vec::new();
    let popped = queue.pop(|&(lane, number)| {
        asked.push(number);
        lane == 8
    });
    assert_eq!((popped, asked), (Some((8, 3)), vec![0, 2, 3]), "one of each lane was asked");
    assert_eq!(queue.pop(|&(lane, _)| lane == 7), Some((7, 0)));
    assert_eq!(queue.pop(|_| false), None);
    assert_eq!(queue.depth().requests, 2);
}

#[test]
fn it_is_bounded_by_requests_and_tokens_and_says_why() {
    let now = Instant::now();
    let mut queue = RouterQueue::new(QueueConfig { max_requests: 2, ..config(QueuePolicy::Fcfs) }, now);
    let late = Waiting { deadline: Some(now), ..PLAIN };
    assert_eq!(queue.push(late, 'a', now), Err((QueueRejected::DeadlineExceeded, 'a')));
    let long = Waiting { isl_tokens: 9_995, ..PLAIN };
    queue.push(long, 'b', now).unwrap();
    let full = queue.push(PLAIN, 'c', now).unwrap_err();
    assert_eq!((full.0.reason(), full.1), ("raw_isl_token_limit", 'c'));
    queue.push(Waiting { isl_tokens: 5, ..PLAIN }, 'd', now).unwrap();
    let full = queue.push(Waiting { isl_tokens: 0, ..PLAIN }, 'e', now).unwrap_err();
    assert_eq!((full.0.reason(), full.1), ("request_limit", 'e'));
    assert_eq!(queue.depth(), QueueDepth { requests: 2, isl_tokens: 10_000, cached_tokens: 0 });
}

#[test]
fn deadlines_come_out_in_their_order() {
    let now = Instant::now();
    let at = |seconds| now + Duration::from_secs(seconds);
    let mut queue = RouterQueue::new(config(QueuePolicy::Fcfs), now);
    let due = |seconds| Waiting { deadline: Some(at(seconds)), ..PLAIN };
    let early = queue.push(due(5), 5, now).unwrap();
    queue.push(due(9), 9, now).unwrap();
    queue.push(due(7), 7, now).unwrap();
    assert_eq!(queue.next_deadline(), Some(at(5)));
    assert_eq!(queue.remove(early), Some(5));
    assert_eq!(queue.remove(early), None, "it waits no more");
    assert_eq!(queue.pop_expired(at(6)), None);
    assert_eq!((queue.pop_expired(at(9)), queue.pop_expired(at(9))), (Some(7), Some(9)));
    assert_eq!((queue.pop_expired(at(99)), queue.is_empty()), (None, true));
}

#[test]
fn policies_are_known_by_name() {
    for policy in QueuePolicy::ALL {
        assert_eq!(policy.to_string().to_uppercase().parse(), Ok(policy));
    }
    assert!("sjf".parse::<QueuePolicy>().is_err());
}

proptest! {
    #[test]
    fn whatever_comes_leaves_once_and_nothing_stays_behind(
        steps in prop::collection::vec((0..4u8, 0..3u64, 0..2u32, 0..40usize, any::<prop::sample::Index>()), 1..150),
    ) {
        let start = Instant::now();
        let mut queue = RouterQueue::new(config(QueuePolicy::Wspt), start);
        let mut waiting: Vec<(Ticket, usize)> = Vec::new();
        for (number, (kind, lane, strict_priority, isl_tokens, which)) in steps.into_iter().enumerate() {
            let now = start + Duration::from_secs(number as u64);
            let left = match kind {
                0 | 1 => {
                    let deadline = (isl_tokens % 2 == 0).then(|| now + Duration::from_secs(isl_tokens as u64 + 1));
                    let entry = Waiting { lane, strict_priority, isl_tokens, deadline, ..PLAIN };
                    waiting.push((queue.push(entry, number, now).unwrap(), number));
                    continue;
                }
                2 => queue.pop(|value| value % 3 != lane as usize),
                _ if waiting.is_empty() => continue,
                _ if lane == 0 => queue.pop_expired(now),
                _ => queue.remove(waiting[which.index(waiting.len())].0),
            };
            if let Some(left) = left {
                let known = waiting.iter().position(|(_, number)| *number == left);
                prop_assert!(known.is_some(), "{} left twice", left);
                waiting.swap_remove(known.unwrap());
            }
            prop_assert_eq!(queue.depth().requests, waiting.len());
        }
        while let Some(left) = queue.pop(|_| true) {
            waiting.retain(|(_, number)| *number != left);
        }
        prop_assert!(waiting.is_empty() && queue.is_spotless());
        prop_assert_eq!(queue.depth(), QueueDepth::default());
    }
}
