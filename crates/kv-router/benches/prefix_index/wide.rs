//! Many workers: chains of 256 blocks, of which the first 32 are one of 4,096 prefixes.
//!
//! About one block in eight is shared, as in the traces, each by about a hundred workers.

use std::time::Duration;

use dynamo_engine_api::{ExternalBlockHash, KvCacheEventData, StoredBlock};
use dynamo_kv_router::Slot;
use dynamo_tokens::LocalBlockHash;

use crate::{Subject, memory, phases, workload::chained};

const PREFIXES: u64 = 4096;
const PREFIX_BLOCKS: u64 = 32;
const CHAIN_BLOCKS: u64 = 256;
const QUERIES: u64 = 20_000;
/// Blocks evicted and stored again at the end, per worker.
const CHURN_CHAINS: u64 = 20;

fn mix(value: u64) -> u64 {
    let product = (value ^ 0x5851_F42D_4C95_7F2D).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    product ^ product >> 32
}

/// The chain's blocks; every eighth query asks for a tail that nobody has.
fn chain(worker: u64, number: u64) -> Vec<LocalBlockHash> {
    let own = mix(worker << 32 | number);
    let prefix = own % PREFIXES;
    let block = |at| if at < PREFIX_BLOCKS { mix(prefix << 20 | at) } else { mix(own.wrapping_add(at << 1)) };
    (0..CHAIN_BLOCKS).map(|at| LocalBlockHash(block(at))).collect()
}

fn stored(local: &[LocalBlockHash]) -> KvCacheEventData {
    let mut before = 0;
    let block = |&tokens_hash: &LocalBlockHash| {
        before = chained(before, tokens_hash.0);
        StoredBlock { block_hash: ExternalBlockHash(before), tokens_hash }
    };
    KvCacheEventData::Stored { parent_hash: None, blocks: local.iter().map(block).collect() }
}

fn removed(event: &KvCacheEventData) -> KvCacheEventData {
    let KvCacheEventData::Stored { blocks, .. } = event else { return event.clone() };
    let tail = blocks[PREFIX_BLOCKS as usize..].iter().rev();
    KvCacheEventData::Removed { block_hashes: tail.map(|block| block.block_hash).collect() }
}

pub(crate) fn run<I: Subject>(name: &str, workers: u32, capacity: u64) {
    let chains = capacity / CHAIN_BLOCKS;
    let (live, resident) = (memory::live(), memory::resident());
    let mut index = I::make();
    let (mut spent, mut blocks, mut longest) = (Duration::ZERO, 0, Duration::ZERO);
    let mut apply = |index: &mut I, worker: u32, event: &KvCacheEventData| {
        let start = phases::computed();
        index.apply(Slot::new(worker, 0), event).expect("chains from their first block on");
        let took = phases::computed() - start;
        spent += took;
        longest = longest.max(took);
        blocks += crate::workload::blocks_of(event);
    };
    for number in 0..chains {
        for worker in 0..workers {
            apply(&mut index, worker, &stored(&chain(u64::from(worker), number)));
        }
    }
    for number in 0..CHURN_CHAINS.min(chains) {
        for worker in 0..workers {
            apply(&mut index, worker, &removed(&stored(&chain(u64::from(worker), number))));
            apply(&mut index, worker, &stored(&chain(u64::from(worker), chains + number)));
        }
    }
    let counts = index.counts();
    println!(
        "{{\"index\":\"{name}\",\"phase\":\"wide-write\",\"workers\":{workers},\"held\":{},\"blocks\":{blocks},\"s\":{:.4},\
         \"Mblocks_per_s\":{:.3},\"bytes_per_held\":{:.2},\"page_bytes_per_held\":{:.2},\"GB\":{:.3},\
         \"longest_event_us\":{}}}",
        counts.blocks,
        spent.as_secs_f64(),
        blocks as f64 / spent.as_secs_f64() / 1e6,
        (memory::live() - live) as f64 / counts.blocks as f64,
        memory::resident().saturating_sub(resident) as f64 / counts.blocks as f64,
        (memory::live() - live) as f64 / 1e9,
        longest.as_micros(),
    );
    let queries: Vec<_> = (0..QUERIES)
        .map(|number| {
            let worker = mix(number) % u64::from(workers);
            let mut query = chain(worker, CHURN_CHAINS.min(chains - 1) + mix(number + 7) % chains.max(2) / 2);
            if number % 8 == 0 {
                query.iter_mut().skip(PREFIX_BLOCKS as usize).for_each(|local| local.0 ^= 1);
            }
            query
        })
        .collect();
    phases::read(name, "wide-read", &index, &queries, false);
    phases::read(name, "wide-read-warm", &index, &queries, true);
}
