//! Time, cache, ranks and reports.

use std::time::Duration;

use dynamo_engine_api::{Engine, KvCacheEventData};
use tokio::time::Instant;

use super::harness::{Harness, Reader, instant, prompt, request};
use crate::{MockerConfig, TimingModel};

#[tokio::test(start_paused = true)]
async fn without_delays_no_time_passes() {
    let mut harness = Harness::new(instant());
    let start = Instant::now();
    let readers = harness.serve((0..1000).map(|i| request(prompt(i, 20), 100))).await;
    assert_eq!(start.elapsed(), Duration::ZERO, "it slept");
    assert!(readers.iter().all(|reader| reader.tokens().len() == 100));
    let stats = harness.empty().await;
    assert_eq!(stats.generated_tokens, 100_000);
}

#[tokio::test(start_paused = true)]
async fn steps_take_the_time_of_the_formula() {
    for (speedup_ratio, decode_speedup_ratio) in [(1.0, 1.0), (10.0, 1.0), (1.0, 0.1)] {
        let config = MockerConfig { speedup_ratio, decode_speedup_ratio, ..MockerConfig::default() };
        let mut harness = Harness::new(config);
        let start = Instant::now();
        let (_, reader) = harness.submit(request(prompt(1, 640), 33));
        reader.ended().await;
        let model = TimingModel::new(speedup_ratio).with_decode_speedup(decode_speedup_ratio);
        let share = |blocks: u32| f64::from(blocks) / 16384.0;
        let mut due = Duration::ZERO;
        let read = reader.read.lock();
        for (i, (at, _)) in read.outputs.iter().enumerate() {
            due += match i {
                0 => model.step(640, true, share(10)),
                _ => model.step(0, true, share(11)),
            };
            let at = at.duration_since(start);
            let tick = Duration::from_millis(1);
            assert!(at + tick >= due && at <= due + tick, "token {i} came at {at:?} and was due at {due:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_repeated_prompt_is_cached_but_for_its_last_block() {
    let mut harness = Harness::new(instant());
    for (len, cached) in [(640, 576), (700, 640), (63, 0)] {
        let cold = harness.serve([request(prompt(len, len), 3)]).await.remove(0);
        assert_eq!(cold.cached_tokens(), 0);
        let warm = harness.serve([request(prompt(len, len), 3)]).await.remove(0);
        assert_eq!(warm.cached_tokens(), cached);
        assert_eq!(warm.tokens(), cold.tokens());
    }
    let mut salted = request(prompt(640, 640), 3);
    salted.routing.cache_salt = Some("tenant".into());
    assert_eq!(harness.serve([salted]).await[0].cached_tokens(), 0, "another tenant's cache");
    harness.engine.clear_cache();
    let after = harness.serve([request(prompt(640, 640), 3)]).await.remove(0);
    assert_eq!(after.cached_tokens(), 0);
}

#[tokio::test(start_paused = true)]
async fn clearing_reports_all_that_was_cached() {
    let mut harness = Harness::new(instant());
    harness.serve([request(prompt(1, 640), 3)]).await;
    assert_eq!(harness.engine.stats().cached_blocks, 10);
    harness.engine.clear_cache();
    while harness.engine.stats().cached_blocks > 0 {
        tokio::task::yield_now().await;
    }
    let events = harness.observed.events.lock();
    let (stored, removed) = events.iter().fold((0, 0), |(stored, removed), (_, event)| match event {
        KvCacheEventData::Stored { blocks, .. } => (stored + blocks.len(), removed),
        KvCacheEventData::Removed { block_hashes } => (stored, removed + block_hashes.len()),
        KvCacheEventData::Cleared => unreachable!(),
    });
    assert_eq!((stored, removed), (10, 10));
}

#[tokio::test(start_paused = true)]
async fn ranks_do_not_share_anything() {
    let config = MockerConfig { data_parallel_size: 2, max_num_seqs: 1, ..MockerConfig::default() };
    let mut harness = Harness::new(config);
    let alone = Harness::new(MockerConfig::default()).serve([request(prompt(1, 640), 3)]).await;
    let start = Instant::now();
    let (_, first) = harness.submit_to(0, request(prompt(1, 640), 3), Reader::default());
    let (_, second) = harness.submit_to(1, request(prompt(1, 640), 3), Reader::default());
    for reader in [&first, &second] {
        reader.ended().await;
        assert_eq!(reader.cached_tokens(), 0);
        assert_eq!(reader.tokens(), alone[0].tokens());
    }
    assert!(start.elapsed() < Duration::from_millis(60), "one after the other would take longer");
    let ranks: Vec<_> = (0..2).map(|rank| harness.engine.rank_stats(rank).unwrap()).collect();
    assert!(ranks.iter().all(|stats| stats.cached_blocks == 10 && stats.generated_tokens == 3));
    assert!(harness.engine.rank_stats(2).is_none());
    assert_eq!(harness.engine.stats().total_blocks, 2 * 16384);
}

#[tokio::test(start_paused = true)]
async fn the_load_is_reported_when_it_changes_and_returns_to_zero() {
    let mut harness = Harness::new(MockerConfig { max_num_seqs: 1, ..MockerConfig::default() });
    harness.serve([request(prompt(1, 640), 40), request(prompt(2, 64), 2)]).await;
    harness.empty().await;
    let loads = harness.observed.loads.lock();
    assert!(loads.windows(2).all(|pair| pair[0] != pair[1]));
    assert!(loads.len() < 12, "not every step: {}", loads.len());
    assert!(loads.iter().any(|load| load.waiting_requests == 1 && load.running_requests == 1));
    assert!(loads.iter().any(|load| load.active_prefill_tokens == Some(64)));
    let last = loads.last().unwrap();
    assert_eq!((last.active_decode_blocks, last.active_prefill_tokens), (Some(0), Some(0)));
    assert_eq!((last.kv_used_blocks, last.kv_total_blocks), (Some(11), Some(16384)));
    assert_eq!((last.waiting_requests, last.running_requests), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn it_serves_after_its_start_up_time() {
    let mut harness = Harness::new(MockerConfig { startup_time: Some(2.5), ..instant() });
    let start = Instant::now();
    let (_, reader) = harness.submit(request(prompt(1, 10), 1));
    harness.engine.ready().await;
    assert_eq!(start.elapsed(), Duration::from_millis(2500));
    reader.ended().await;
    assert_eq!(start.elapsed(), Duration::from_millis(2500));
}

#[tokio::test(start_paused = true)]
async fn each_step_is_flushed() {
    let mut harness = Harness::new(MockerConfig::default());
    let (_, reader) = harness.submit(request(prompt(1, 10), 10));
    for count in 1..=10 {
        reader.flushed(count).await;
        assert_eq!(reader.read.lock().outputs.len(), count);
    }
}
