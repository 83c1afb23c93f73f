//! What a request gets does not depend on how it is served; what is reported is what is there.

use std::collections::BTreeMap;

use dynamo_engine_api::{KvCacheEventData, PreprocessedRequest};
use dynamo_tokens::TokenId;

use super::hand_over::handed;
use super::harness::{Harness, instant, prompt, request};
use crate::{MockerConfig, PreemptionPolicy};

/// Prompts of several lengths, some of them with a common beginning.
fn requests() -> Vec<PreprocessedRequest> {
    (0..24u32)
        .map(|i| {
            let mut tokens = prompt(i % 3, 40 + 16 * (i % 5));
            tokens.extend(prompt(100 + i, 1 + i));
            request(tokens, 30 + i)
        })
        .collect()
}

/// The same, with their prompts computed elsewhere.
fn handed_requests() -> Vec<PreprocessedRequest> {
    requests().into_iter().map(|request| handed(request, usize::MAX)).collect()
}

async fn tokens_with(config: MockerConfig, requests: Vec<PreprocessedRequest>) -> (Vec<Vec<TokenId>>, u64) {
    let mut harness = Harness::new(config);
    let readers = harness.serve(requests).await;
    let stats = harness.empty().await;
    (readers.iter().map(|reader| reader.tokens()).collect(), stats.preemptions)
}

#[tokio::test(start_paused = true)]
async fn tokens_are_the_same_with_and_without_cache_chunks_and_preemption() {
    let plain = MockerConfig { enable_prefix_caching: false, block_size: 16, ..instant() };
    let (expected, preemptions) = tokens_with(plain.clone(), requests()).await;
    assert_eq!(preemptions, 0);
    for (i, tokens) in expected.iter().enumerate() {
        assert_eq!(tokens.len(), 30 + i);
    }
    let small = MockerConfig { max_num_seqs: 8, max_num_batched_tokens: 32, ..plain.clone() };
    let scarce = MockerConfig { num_gpu_blocks: 30, watermark: 0.0, ..plain.clone() };
    let fifo = MockerConfig { preemption_mode: PreemptionPolicy::Fifo, ..scarce.clone() };
    let slow = MockerConfig { speedup_ratio: 1.0, ..scarce.clone() };
    for (config, preempts) in
        [(small, false), (scarce.clone(), true), (fifo, true), (slow, true), (plain.clone(), false)]
    {
        for enable_prefix_caching in [false, true] {
            let config = MockerConfig { enable_prefix_caching, ..config.clone() };
            for requests in [requests(), handed_requests()] {
                let (tokens, preemptions) = tokens_with(config.clone(), requests).await;
                assert_eq!(tokens, expected, "{config:?}");
                assert!(!preempts || preemptions > 0, "{config:?}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_moves_on_goes_on() {
    let (mut here, mut there) = (Harness::new(instant()), Harness::new(instant()));
    let whole = here.serve([request(prompt(1, 100), 40)]).await[0].tokens();
    let mut so_far = prompt(1, 100);
    so_far.extend(&whole[..13]);
    let rest = there.serve([request(so_far, 27)]).await[0].tokens();
    assert_eq!(rest, whole[13..]);
}

#[tokio::test(start_paused = true)]
async fn seeds_change_the_tokens() {
    let tokens = async |seed, request_seed| {
        let mut harness = Harness::new(MockerConfig { seed, ..instant() });
        let mut request = request(prompt(1, 10), 20);
        request.sampling_options.seed = request_seed;
        harness.serve([request]).await[0].tokens()
    };
    let first = tokens(1, None).await;
    assert_eq!(first, tokens(1, None).await);
    assert_ne!(first, tokens(2, None).await);
    assert_ne!(first, tokens(1, Some(5)).await);
}

#[tokio::test(start_paused = true)]
async fn replayed_events_are_what_the_pool_has() {
    replay(instant(), requests).await;
}

#[tokio::test(start_paused = true)]
async fn replayed_events_are_what_the_pool_has_of_what_was_handed_over_too() {
    replay(instant(), handed_requests).await;
    // A block takes 10 ms, so that several requests load the same ones at once.
    let slow = MockerConfig {
        kv_bytes_per_token: Some(1_000_000),
        kv_transfer_bandwidth: 1.6,
        ..MockerConfig::default()
    };
    replay(slow, handed_requests).await;
}

async fn replay(config: MockerConfig, requests: fn() -> Vec<PreprocessedRequest>) {
    let config =
        MockerConfig { num_gpu_blocks: 40, block_size: 16, watermark: 0.0, data_parallel_size: 2, ..config };
    let mut harness = Harness::new(config);
    for round in 0..5 {
        let readers: Vec<_> = requests()
            .into_iter()
            .enumerate()
            .map(|(i, mut request)| {
                request.token_ids[0] += round % 2;
                harness.submit_to(i as u32 % 2, request, Default::default()).1
            })
            .collect();
        for reader in readers {
            reader.ended().await;
        }
        harness.empty().await;
        let mut known: [BTreeMap<u64, Option<u64>>; 2] = Default::default();
        for (rank, event) in harness.observed.events.lock().iter() {
            let known = &mut known[*rank as usize];
            match event {
                KvCacheEventData::Stored { parent_hash, blocks } => {
                    let mut parent = parent_hash.map(|hash| hash.0);
                    for block in blocks {
                        assert!(
                            parent.is_none_or(|parent| known.contains_key(&parent)),
                            "an orphan was stored"
                        );
                        assert!(known.insert(block.block_hash.0, parent).is_none(), "stored twice");
                        parent = Some(block.block_hash.0);
                    }
                }
                KvCacheEventData::Removed { block_hashes } => {
                    for hash in block_hashes {
                        assert!(known.remove(&hash.0).is_some(), "removed what was not there");
                        assert!(!known.values().any(|parent| *parent == Some(hash.0)), "a child outlives it");
                    }
                }
                KvCacheEventData::Cleared => unreachable!("clearing is reported block by block"),
            }
        }
        for (rank, known) in known.iter().enumerate() {
            let stats = harness.engine.rank_stats(rank as u32).unwrap();
            assert_eq!(known.len() as u64, stats.cached_blocks);
            assert!(known.len() <= 40 && known.len() > 20);
        }
    }
}
