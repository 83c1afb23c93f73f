//! Every interleaving of a few threads: `LOOM_MAX_PREEMPTIONS=3 RUSTFLAGS="--cfg loom" cargo test -p dynamo-kv-router --release --lib loom`.

use std::{collections::VecDeque, sync::Arc, time::Instant};

use loom::thread;

use super::{LaneQueue, Limits, Weight};

const ONE: Weight = Weight::Event { blocks: 1 };

fn drain(queue: &LaneQueue<u32>, count: usize) -> Vec<u32> {
    let (mut tasks, mut taken) = (VecDeque::new(), Vec::new());
    while taken.len() < count {
        queue.take(&mut tasks).expect("open");
        taken.extend(tasks.drain(..));
    }
    taken
}

#[test]
fn loom_nothing_is_lost_and_nobody_sleeps_on() {
    let now = Instant::now();
    loom::model(move || {
        let queue = Arc::new(LaneQueue::new(Limits { events: 1, blocks: 1 }));
        let putters: Vec<_> = (0..2)
            .map(|putter| {
                let queue = queue.clone();
                thread::spawn(move || {
                    for number in 0..2 {
                        queue.put(putter * 10 + number, ONE, || now).expect("open");
                    }
                })
            })
            .collect();
        let taken = drain(&queue, 4);
        for putter in putters {
            putter.join().expect("no panic");
        }
        for putter in 0..2 {
            let of = taken.iter().filter(|task| **task / 10 == putter).copied().collect::<Vec<_>>();
            assert_eq!(of, [putter * 10, putter * 10 + 1]);
        }
    });
}

#[test]
fn loom_closing_wakes_all() {
    let now = Instant::now();
    loom::model(move || {
        let queue = Arc::new(LaneQueue::new(Limits { events: 1, blocks: 1 }));
        queue.put(0, ONE, || now).expect("open");
        let putter = {
            let queue = queue.clone();
            thread::spawn(move || queue.put(1, ONE, || now))
        };
        let taker = {
            let queue = queue.clone();
            thread::spawn(move || {
                let mut tasks = VecDeque::new();
                while queue.take(&mut tasks).is_some() {
                    tasks.clear();
                }
            })
        };
        queue.close();
        let _ = putter.join().expect("no panic");
        taker.join().expect("no panic");
    });
}
