//! Messages of a real vLLM 0.32.0 (`data/vllm-0.32.0-kv-events.jsonl`: ZMQ frames in base64), from the wire to an index.
#![allow(clippy::unwrap_used, reason = "a test says where it fails")]

use std::collections::HashMap;

use dynamo_engine_api::{KvCacheEventData, RouterEvent};
use dynamo_kv_router::{
    EngineEventDecoder, EngineSequence, EventPipeline, FilterReason, KvIndex, MatchBuffer, WorkerRank,
};
use dynamo_tokens::{BlockSize, HashSeed, TokenId, local_block_hashes};
use serde_json::Value;
use vllm_messages::{SIZE, messages};

mod vllm_messages;

const WORKER: WorkerRank = WorkerRank { worker_id: 7, dp_rank: 0 };

/// What a plain reader makes of the same messages: blocks by name, how often each is held, and its path of tokens.
#[derive(Default)]
struct Plain {
    copies: HashMap<u64, u32>,
    paths: HashMap<u64, Vec<TokenId>>,
    stored: u64,
    removed: u64,
    cleared: u64,
}

impl Plain {
    fn apply(&mut self, payload: &[u8]) {
        let batch: Value = rmp_serde::from_slice(payload).unwrap();
        for event in batch[1].as_array().unwrap() {
            let hashes =
                || event["block_hashes"].as_array().unwrap().iter().map(|hash| hash.as_u64().unwrap());
            match event["type"].as_str().unwrap() {
                "BlockStored" => {
                    self.stored += 1;
                    let mut path = match event["parent_block_hash"].as_u64() {
                        Some(parent) => self.paths[&parent].clone(),
                        None => Vec::new(),
                    };
                    let tokens = event["token_ids"].as_array().unwrap();
                    for (hash, own) in hashes().zip(tokens.chunks(SIZE.get())) {
                        path.extend(own.iter().map(|token| token.as_u64().unwrap() as TokenId));
                        self.paths.insert(hash, path.clone());
                        *self.copies.entry(hash).or_default() += 1;
                    }
                }
                "BlockRemoved" => {
                    self.removed += 1;
                    for hash in hashes() {
                        let copies = self.copies.get_mut(&hash).unwrap();
                        *copies -= 1;
                        if *copies == 0 {
                            self.copies.remove(&hash);
                        }
                    }
                }
                "AllBlocksCleared" => {
                    self.cleared += 1;
                    self.copies.clear();
                }
                other => panic!("{other}"),
            }
        }
    }

    /// Leading blocks of a path of tokens that are held.
    fn leading(&self, path: &[TokenId]) -> u32 {
        let by_path: HashMap<&[TokenId], u64> =
            self.copies.keys().map(|hash| (&self.paths[hash][..], *hash)).collect();
        let held = |end: &usize| by_path.contains_key(&path[..*end]);
        (1..=path.len() / SIZE.get()).map(|blocks| blocks * SIZE.get()).take_while(held).count() as u32
    }
}

#[test]
fn all_messages_of_a_real_engine_decode_apply_and_are_found() {
    let mut sequence = EngineSequence::new();
    let mut decoder = EngineEventDecoder::new(SIZE);
    let mut pipeline = EventPipeline::new(WORKER.worker_id, WORKER.dp_rank);
    let mut index: KvIndex = KvIndex::default();
    index.add_worker(WORKER.worker_id, 1, 0..1, Some(64)).unwrap();
    let mut plain = Plain::default();
    let (mut numbers, mut answers) = (Vec::new(), MatchBuffer::default());
    for (number, payload) in messages() {
        assert_eq!(sequence.look(number), dynamo_kv_router::BatchArrival::Next);
        sequence.took(number);
        let mut events = Vec::new();
        let info = decoder.decode(&payload, &mut events).unwrap();
        assert_eq!(info.dp_rank, Some(0));
        let mut send = |message: &[RouterEvent]| {
            for event in message {
                numbers.push(event.event.event_id);
                index.apply(WORKER, 1, &event.event.data).unwrap();
            }
        };
        for event in events {
            pipeline.push(event, &mut send);
        }
        pipeline.flush(&mut send);
        plain.apply(&payload);
        assert_eq!(index.held_blocks(WORKER) as usize, plain.copies.len());
        // Every prompt that the engine ever told of is found as far as it holds it now.
        for path in plain.paths.values() {
            let mut locals = Vec::new();
            local_block_hashes(path, SIZE, HashSeed::PLAIN, &mut locals);
            index.find_matches(&locals, &mut answers);
            let found = answers.matches().first().map_or(0, |found| found.device_blocks);
            assert_eq!(found, plain.leading(path), "after message {number}");
        }
    }
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
    let counters = decoder.counters();
    assert_eq!((plain.stored, plain.removed, plain.cleared), (27, 24, 1));
    assert_eq!((counters.received, counters.accepted), (52, 52));
    assert_eq!(counters.not_unique + counters.cut_short, 0);
    assert!(pipeline.doubled_blocks() > 0, "the engine stored blocks twice");
    assert_eq!(pipeline.local().failed_events(), 0);
}

#[test]
fn another_block_size_is_said_and_nothing_is_stored() {
    let mut decoder = EngineEventDecoder::new(BlockSize::new(16).unwrap());
    let mut events = Vec::new();
    for (_, payload) in messages() {
        decoder.decode(&payload, &mut events).unwrap();
    }
    assert!(!events.iter().any(|event| matches!(event.data, KvCacheEventData::Stored { .. })));
    let counters = decoder.counters();
    assert_eq!((counters.filtered(FilterReason::BlockSize), counters.other_block_size), (27, Some(32)));
}
