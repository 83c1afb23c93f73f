//! What it costs to decode events: `cargo bench -p dynamo-kv-router --bench engine_events`.
//!
//! Off an engine's wire the tokens are read and hashed, so the cost grows with the block; off the event plane it does not.

use std::{hint::black_box, time::Instant};

use dynamo_engine_api::{
    ExternalBlockHash, KvCacheEvent, KvCacheEventData, RouterEvent, StorageTier, StoredBlock,
};
use dynamo_kv_router::{EngineEventDecoder, RouterEventDecoder, WireEvent, WireForm, write_batch};
use dynamo_tokens::{BlockSize, LocalBlockHash, TokenId};

/// Blocks decoded in a measurement, a millisecond or less: on a busy machine a longer one is interrupted. The best of
/// [`ROUNDS`] is shown.
const BLOCKS: usize = 4_096;
const ROUNDS: usize = 400;

fn best(mut round: impl FnMut(), blocks: usize) -> f64 {
    let one = |round: &mut dyn FnMut()| {
        let began = Instant::now();
        for _ in 0..BLOCKS / blocks {
            round();
        }
        began.elapsed().as_nanos() as f64 / (BLOCKS / blocks * blocks) as f64
    };
    (0..ROUNDS).map(|_| one(&mut round)).fold(f64::INFINITY, f64::min)
}

fn engine(block_size: u32, per_event: usize, events: usize, form: WireForm) -> Option<f64> {
    let tokens: Vec<TokenId> =
        (0..block_size * per_event as u32).map(|token| token.wrapping_mul(2_654_435_761) % 128_000).collect();
    let hashes: Vec<u64> =
        (0..per_event as u64).map(|hash| hash.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1 << 63).collect();
    let stored = WireEvent::Stored {
        block_hashes: &hashes,
        parent: None,
        tokens: &tokens,
        block_size,
        lora_name: None,
    };
    let mut payload = Vec::new();
    write_batch(1.0, &vec![stored; events], Some(0), form, &mut payload);
    let (mut decoder, mut out) = (EngineEventDecoder::new(BlockSize::new(block_size)?), Vec::new());
    let round = || {
        decoder.decode(black_box(&payload), &mut out).expect("a whole batch");
        out.drain(..).for_each(|event| decoder.recycle(event.data));
    };
    Some(best(round, per_event * events))
}

fn router(per_event: usize, events: usize) -> f64 {
    let block = |hash: u64| StoredBlock {
        block_hash: ExternalBlockHash(!hash),
        tokens_hash: LocalBlockHash(hash << 40),
    };
    let event = |event_id: u64| RouterEvent {
        worker_id: 1 << 50,
        event: KvCacheEvent {
            event_id,
            data: KvCacheEventData::Stored {
                parent_hash: Some(ExternalBlockHash(1 << 60)),
                blocks: (0..per_event as u64).map(block).collect(),
            },
            dp_rank: 0,
        },
        storage_tier: StorageTier::Device,
    };
    let message: Vec<RouterEvent> = (0..events as u64).map(event).collect();
    let payload = rmp_serde::to_vec_named(&message).expect("it serializes");
    let (mut decoder, mut out) = (RouterEventDecoder::new(), Vec::new());
    let round = || {
        decoder.decode(black_box(&payload), &mut out).expect("a whole message");
        out.drain(..).for_each(|event| decoder.recycle(event.event.data));
    };
    best(round, per_event * events)
}

fn main() {
    for (per_event, events) in [(1, 16), (64, 1)] {
        for block_size in [16, 32, 64] {
            for form in [WireForm::Array, WireForm::Map] {
                if let Some(ns) = engine(block_size, per_event, events, form) {
                    println!(
                        "engine wire, {form:?}, {events} events of {per_event} blocks of {block_size} tokens: {ns:.1} ns a block"
                    );
                }
            }
        }
        let ns = router(per_event, events);
        println!("event plane, {events} events of {per_event} blocks: {ns:.1} ns a block");
    }
}
