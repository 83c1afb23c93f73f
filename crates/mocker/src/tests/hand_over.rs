//! Prompts that one engine computes and another answers.

use std::time::Duration;

use dynamo_engine_api::{
    AbortReason, Engine, EngineOutput, FinishReason, KvCacheEventData, PrefillResult, PreprocessedRequest,
};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::harness::{Harness, Reader, instant, prompt, request};
use crate::{DisaggregationMode, MockerConfig, TimingModel};

/// What the decode worker gets of a request whose first `tokens` tokens were computed.
pub(super) fn handed(request: PreprocessedRequest, tokens: usize) -> PreprocessedRequest {
    with_word(request, json!({"kv_transfer_params": {"do_remote_prefill": true, "prompt_tokens": tokens}}))
}

fn with_word(request: PreprocessedRequest, disaggregated_params: Value) -> PreprocessedRequest {
    PreprocessedRequest { prefill_result: Some(PrefillResult { disaggregated_params }), ..request }
}

fn prefill_engine() -> MockerConfig {
    MockerConfig {
        disaggregation_mode: DisaggregationMode::Prefill,
        engine_id: Some("77".to_owned()),
        ..instant()
    }
}

/// A block of 64 tokens takes 100 ms.
fn slow_link() -> MockerConfig {
    MockerConfig {
        kv_bytes_per_token: Some(1_000_000),
        kv_transfer_bandwidth: 0.64,
        ..MockerConfig::default()
    }
}

fn outputs(reader: &Reader) -> Vec<EngineOutput> {
    reader.read.lock().outputs.iter().map(|(_, output)| output.clone()).collect()
}

#[tokio::test(start_paused = true)]
async fn a_prefill_engine_says_in_the_end_how_to_get_the_blocks() {
    let mut harness = Harness::new(prefill_engine());
    let reader = harness.serve([request(prompt(1, 100), 3), request(prompt(2, 10), 1)]).await.remove(0);
    let outputs = outputs(&reader);
    assert!(outputs[..2].iter().all(|output| output.disaggregated_params.is_none()));
    let word = json!({"kv_transfer_params": {
        "do_remote_prefill": true,
        "do_remote_decode": false,
        "remote_engine_id": "77",
        "prompt_tokens": 100,
    }});
    assert_eq!(outputs[2].disaggregated_params, Some(word));
    assert_eq!(outputs[2].finish_reason, Some(FinishReason::Length));
    assert_eq!(outputs[2].completion_usage.unwrap().prompt_tokens, 100);
}

#[tokio::test(start_paused = true)]
async fn other_engines_say_nothing_of_their_blocks() {
    for disaggregation_mode in [DisaggregationMode::Agg, DisaggregationMode::Decode] {
        let mut harness = Harness::new(MockerConfig { disaggregation_mode, ..instant() });
        let reader = harness.serve([request(prompt(1, 100), 3)]).await.remove(0);
        assert!(outputs(&reader).iter().all(|output| output.disaggregated_params.is_none()));
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_prefill_engine_computed_another_takes_over() {
    let (mut prefill, mut decode) = (Harness::new(prefill_engine()), Harness::new(instant()));
    let expected = Harness::new(instant()).serve([request(prompt(1, 640), 20)]).await[0].tokens();
    let word = prefill.serve([request(prompt(1, 640), 1)]).await[0].last().disaggregated_params.unwrap();
    for enable_prefix_caching in [true, false] {
        let mut decode_here;
        let decode = if enable_prefix_caching {
            &mut decode
        } else {
            decode_here = Harness::new(MockerConfig { enable_prefix_caching, ..instant() });
            &mut decode_here
        };
        let reader = decode.serve([with_word(request(prompt(1, 640), 20), word.clone())]).await.remove(0);
        assert_eq!(reader.tokens(), expected);
        assert_eq!(reader.cached_tokens(), 576, "the last token, and its block, are computed");
        let stats = decode.empty().await;
        assert_eq!(stats.cached_blocks, if enable_prefix_caching { 10 } else { 0 });
        let events = decode.observed.events.lock();
        let stored: usize = events
            .iter()
            .map(|(_, event)| match event {
                KvCacheEventData::Stored { blocks, .. } => blocks.len(),
                other => panic!("{other:?}"),
            })
            .sum();
        assert_eq!(stored as u64, stats.cached_blocks);
    }
    let again = decode.serve([request(prompt(1, 640), 20)]).await.remove(0);
    assert_eq!(again.cached_tokens(), 576, "what was handed over is cached for others");
}

#[tokio::test(start_paused = true)]
async fn blocks_take_the_time_of_the_link() {
    for speedup_ratio in [1.0, 10.0] {
        let mut harness = Harness::new(MockerConfig { speedup_ratio, ..slow_link() });
        let start = Instant::now();
        let reader = harness.serve([handed(request(prompt(1, 640), 1), 640)]).await.remove(0);
        let at = reader.read.lock().outputs[0].0.duration_since(start);
        let step = TimingModel::new(speedup_ratio).step(64, true, 10.0 / 16384.0);
        let due = Duration::from_millis(900).div_f64(speedup_ratio) + step;
        let tick = Duration::from_millis(1);
        assert!(at + tick >= due && at <= due + tick, "it came at {at:?} and was due at {due:?}");
        assert_eq!(harness.empty().await.steps, 1, "nothing is computed while blocks are on the way");
    }
}

#[tokio::test(start_paused = true)]
async fn others_go_on_while_blocks_are_on_the_way() {
    let mut harness = Harness::new(slow_link());
    let (_, other) = harness.submit(request(prompt(2, 10), 1000));
    let (_, reader) = harness.submit(handed(request(prompt(1, 640), 1), 640));
    other.flushed(20).await;
    assert!(reader.read.lock().outputs.is_empty());
    assert_eq!(harness.engine.stats().running, 2, "who waits for blocks counts as running");
    reader.ended().await;
    let came = other.tokens().len();
    assert!((140..160).contains(&came), "{came} tokens of 6 ms while 900 ms passed");
    other.ended().await;
    harness.empty().await;
}

#[tokio::test(start_paused = true)]
async fn without_delays_nobody_waits_for_blocks() {
    for enable_prefix_caching in [true, false] {
        let config =
            MockerConfig { enable_prefix_caching, speedup_ratio: 0.0, max_num_seqs: 3, ..slow_link() };
        let mut harness = Harness::new(config);
        let start = Instant::now();
        let requests = (0..100).map(|i| handed(request(prompt(i, 640), 2), 640));
        let readers = harness.serve(requests).await;
        assert_eq!(start.elapsed(), Duration::ZERO, "it slept");
        assert!(readers.iter().all(|reader| reader.cached_tokens() == 576 && reader.tokens().len() == 2));
        harness.empty().await;
    }
}

#[tokio::test(start_paused = true)]
async fn taken_back_while_it_loads_or_waits_nothing_is_left() {
    let mut harness = Harness::new(MockerConfig { max_num_seqs: 1, ..slow_link() });
    let (loads, loading) = harness.submit(handed(request(prompt(1, 640), 1), 640));
    let (waits, waiting) = harness.submit(handed(request(prompt(2, 640), 1), 640));
    tokio::time::sleep(Duration::from_millis(50)).await;
    let stats = harness.engine.stats();
    assert_eq!((stats.running, stats.waiting, stats.used_blocks), (1, 1, 10));
    let start = Instant::now();
    harness.engine.abort(waits, AbortReason::Cancelled);
    waiting.ended().await;
    harness.engine.abort(loads, AbortReason::Cancelled);
    loading.ended().await;
    let stats = harness.empty().await;
    assert!(start.elapsed() < Duration::from_millis(10));
    assert_eq!((stats.cached_blocks, stats.steps), (0, 0));
    assert!(harness.observed.events.lock().is_empty());
    for key in [loads, waits] {
        let reader = harness.submit_as(key, request(prompt(3, 640), 1));
        reader.ended().await;
        harness.engine.clear_cache();
        assert_eq!(reader.cached_tokens(), 0, "what was promised went with its request");
    }
}

#[tokio::test(start_paused = true)]
async fn one_prompt_handed_over_many_times_at_once_is_cached_once() {
    for config in [slow_link(), instant()] {
        let mut harness = Harness::new(config);
        let many = (0..20).map(|i| handed(request(prompt(1, 640), 1 + i), 640));
        let readers = harness.serve(many).await;
        assert!(readers.iter().all(|reader| reader.cached_tokens() == 576));
        let stats = harness.empty().await;
        assert_eq!(stats.cached_blocks, 10);
    }
}

#[tokio::test(start_paused = true)]
async fn only_what_was_computed_is_handed_over() {
    for (word, cached) in [
        (json!({"kv_transfer_params": {"do_remote_prefill": true, "prompt_tokens": 130}}), 128),
        (json!({"kv_transfer_params": {"do_remote_prefill": true, "prompt_tokens": 63}}), 0),
        (json!({"kv_transfer_params": {"do_remote_prefill": true, "prompt_tokens": 9999}}), 576),
        (json!({"kv_transfer_params": {"do_remote_prefill": true}}), 576),
        (json!({"kv_transfer_params": {"do_remote_prefill": false, "prompt_tokens": 640}}), 0),
        (json!({"kv_transfer_params": {"do_remote_decode": true}}), 0),
        (json!({"kv_transfer_params": null}), 0),
        (json!({"bootstrap_room": 5}), 0),
        (json!("elsewhere"), 0),
        (Value::Null, 0),
    ] {
        let mut harness = Harness::new(instant());
        let reader = harness.serve([with_word(request(prompt(1, 640), 2), word.clone())]).await.remove(0);
        assert_eq!((reader.cached_tokens(), reader.tokens().len()), (cached, 2), "{word}");
    }
}
