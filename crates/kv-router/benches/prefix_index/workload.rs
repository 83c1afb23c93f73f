//! Events and queries from a trace of requests, the same for every index and every program that is measured beside.
//!
//! Each row of the trace lists the hashes of its prompt's 512-token blocks. A block of the setting is a part of one of
//! those; a request's worker follows from the prompt's second block, every fifth request's from its number. A worker
//! keeps the blocks that it used last, the deeper of a request being the older ones.

use std::collections::{BTreeMap, HashMap};

use dynamo_engine_api::{ExternalBlockHash, KvCacheEventData, StoredBlock};
use dynamo_tokens::LocalBlockHash;
use xxhash_rust::xxh3::xxh3_64_with_seed;

const TRACE_BLOCK_TOKENS: u64 = 512;

/// What is measured.
pub(crate) struct Workload {
    pub(crate) queries: Vec<Vec<LocalBlockHash>>,
    /// The worker, and what happened.
    pub(crate) events: Vec<(u32, KvCacheEventData)>,
    pub(crate) workers: u32,
    /// By worker: the blocks at the end, the one to evict first in front.
    pub(crate) held: Vec<Vec<ExternalBlockHash>>,
}

impl Workload {
    pub(crate) fn held_pairs(&self) -> usize {
        self.held.iter().map(Vec::len).sum()
    }

    pub(crate) fn event_blocks(&self) -> usize {
        self.events.iter().map(|(_, event)| blocks_of(event)).sum()
    }
}

pub(crate) fn blocks_of(event: &KvCacheEventData) -> usize {
    match event {
        KvCacheEventData::Stored { blocks, .. } => blocks.len(),
        KvCacheEventData::Removed { block_hashes } => block_hashes.len(),
        KvCacheEventData::Cleared => 0,
    }
}

pub(crate) fn chained(before: u64, next: u64) -> u64 {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&before.to_le_bytes());
    bytes[8..].copy_from_slice(&next.to_le_bytes());
    xxh3_64_with_seed(&bytes, 1337)
}

/// One worker's blocks, by when they were last used.
#[derive(Default)]
struct Cache {
    used: HashMap<u64, u64>,
    by_use: BTreeMap<u64, u64>,
    clock: u64,
}

impl Cache {
    fn used_now(&mut self, block: u64) {
        self.clock += 1;
        if let Some(before) = self.used.insert(block, self.clock) {
            self.by_use.remove(&before);
        }
        self.by_use.insert(self.clock, block);
    }

    fn evict_to(&mut self, capacity: usize) -> Vec<ExternalBlockHash> {
        let mut evicted = Vec::new();
        while self.used.len() > capacity {
            let Some((_, block)) = self.by_use.pop_first() else { break };
            self.used.remove(&block);
            evicted.push(ExternalBlockHash(block));
        }
        evicted
    }
}

/// Reads a trace, a JSON object with `hash_ids` a line.
pub(crate) fn load(path: &str, block_tokens: u64, workers: u32, capacity: usize) -> Workload {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("cannot read {path}: {error}"));
    let mut caches: Vec<Cache> = (0..workers).map(|_| Cache::default()).collect();
    let (mut queries, mut events) = (Vec::new(), Vec::new());
    for (number, line) in (0u64..).zip(text.lines()) {
        let row: serde_json::Value = serde_json::from_str(line).expect("a JSON object a line");
        let ids: Vec<u64> =
            row["hash_ids"].as_array().expect("hash_ids").iter().filter_map(|id| id.as_u64()).collect();
        let parts = TRACE_BLOCK_TOKENS / block_tokens;
        let local: Vec<u64> =
            ids.iter().flat_map(|&id| (0..parts).map(move |part| chained(id, part))).collect();
        let mut names: Vec<u64> = Vec::with_capacity(local.len());
        for &local in &local {
            names.push(names.last().map_or(local, |&before| chained(before, local)));
        }
        let worker = match number % 5 {
            0 => chained(number, 7),
            _ => chained(ids.get(1).copied().unwrap_or(0), 3),
        };
        let worker = (worker % u64::from(workers)) as u32;
        let cache = &mut caches[worker as usize];
        let cached = names.iter().take_while(|name| cache.used.contains_key(name)).count();
        names.iter().rev().for_each(|&name| cache.used_now(name));
        if cached < names.len() {
            let block = |(&name, &local): (&u64, &u64)| StoredBlock {
                block_hash: ExternalBlockHash(name),
                tokens_hash: LocalBlockHash(local),
            };
            let parent_hash = cached.checked_sub(1).map(|at| ExternalBlockHash(names[at]));
            let blocks = names.iter().zip(&local).skip(cached).map(block).collect();
            events.push((worker, KvCacheEventData::Stored { parent_hash, blocks }));
        }
        let block_hashes = cache.evict_to(capacity);
        if !block_hashes.is_empty() {
            events.push((worker, KvCacheEventData::Removed { block_hashes }));
        }
        queries.push(local.into_iter().map(LocalBlockHash).collect());
    }
    let held =
        caches.iter().map(|cache| cache.by_use.values().map(|&name| ExternalBlockHash(name)).collect());
    Workload { queries, events, workers, held: held.collect() }
}

/// The same events, each cut into those of single blocks.
pub(crate) fn one_by_one(event: &KvCacheEventData) -> Vec<KvCacheEventData> {
    match event {
        KvCacheEventData::Stored { parent_hash, blocks } => {
            let mut before = *parent_hash;
            let one = |block: &StoredBlock| {
                let parent_hash = before.replace(block.block_hash);
                KvCacheEventData::Stored { parent_hash, blocks: vec![*block] }
            };
            blocks.iter().map(one).collect()
        }
        KvCacheEventData::Removed { block_hashes } => {
            block_hashes.iter().map(|&hash| KvCacheEventData::Removed { block_hashes: vec![hash] }).collect()
        }
        KvCacheEventData::Cleared => vec![KvCacheEventData::Cleared],
    }
}
