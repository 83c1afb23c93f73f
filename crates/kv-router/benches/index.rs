//! Nanoseconds per block of the index, and per request of the choice, on a synthetic tree:
//! `cargo bench -p dynamo-kv-router --bench index`. Time is the thread's own where the system tells it (Linux), so
//! that a busy machine disturbs less.

use std::{
    hint::black_box,
    sync::LazyLock,
    time::{Duration, Instant},
};

use dynamo_engine_api::{ExternalBlockHash, KvCacheEventData, StoredBlock};
use dynamo_kv_router::{
    KvIndex, KvRouterConfig, KvScheduler, MatchBuffer, PrefixIndex, RadixTree, ScheduleRequest,
    SelectRequest, Slot,
};
use dynamo_tokens::{BlockSize, LocalBlockHash, SequenceHash, sequence_hashes};

const WORKERS: u32 = 64;
const PREFIXES: u64 = 16;
const PREFIX_BLOCKS: u64 = 64;
const BLOCKS: u64 = 192;
const CHAINS: u64 = 8192;

/// A quarter or so of each chain is one of a few common prefixes; each is stored on two workers.
fn chain(number: u64) -> Vec<LocalBlockHash> {
    let hash = |value: u64| LocalBlockHash(value.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (value >> 7));
    let prefix = number % PREFIXES;
    (0..BLOCKS)
        .map(|at| if at < PREFIX_BLOCKS { hash(prefix << 20 | at) } else { hash((number + 100) << 20 | at) })
        .collect()
}

fn stored(names: &[SequenceHash], local: &[LocalBlockHash]) -> KvCacheEventData {
    let block = |(name, &tokens_hash): (&SequenceHash, _)| StoredBlock {
        block_hash: ExternalBlockHash(name.0),
        tokens_hash,
    };
    KvCacheEventData::Stored { parent_hash: None, blocks: names.iter().zip(local).map(block).collect() }
}

/// Time that this thread has computed, to about a scheduler tick.
fn computed() -> Duration {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    match stat.split_whitespace().next().and_then(|nanos| nanos.parse().ok()) {
        Some(nanos) if nanos > 0 => Duration::from_nanos(nanos),
        _ => START.elapsed(),
    }
}

fn report(what: &str, took: Duration, operations: u64, unit: &str) {
    println!("{what:<44} {:>10.1} ns per {unit}", took.as_nanos() as f64 / operations as f64);
}

fn main() {
    let chains: Vec<_> = (0..CHAINS).map(chain).collect();
    let mut names = Vec::new();
    let events: Vec<_> = chains
        .iter()
        .map(|local| {
            sequence_hashes(local, &mut names);
            stored(&names, local)
        })
        .collect();
    let holders = |number: usize| [number as u32 % WORKERS, (number as u32 * 7 + 3) % WORKERS];

    let mut tree = RadixTree::new();
    for (round, what) in ["store, new blocks", "store, blocks of another worker"].into_iter().enumerate() {
        let start = computed();
        for (number, event) in events.iter().enumerate() {
            let slot = Slot::new(holders(number)[round], 0);
            tree.apply(slot, event).expect("a chain from its first block on");
        }
        report(what, computed() - start, CHAINS * BLOCKS, "block");
    }
    let counts = tree.counts();
    println!(
        "{:<44} {:>10.1} B per held pair ({} pairs, {} nodes)",
        "memory",
        counts.bytes as f64 / counts.blocks as f64,
        counts.blocks,
        counts.nodes
    );

    let mut out = MatchBuffer::default();
    let start = computed();
    for local in &chains {
        tree.find_matches(local, &mut out);
        black_box(&out);
    }
    report("find, whole chain", computed() - start, CHAINS * BLOCKS, "block");
    let mut missing = chains[0].clone();
    missing.truncate(PREFIX_BLOCKS as usize);
    missing.extend((0..BLOCKS - PREFIX_BLOCKS).map(|at| LocalBlockHash(at + 5)));
    let start = computed();
    const QUERIES: u64 = 1_000_000;
    for _ in 0..QUERIES {
        tree.find_matches(black_box(&missing), &mut out);
    }
    report("find, common prefix of 64 blocks", computed() - start, QUERIES, "query");

    let removals: Vec<_> = events
        .iter()
        .map(|event| match event {
            KvCacheEventData::Stored { blocks, .. } => KvCacheEventData::Removed {
                block_hashes: blocks
                    .iter()
                    .rev()
                    .take((BLOCKS - PREFIX_BLOCKS) as usize)
                    .map(|b| b.block_hash)
                    .collect(),
            },
            other => other.clone(),
        })
        .collect();
    let start = computed();
    for (number, event) in removals.iter().enumerate() {
        for holder in holders(number) {
            // Both holders of a chain may be the same worker.
            let _ = tree.apply(Slot::new(holder, 0), event);
        }
    }
    report("remove, tails", computed() - start, 2 * CHAINS * (BLOCKS - PREFIX_BLOCKS), "block");
    for (number, event) in events.iter().enumerate() {
        for holder in holders(number) {
            tree.apply(Slot::new(holder, 0), event).expect("a chain from its first block on");
        }
    }
    let start = computed();
    for worker in 0..WORKERS {
        tree.clear(Slot::new(worker, 0));
    }
    report("clear, all workers", computed() - start, u64::from(WORKERS), "worker");
    println!("{:<44} {:>10} B", "memory when empty", tree.counts().bytes);

    decide();
}

/// The whole choice for prompts of 1000 blocks on 64 ranks, with 512 requests running.
fn decide() {
    println!("prompts of 1000 blocks on 64 ranks, 512 requests running:");
    let block_size = BlockSize::new(16).expect("not zero");
    let mut index: KvIndex = KvIndex::default();
    let mut scheduler =
        KvScheduler::new(KvRouterConfig::REFERENCE, block_size, 1).expect("the reference is valid");
    for worker in 0..u64::from(WORKERS) {
        let slots = index.add_worker(worker, 1, 0..1, None).expect("room for 64");
        scheduler.set_worker(worker, 1, &slots, false);
    }
    let hash = |prompt: u64, at: u64| LocalBlockHash(if at < 500 { at + 1 } else { prompt << 20 | at });
    let prompts: Vec<(Vec<_>, Vec<_>)> = (0..512)
        .map(|prompt| {
            let local: Vec<_> = (0..1000).map(|at| hash(prompt, at)).collect();
            let mut sequence = Vec::new();
            sequence_hashes(&local, &mut sequence);
            (local, sequence)
        })
        .collect();
    let mut matches = MatchBuffer::default();
    let now = Instant::now();
    let select = SelectRequest { isl_tokens: 16_000, ..SelectRequest::default() };
    let request =
        |sequence| ScheduleRequest { prompt_blocks: sequence, expected_output_tokens: None, select };
    let mut running = Vec::new();
    let start = computed();
    for (local, sequence) in &prompts {
        index.find_matches(local, &mut matches);
        let reservation =
            scheduler.choose_and_reserve(&request(sequence), &matches, now).expect("there are workers");
        running.push(reservation);
    }
    report("match, choose and reserve, index empty", computed() - start, prompts.len() as u64, "request");
    for (reservation, (local, sequence)) in running.iter().zip(&prompts) {
        let stored = stored(sequence, local);
        index.apply(reservation.selection.worker, 1, &stored).expect("a chain from its first block on");
    }
    const ROUNDS: u64 = 50;
    let start = computed();
    for _ in 0..ROUNDS {
        for (local, sequence) in &prompts {
            index.find_matches(local, &mut matches);
            black_box(scheduler.choose(&request(sequence), &matches, now).expect("there are workers"));
        }
    }
    report("match and choose", computed() - start, ROUNDS * prompts.len() as u64, "request");
    let start = computed();
    for reservation in &running {
        scheduler.free(reservation.id, now);
    }
    report("free", computed() - start, prompts.len() as u64, "request");
}
