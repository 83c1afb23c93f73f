//! A token costs no allocation once the engine is warm; what is left is per block, for its event.
#![allow(unsafe_code, reason = "a global allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dynamo_engine_api::{
    ActiveLoad, DpRank, Engine, EngineObserver, EngineOutput, KvCacheEventData, OutputSink,
    PreprocessedRequest, Refused, RequestKey, SinkState, StopConditions, Submission,
};
use dynamo_mocker::{MockEngine, MockerConfig};
use tokio::sync::Notify;
use tokio::task::JoinSet;

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: everything is passed on to the system's allocator, whose contract is the same.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps to the contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps to the contract.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps to the contract.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

struct Nobody;

impl EngineObserver for Nobody {
    fn kv_events(&self, _dp_rank: DpRank, _events: Vec<KvCacheEventData>) {}
    fn load(&self, _load: ActiveLoad) {}
}

struct Sink(Arc<(AtomicU64, Notify)>);

impl OutputSink for Sink {
    fn push(&mut self, _output: &EngineOutput) -> SinkState {
        SinkState::Open
    }

    fn flush(&mut self) {}

    fn refuse(&mut self, refused: Refused) {
        panic!("{refused}");
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
        self.0.1.notify_one();
    }
}

const REQUESTS: u64 = 16;

async fn serve(engine: &MockEngine, round: u64, tokens: u32) -> u64 {
    let left = Arc::new((AtomicU64::new(REQUESTS), Notify::new()));
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    for i in 0..REQUESTS {
        let key = RequestKey(round * REQUESTS + i);
        let request = PreprocessedRequest {
            token_ids: vec![key.0 as u32; 100],
            stop_conditions: StopConditions { max_tokens: Some(tokens), ..StopConditions::default() },
            ..PreprocessedRequest::default()
        };
        engine.submit(Submission { key, dp_rank: 0, request, sink: Box::new(Sink(Arc::clone(&left))) });
    }
    while left.0.load(Ordering::Relaxed) > 0 {
        left.1.notified().await;
    }
    ALLOCATIONS.load(Ordering::Relaxed) - before
}

#[tokio::test]
async fn allocations_do_not_grow_with_tokens() {
    let mut tasks = JoinSet::new();
    for enable_prefix_caching in [false, true] {
        let config = MockerConfig { speedup_ratio: 0.0, enable_prefix_caching, ..MockerConfig::default() };
        let engine = MockEngine::start(config, Arc::new(Nobody), |task| {
            tasks.spawn(task);
        })
        .unwrap();
        serve(&engine, 0, 2000).await;
        let few = serve(&engine, 1, 1000).await;
        let many = serve(&engine, 2, 2000).await;
        let per_token = (many as f64 - few as f64) / (REQUESTS * 1000) as f64;
        println!(
            "prefix caching {enable_prefix_caching}: {few}, {many}, {per_token:.4} allocations per token"
        );
        // Sixteen requests complete a block in the same step: its events are a list of sixteen lists.
        let limit = if enable_prefix_caching { 0.03 } else { 0.01 };
        assert!(per_token < limit, "{per_token}");
    }
}
