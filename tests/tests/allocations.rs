//! The stream path allocates per request, never per token: counted in the frontend's process, over real HTTP.

use std::{
    thread,
    time::{Duration, Instant},
};

use dynamo_tests::{Frontend, Stack, WorkerOptions, stream_chat};
use serde_json::json;

const STREAMS: u32 = 64;

fn counted(frontend: &Frontend) -> f64 {
    frontend.metrics().sum("dynamo_process_allocations_total", &[])
}

/// Allocations a second when nobody asks: discovery looks at its files.
fn idle_rate(frontend: &Frontend) -> f64 {
    let (before, began) = (counted(frontend), Instant::now());
    thread::sleep(Duration::from_secs(2));
    (counted(frontend) - before) / began.elapsed().as_secs_f64()
}

/// Allocations of the frontend while 64 answers of so many tokens are streamed, less those of an idle one.
fn allocations(frontend: &Frontend, tokens: u32, idle_rate: f64) -> f64 {
    let (before, began) = (counted(frontend), Instant::now());
    let clients: Vec<_> = (0..STREAMS)
        .map(|number| {
            let address = frontend.address.clone();
            thread::spawn(move || {
                let prompt = format!("story number {number} of {tokens} tokens");
                let mut stream = stream_chat(&address, &prompt, tokens, &json!({})).expect("a stream");
                let events = stream.rest().expect("a whole body");
                events.iter().filter(|event| event.content().is_some_and(|text| !text.is_empty())).count()
            })
        })
        .collect();
    for client in clients {
        assert_eq!(
            client.join().expect("a client that does not panic") as u32,
            tokens,
            "one event per token"
        );
    }
    counted(frontend) - before - idle_rate * began.elapsed().as_secs_f64()
}

#[test]
fn allocations_do_not_grow_with_tokens() {
    let mut stack = Stack::new();
    let frontend = stack.frontend(&["--router-mode", "kv"]);
    let _worker = stack.worker(&WorkerOptions {
        workers: 4,
        speedup: 100.0,
        block_size: 64,
        ..WorkerOptions::default()
    });
    frontend.wait_for_workers(4);
    let idle = idle_rate(&frontend);
    // The first run warms buffers and pools.
    allocations(&frontend, 2000, idle);
    let (short, long) = (allocations(&frontend, 1000, idle), allocations(&frontend, 2000, idle));
    let more_tokens = f64::from(STREAMS) * 1000.0;
    println!("{short:.0} allocations with 1,000 tokens each, {long:.0} with 2,000; idle {idle:.0}/s");
    assert!(
        long - short < more_tokens / 100.0,
        "{short} then {long}: {} more for {more_tokens} tokens",
        long - short
    );
}
