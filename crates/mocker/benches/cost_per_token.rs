//! Core time per token of scheduler and simulator together, without delays.
//!
//!     cargo bench -p dynamo-mocker --bench cost_per_token

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use dynamo_engine_api::{
    ActiveLoad, DpRank, Engine, EngineObserver, EngineOutput, KvCacheEventData, OutputSink,
    PreprocessedRequest, Refused, RequestKey, SinkState, StopConditions, Submission,
};
use dynamo_mocker::{MockEngine, MockerConfig};
use tokio::sync::Notify;
use tokio::task::JoinSet;

/// Tokens of each request; of a single one more, as the system counts core time by the tick.
const TOKENS: u32 = 4000;
const TOKENS_ALONE: u32 = 200_000;
const PROMPT: u32 = 930;

struct Nobody;

impl EngineObserver for Nobody {
    fn kv_events(&self, _dp_rank: DpRank, events: Vec<KvCacheEventData>) {
        std::hint::black_box(events);
    }

    fn load(&self, load: ActiveLoad) {
        std::hint::black_box(load);
    }
}

#[derive(Default)]
struct Count {
    left: AtomicU64,
    done: Notify,
}

struct Sink(Arc<Count>);

impl OutputSink for Sink {
    fn push(&mut self, output: &EngineOutput) -> SinkState {
        std::hint::black_box(&output.token_ids);
        SinkState::Open
    }

    fn flush(&mut self) {}

    fn refuse(&mut self, refused: Refused) {
        panic!("{refused}");
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        if self.0.left.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.done.notify_one();
        }
    }
}

/// Nanoseconds that this thread has been on a core, where the system tells; else of the clock on the wall.
fn core_time(start: Instant) -> f64 {
    std::fs::read_to_string("/proc/thread-self/schedstat")
        .ok()
        .and_then(|text| text.split_whitespace().next()?.parse().ok())
        .unwrap_or_else(|| start.elapsed().as_nanos() as f64)
}

fn run(running: u32) -> f64 {
    let tokens = if running == 1 { TOKENS_ALONE } else { TOKENS };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let mut tasks = JoinSet::new();
        let config = MockerConfig { speedup_ratio: 0.0, ..MockerConfig::default() };
        let engine = MockEngine::start(config, Arc::new(Nobody), |task| {
            tasks.spawn(task);
        })
        .expect("the defaults are valid");
        let count = Arc::new(Count { left: AtomicU64::new(u64::from(running)), done: Notify::new() });
        let start = Instant::now();
        let before = core_time(start);
        for i in 0..running {
            let request = PreprocessedRequest {
                token_ids: (0..PROMPT).map(|token| i * PROMPT + token).collect(),
                stop_conditions: StopConditions { max_tokens: Some(tokens), ..StopConditions::default() },
                ..PreprocessedRequest::default()
            };
            let sink = Box::new(Sink(Arc::clone(&count)));
            engine.submit(Submission { key: RequestKey(u64::from(i)), dp_rank: 0, request, sink });
        }
        count.done.notified().await;
        let elapsed = core_time(start) - before;
        drop(engine);
        while tasks.join_next().await.is_some() {}
        elapsed / f64::from(running * tokens)
    })
}

fn main() {
    println!(
        "one thread, {TOKENS} tokens a request ({TOKENS_ALONE} for one alone) after prompts of {PROMPT}, median of 5 runs"
    );
    for running in [1, 16, 64, 256] {
        let mut runs: Vec<f64> = (0..5).map(|_| run(running)).collect();
        runs.sort_by(f64::total_cmp);
        println!("{running:4} running: {:6.1} ns/token", runs[2]);
    }
}
