//! Work to count instructions of: `prefix_index_cost store|query|remove [run|radix]` prints how many blocks the measured
//! part has.
//!
//! `scripts/index_cost.sh` runs it under callgrind and holds the instructions per block to limits, which do not depend
//! on how busy a machine is.

use std::hint::black_box;

use dynamo_engine_api::{ExternalBlockHash, KvCacheEventData, StoredBlock};
use dynamo_kv_router::{MatchBuffer, PrefixIndex, RadixTree, RunIndex, Slot};
use dynamo_tokens::LocalBlockHash;

const SLOTS: u64 = 16;
const CHAINS: u64 = 400;
const BLOCKS: u64 = 128;
/// Blocks that a chain shares with every eighth other.
const SHARED: u64 = 32;

fn mix(value: u64) -> u64 {
    let product = (value ^ 0x5851_F42D_4C95_7F2D).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    product ^ product >> 32
}

fn chain(number: u64) -> Vec<StoredBlock> {
    let mut name = 0;
    let block = |at: u64| {
        let local = if at < SHARED { mix((number % 8) << 32 | at) } else { mix((number + 8) << 32 | at) };
        name = mix(name ^ local);
        StoredBlock { block_hash: ExternalBlockHash(name), tokens_hash: LocalBlockHash(local) }
    };
    (0..BLOCKS).map(block).collect()
}

/// Callgrind counts what happens in here, and nothing else.
#[inline(never)]
fn measured(
    index: &mut impl PrefixIndex,
    events: &[(Slot, KvCacheEventData)],
    queries: &[Vec<LocalBlockHash>],
) {
    for (slot, event) in events {
        index.apply(*slot, event).expect("whole chains, each of them held");
    }
    let mut out = MatchBuffer::default();
    for query in queries {
        index.find_matches(query, &mut out);
        black_box(&out);
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let what = arguments.first().map_or("", String::as_str);
    if arguments.get(1).is_some_and(|index| index == "radix") {
        work(what, RadixTree::new());
    } else {
        work(what, RunIndex::new());
    }
}

fn work(what: &str, mut index: impl PrefixIndex) {
    let chains: Vec<_> = (0..CHAINS).map(chain).collect();
    let slot = |number: usize| Slot::new((number as u64 % SLOTS) as u32, 0);
    let numbered = || chains.iter().enumerate();
    let stores: Vec<_> = numbered()
        .map(|(number, blocks)| {
            (slot(number), KvCacheEventData::Stored { parent_hash: None, blocks: blocks.clone() })
        })
        .collect();
    if what == "store" {
        measured(&mut index, &stores, &[]);
        println!("{}", CHAINS * BLOCKS);
        return;
    }
    for (slot, event) in &stores {
        index.apply(*slot, event).expect("whole chains");
    }
    if what == "query" {
        let local = |blocks: &Vec<StoredBlock>| blocks.iter().map(|block| block.tokens_hash).collect();
        let queries: Vec<_> = chains.iter().map(local).collect();
        measured(&mut index, &[], &queries);
        println!("{}", CHAINS * BLOCKS);
    } else if what == "remove" {
        let tails = numbered().map(|(number, blocks)| {
            let tail = blocks[SHARED as usize..].iter().rev();
            (
                slot(number),
                KvCacheEventData::Removed { block_hashes: tail.map(|block| block.block_hash).collect() },
            )
        });
        measured(&mut index, &tails.collect::<Vec<_>>(), &[]);
        println!("{}", CHAINS * (BLOCKS - SHARED));
    } else {
        // As `cargo bench` calls it: nothing to measure by itself.
        println!("one of: store, query, remove; scripts/index_cost.sh counts their instructions");
    }
}
