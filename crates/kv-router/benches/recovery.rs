//! What a router that starts beside running workers does: it reads each worker's dump and applies it.
//!
//! `cargo bench -p dynamo-kv-router --bench recovery [-- BLOCKS]`. Prints one JSON row: seconds per million blocks on one core,
//! apart for reading and applying. Two thirds of each worker's blocks are prompts that others have too.

use std::{hint::black_box, time::Instant};

use dynamo_engine_api::{ExternalBlockHash, KvCacheEventData, StoredBlock};
use dynamo_kv_router::{KvIndex, KvQuery, KvQueryAnswer, LocalIndexer, WorkerRank};
use dynamo_tokens::{LocalBlockHash, SequenceHash};

const WORKERS: u64 = 64;
/// Blocks of a prompt.
const PROMPT: u64 = 64;
const ROUNDS: usize = 5;

/// A prompt's blocks under the names that engines give them here: the hashes of all that came before.
fn prompt(number: u64) -> KvCacheEventData {
    let mut parent = None;
    let mut blocks = Vec::new();
    for place in 0..PROMPT {
        // Scattered as hashes are.
        let tokens_hash = LocalBlockHash((number << 20 | place).wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let name = SequenceHash::chain(parent, tokens_hash);
        parent = Some(name);
        blocks.push(StoredBlock { block_hash: ExternalBlockHash(name.0), tokens_hash });
    }
    KvCacheEventData::Stored { parent_hash: None, blocks }
}

/// What each worker answers when it is asked for a dump, and how many blocks that is.
fn dumps(blocks: u64) -> (Vec<Vec<u8>>, u64) {
    let prompts = (blocks / WORKERS / PROMPT).max(1);
    let mut held = 0;
    let of = |worker: u64| {
        let mut local = LocalIndexer::new(0);
        for place in 0..prompts {
            let shared = place % 3 != 0;
            local.record(prompt(if shared { place } else { (worker + 1) << 24 | place }));
        }
        held += u64::from(local.held_blocks());
        let query = KvQuery { dp_rank: 0, start_event_id: None, end_event_id: None };
        rmp_serde::to_vec_named(&local.answer(&query)).expect("a dump serializes")
    };
    ((0..WORKERS).map(of).collect(), held)
}

fn main() {
    let asked = std::env::args().skip(1).find_map(|argument| argument.parse().ok());
    let (dumps, blocks) = dumps(asked.unwrap_or(1_000_000));
    let bytes: usize = dumps.iter().map(Vec::len).sum();
    let mut best: Option<(f64, f64)> = None;
    for _ in 0..ROUNDS {
        let mut index: KvIndex = KvIndex::default();
        let (mut reading, mut applying) = (0.0, 0.0);
        for (worker_id, dump) in (0..).zip(&dumps) {
            let began = Instant::now();
            let answer: KvQueryAnswer = rmp_serde::from_slice(dump).expect("a dump reads");
            reading += began.elapsed().as_secs_f64();
            let KvQueryAnswer::TreeDump { events, .. } = answer else { panic!("not a dump") };
            let began = Instant::now();
            index.add_worker(worker_id, 1, 0..1, None).expect("a worker is taken on");
            let rank = WorkerRank { worker_id, dp_rank: 0 };
            for event in &events {
                index.apply(rank, 1, &event.data).expect("an event of a dump applies");
            }
            applying += began.elapsed().as_secs_f64();
        }
        assert_eq!(black_box(&index).counts().blocks as u64, blocks);
        let total = reading + applying;
        if best.is_none_or(|(reading, applying)| total < reading + applying) {
            best = Some((reading, applying));
        }
    }
    let (reading, applying) = best.unwrap_or_default();
    let per_million = 1e6 / blocks as f64;
    println!(
        "{{\"bench\":\"recovery\",\"blocks\":{blocks},\"bytes_per_block\":{:.1},\"read_s_per_million\":{:.3},\"apply_s_per_million\":{:.3},\"total_s_per_million\":{:.3}}}",
        bytes as f64 / blocks as f64,
        reading * per_million,
        applying * per_million,
        (reading + applying) * per_million,
    );
}
