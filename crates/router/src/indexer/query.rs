//! Queries: tokens or hashes in, tokens held by whom out.

use std::{cell::RefCell, time::Instant};

use dynamo_kv_router::MatchBuffer;
use dynamo_tokens::{HashSeed, LocalBlockHash, local_block_hashes};

use super::{
    api::{QueryAnswer, QueryBody},
    registry::ModelIndex,
};

/// Hashes of a thread's scratch buffer that are kept for its next query; more are given back.
const KEPT_HASHES: usize = 1 << 16;

thread_local! {
    static SCRATCH: RefCell<(Vec<LocalBlockHash>, MatchBuffer)> = RefCell::default();
}

/// Hashes the prompt and asks the index.
pub(super) fn by_tokens(model: &ModelIndex, query: &QueryBody) -> QueryAnswer {
    SCRATCH.with_borrow_mut(|(local, matches)| {
        let seed = HashSeed::new(query.lora_name.as_deref(), query.cache_salt.as_deref());
        local_block_hashes(&query.token_ids, model.block_size, seed, local);
        let answer = ask(model, local, matches);
        local.shrink_to(KEPT_HASHES);
        answer
    })
}

/// Asks the index for a prompt whose blocks are hashed already.
pub(super) fn by_hashes(model: &ModelIndex, hashes: &[LocalBlockHash]) -> QueryAnswer {
    SCRATCH.with_borrow_mut(|(_, matches)| ask(model, hashes, matches))
}

fn ask(model: &ModelIndex, hashes: &[LocalBlockHash], matches: &mut MatchBuffer) -> QueryAnswer {
    let found = model.index.find_matches(hashes, Instant::now(), matches);
    let tokens = |blocks: u32| u64::from(blocks) * model.block_size.get() as u64;
    let mut answer = QueryAnswer { frequencies: matches.frequencies().to_vec(), ..QueryAnswer::default() };
    for held in found {
        let (instance, rank) = (held.rank.worker_id, held.rank.dp_rank);
        let (gpu, cpu, disk) = (tokens(held.device), tokens(held.host), tokens(held.any));
        if gpu > 0 {
            answer.scores.entry(instance).or_default().insert(rank, gpu);
        }
        let entry = answer.instances.entry(instance).or_default();
        entry.dp.insert(rank, gpu);
        entry.gpu = entry.gpu.max(gpu);
        entry.cpu = entry.cpu.max(cpu);
        entry.disk = entry.disk.max(disk);
        entry.longest_matched = entry.longest_matched.max(disk);
    }
    answer
}
