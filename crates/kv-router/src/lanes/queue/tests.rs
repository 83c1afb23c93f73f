use std::{sync::Arc, thread, time::Duration};

use super::*;

fn queue(events: usize, blocks: usize) -> LaneQueue<u32> {
    LaneQueue::new(Limits { events, blocks })
}

fn event(blocks: usize) -> Weight {
    Weight::Event { blocks }
}

#[test]
fn events_and_blocks_are_bounded_and_orders_go_past_them() {
    let queue = queue(2, 10);
    assert_eq!(queue.try_put(1, event(50), Instant::now), Ok(()), "a large one goes alone");
    assert_eq!(queue.try_put(2, event(0), Instant::now), Err((2, Refused::Full)));
    assert_eq!(queue.try_put(3, Weight::Order, Instant::now), Ok(()));
    let mut tasks = VecDeque::new();
    let batch = queue.take(&mut tasks).unwrap();
    assert_eq!((tasks.drain(..).collect::<Vec<_>>(), batch.events, batch.blocks), (vec![1, 3], 1, 50));
    assert_eq!(queue.try_put(4, event(5), Instant::now), Ok(()));
    assert_eq!(queue.try_put(5, event(6), Instant::now), Err((5, Refused::Full)));
    assert_eq!(queue.try_put(5, event(5), Instant::now), Ok(()));
    assert_eq!(queue.try_put(6, event(0), Instant::now), Err((6, Refused::Full)));
    assert_eq!((queue.waiting().0, queue.waiting().1), (2, 10));
}

#[test]
fn who_waits_for_room_is_woken_by_room_and_by_the_end() {
    let queue = Arc::new(queue(1, 10));
    queue.try_put(0, event(1), Instant::now).unwrap();
    let waiting: Vec<_> = (1..4)
        .map(|task| {
            let queue = queue.clone();
            thread::spawn(move || queue.put(task, event(1), Instant::now))
        })
        .collect();
    let sleeping = || queue.state.lock().unwrap().sleeping_putters;
    let deadline = Instant::now() + Duration::from_secs(30);
    while sleeping() < 3 && Instant::now() < deadline {
        thread::yield_now();
    }
    let mut tasks = VecDeque::new();
    queue.take(&mut tasks).unwrap();
    assert_eq!(tasks.drain(..).collect::<Vec<_>>(), [0]);
    // One of them gets in; two still wait when the queue is closed.
    while (queue.waiting().0 < 1 || sleeping() < 2) && Instant::now() < deadline {
        thread::yield_now();
    }
    assert_eq!(queue.close().len(), 1);
    let outcomes: Vec<_> = waiting.into_iter().map(|thread| thread.join().unwrap()).collect();
    assert_eq!(outcomes.iter().filter(|outcome| **outcome == Ok(true)).count(), 1);
    assert_eq!(outcomes.iter().filter(|outcome| outcome.is_err()).count(), 2);
    assert!(queue.take(&mut tasks).is_none());
}

#[test]
fn many_putters_lose_nothing_and_keep_their_order() {
    const EACH: u32 = 20_000;
    let queue = Arc::new(queue(64, 1000));
    let putters: Vec<_> = (0..3)
        .map(|putter| {
            let queue = queue.clone();
            thread::spawn(move || {
                for number in 0..EACH {
                    queue.put(putter << 24 | number, event(1), Instant::now).unwrap();
                }
            })
        })
        .collect();
    let mut next = [0; 3];
    let mut tasks = VecDeque::new();
    while next.iter().sum::<u32>() < 3 * EACH {
        queue.take(&mut tasks).unwrap();
        assert!(tasks.len() <= 64);
        for task in tasks.drain(..) {
            assert_eq!(task & 0xFF_FFFF, next[(task >> 24) as usize]);
            next[(task >> 24) as usize] += 1;
        }
    }
    for putter in putters {
        putter.join().unwrap();
    }
}
