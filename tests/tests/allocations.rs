//! The stream path allocates per request, never per token nor per KV event: counted in the frontend's process, over real
//! HTTP.

use std::{
    thread,
    time::{Duration, Instant},
};

use dynamo_tests::{Frontend, Stack, WorkerOptions, stream_chat};
use serde_json::json;

const STREAMS: u32 = 64;
/// Small, so that there are many events: one for every sixteen tokens.
const BLOCK: u32 = 16;
const MORE_TOKENS: f64 = STREAMS as f64 * 1000.0;

fn counted(frontend: &Frontend) -> f64 {
    frontend.metrics().sum("dynamo_process_allocations_total", &[])
}

/// Allocations a second when nobody asks: discovery looks at its files. Asking for the count makes some itself.
fn idle_rate(frontend: &Frontend) -> f64 {
    let first = counted(frontend);
    let (before, began) = (counted(frontend), Instant::now());
    let asking = before - first;
    thread::sleep(Duration::from_secs(2));
    (counted(frontend) - before - asking) / began.elapsed().as_secs_f64()
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

/// How many more allocations answers of 2,000 tokens make than answers of 1,000, in 64 streams.
fn growth(router_mode: &str) -> f64 {
    let mut stack = Stack::new();
    let frontend = stack.frontend(&["--router-mode", router_mode]);
    let options = WorkerOptions { workers: 4, speedup: 100.0, block_size: BLOCK, ..WorkerOptions::default() };
    let _worker = stack.worker(&options);
    frontend.wait_for_workers(4);
    let idle = idle_rate(&frontend);
    // The first run warms buffers and pools.
    allocations(&frontend, 2000, idle);
    let (short, long) = (allocations(&frontend, 1000, idle), allocations(&frontend, 2000, idle));
    println!(
        "{router_mode}: {short:.0} allocations with 1,000 tokens each, {long:.0} with 2,000; idle {idle:.0}/s"
    );
    long - short
}

/// One in a hundred tokens may allocate: buffers and pools still grow here and there.
fn assert_no_growth(router_mode: &str) {
    let growth = growth(router_mode);
    assert!(growth < MORE_TOKENS / 100.0, "{growth} more for {MORE_TOKENS} tokens");
}

#[test]
fn the_stream_path_does_not_allocate_per_token() {
    assert_no_growth("round-robin");
}

#[test]
fn kv_events_do_not_allocate_per_block() {
    assert_no_growth("kv");
}
