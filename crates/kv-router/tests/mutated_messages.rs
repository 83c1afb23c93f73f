//! What reads bytes from outside, over messages that were real once: cut, spliced and with bytes changed. The same checks
//! as the fuzzers in `fuzz/`, a fixed number of times with a fixed seed, so that they run wherever tests do.
#![allow(clippy::unwrap_used, reason = "a test says where it fails")]

use dynamo_engine_api::{
    ExternalBlockHash, KvCacheEvent, KvCacheEventData, RouterEvent, StorageTier, StoredBlock,
};
use dynamo_kv_router::{
    EngineEventDecoder, EventPipeline, FilterReason, KvQuery, KvQueryAnswer, RadixTree, RankEvent,
    RouterEventDecoder, Slot, TieredWriter, WireEvent, WireForm, write_batch,
};
use dynamo_tokens::LocalBlockHash;
use rand::{Rng, SeedableRng, rngs::SmallRng};

mod vllm_messages;

/// Some three seconds.
const ROUNDS: u32 = 300_000;
/// Rounds that one decoder, pipeline and index live: state from broken messages is a part of what is tried.
const LIFE: u32 = 500;
/// Bytes that say how long something is, or what it is.
const MARKS: [u8; 14] = [0x00, 0x01, 0x7f, 0x80, 0x90, 0x91, 0xc0, 0xc4, 0xcf, 0xd3, 0xda, 0xdc, 0xdd, 0xff];

/// Breaks a message in one to four places.
fn mutate(message: &mut Vec<u8>, others: &[Vec<u8>], rng: &mut SmallRng) {
    for _ in 0..rng.random_range(1..=4) {
        if message.is_empty() {
            message.push(rng.random());
        }
        let at = rng.random_range(0..message.len());
        let end = (at + rng.random_range(1..=16)).min(message.len());
        match rng.random_range(0..8) {
            0 => message[at] ^= 1 << rng.random_range(0..8),
            1 => message[at] = MARKS[rng.random_range(0..MARKS.len())],
            2 => message[at] = rng.random(),
            3 => drop(message.drain(at..end)),
            4 => {
                let copied = message[at..end].to_vec();
                message.splice(at..at, copied);
            }
            5 => message.truncate(at),
            6 => message[at..end].fill(0xff),
            _ => {
                let other = &others[rng.random_range(0..others.len())];
                let from = rng.random_range(0..other.len());
                let to = (from + rng.random_range(1..=64)).min(other.len());
                message.splice(at..end, other[from..to].iter().copied());
            }
        }
    }
}

fn blocks(data: &KvCacheEventData) -> usize {
    match data {
        KvCacheEventData::Stored { blocks, .. } => blocks.len(),
        KvCacheEventData::Removed { block_hashes } => block_hashes.len(),
        KvCacheEventData::Cleared => 0,
    }
}

const SLOT: Slot = Slot::new(0, 0);

/// The tree that a router would have.
fn applied(events: &[RankEvent]) -> TieredWriter {
    let mut index = TieredWriter::new(RadixTree::new());
    for event in events {
        // A fault of an engine is an answer too.
        let _ = index.apply(SLOT, event.storage_tier, &event.data);
    }
    index
}

#[test]
fn broken_batches_of_an_engine_are_events_or_faults_and_leave_publisher_and_routers_of_one_mind() {
    let mut corpus: Vec<Vec<u8>> =
        vllm_messages::messages().into_iter().map(|(_, payload)| payload).collect();
    for form in [WireForm::Array, WireForm::Map] {
        let tokens: Vec<u32> = (0..128).collect();
        let mut payload = Vec::new();
        let events = [
            WireEvent::Stored {
                block_hashes: &[1, 2, u64::MAX, 4],
                parent: None,
                tokens: &tokens,
                block_size: 32,
                lora_name: Some("adapter"),
            },
            WireEvent::Removed { block_hashes: &[2, 4] },
            WireEvent::Cleared,
        ];
        write_batch(1.5, &events, Some(0), form, &mut payload);
        corpus.push(payload);
    }
    for medium in ["CPU", "DISK", "TAPE"] {
        let stored = serde_json::json!(["BlockStored", [7, 8], null, vec![3; 64], 32, null, medium, null]);
        let below =
            serde_json::json!(["BlockStored", [9], 8, vec![5; 32], 32, null, medium, "l", [["k"]], 0]);
        let removed = serde_json::json!(["BlockRemoved", [7], medium]);
        corpus.push(rmp_serde::to_vec(&serde_json::json!([0.5, [stored, below, removed], null])).unwrap());
    }
    let mut rng = SmallRng::seed_from_u64(11);
    for _ in 0..ROUNDS / LIFE {
        let mut decoder = EngineEventDecoder::new(vllm_messages::SIZE);
        let mut pipeline = EventPipeline::new(7, 0);
        let (mut events, mut sent) = (Vec::new(), Vec::new());
        for _ in 0..LIFE {
            let mut payload = corpus[rng.random_range(0..corpus.len())].clone();
            // Some are whole, so that there is something to break.
            if rng.random_range(0..4) > 0 {
                mutate(&mut payload, &corpus, &mut rng);
            }
            let _ = decoder.decode(&payload, &mut events);
            let named: usize = events.iter().map(|event| blocks(&event.data)).sum();
            assert!(named <= payload.len(), "{named} blocks out of {} bytes", payload.len());
            let mut send =
                |message: &[RouterEvent]| sent.extend(message.iter().cloned().map(RankEvent::from));
            events.drain(..).for_each(|event| pipeline.push(event, &mut send));
            pipeline.flush(&mut send);
        }
        let counters = decoder.counters();
        let filtered: u64 = FilterReason::ALL.iter().map(|&reason| counters.filtered(reason)).sum();
        assert_eq!(counters.received, counters.accepted + filtered);
        assert!(
            filtered > 0 && counters.accepted > 100,
            "{counters:?}: the changes are too fine or too coarse"
        );
        let numbers: Vec<u64> = sent.iter().map(|event| event.event_id).collect();
        assert_eq!(numbers, (1..=sent.len() as u64).collect::<Vec<_>>());
        // Who heard everything and who asks now hold the same on the device, and on all tiers.
        let heard = applied(&sent);
        let query = KvQuery { dp_rank: 0, start_event_id: None, end_event_id: None };
        let KvQueryAnswer::TreeDump { events: dump, .. } = pipeline.answer(&query) else { panic!("no dump") };
        let asked = applied(&dump);
        assert_eq!(heard.held_blocks(SLOT), pipeline.local().held_blocks());
        assert_eq!(asked.held_blocks(SLOT), pipeline.local().held_blocks());
        let stored = |index: &TieredWriter| {
            let mut all: Vec<(StorageTier, u64)> = Vec::new();
            for (tier, event) in index.dump(SLOT) {
                match event {
                    KvCacheEventData::Stored { blocks, .. } => {
                        all.extend(blocks.iter().map(|block| (tier, block.block_hash.0)));
                    }
                    KvCacheEventData::Removed { block_hashes } => {
                        all.retain(|(on, name)| {
                            *on != tier || block_hashes.iter().all(|gone| gone.0 != *name)
                        });
                    }
                    KvCacheEventData::Cleared => {}
                }
            }
            all.sort_unstable();
            all
        };
        assert_eq!(stored(&heard), stored(&asked));
    }
}

#[test]
fn broken_messages_of_the_event_plane_are_events_or_an_error() {
    let block = |hash: u64| StoredBlock {
        block_hash: ExternalBlockHash(hash),
        tokens_hash: LocalBlockHash(hash.wrapping_mul(0x9E37_79B9_7F4A_7C15)),
    };
    let changes = [
        KvCacheEventData::Stored { parent_hash: None, blocks: (0..20).map(block).collect() },
        KvCacheEventData::Stored { parent_hash: Some(ExternalBlockHash(19)), blocks: vec![block(u64::MAX)] },
        KvCacheEventData::Removed { block_hashes: (5..9).map(ExternalBlockHash).collect() },
        KvCacheEventData::Cleared,
    ];
    let tiers = [StorageTier::Device, StorageTier::HostPinned, StorageTier::Disk, StorageTier::External];
    let event = |(number, data): (u64, KvCacheEventData)| RouterEvent {
        worker_id: 1 << 52,
        event: KvCacheEvent { event_id: number, data, dp_rank: number as u32 },
        storage_tier: tiers[number as usize],
    };
    let events: Vec<RouterEvent> = (0..).zip(changes).map(event).collect();
    let mut corpus: Vec<Vec<u8>> =
        events.iter().map(|event| rmp_serde::to_vec_named(&[event]).unwrap()).collect();
    corpus.push(rmp_serde::to_vec_named(&events).unwrap());
    let (mut decoder, mut decoded) = (RouterEventDecoder::new(), Vec::new());
    let mut rng = SmallRng::seed_from_u64(12);
    let mut read = 0;
    for _ in 0..ROUNDS {
        let mut payload = corpus[rng.random_range(0..corpus.len())].clone();
        mutate(&mut payload, &corpus, &mut rng);
        let is_read = decoder.decode(&payload, &mut decoded).is_ok();
        read += u32::from(is_read);
        let named: usize = decoded.iter().map(|event| blocks(&event.event.data)).sum();
        assert!(named <= payload.len(), "{named} blocks out of {} bytes", payload.len());
        if is_read {
            // What was read can be written, and reads the same.
            let again = rmp_serde::to_vec_named(&decoded).unwrap();
            let mut second = Vec::new();
            decoder.decode(&again, &mut second).unwrap();
            assert_eq!(decoded, second);
        }
        decoded.drain(..).for_each(|event| decoder.recycle(event.event.data));
    }
    assert!(read > ROUNDS / 100, "{read} of {ROUNDS} were read: the changes are too coarse");
}
