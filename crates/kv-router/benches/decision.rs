//! The whole decision for a prompt of 100,000 tokens, over 64 workers with 20,000 active blocks each:
//! `cargo bench -p dynamo-kv-router --bench decision`. From tokens to a reserved worker: hashes, index, loads, choice,
//! booking. Time is the thread's own where the system tells it (Linux), so that a busy machine disturbs less.

use std::{
    hint::black_box,
    time::{Duration, Instant},
};

use dynamo_engine_api::{ExternalBlockHash, KvCacheEventData, StoredBlock};
use dynamo_kv_router::{
    KvIndex, KvRouterConfig, KvScheduler, MatchBuffer, PrefillLoadModel, Reservation, ScheduleRequest,
    SelectRequest,
};
use dynamo_tokens::{
    BlockSize, HashSeed, LocalBlockHash, SequenceHash, TokenId, local_block_hashes, sequence_hashes,
};

const WORKERS: u64 = 64;
const ACTIVE_BLOCKS: usize = 20_000;
const TOKENS: usize = 100_000;
/// Prompts that share a beginning.
const GROUP: usize = 16;
/// Tokens of that beginning.
const SHARED: usize = 30_000;
/// Enough that neither tokens nor prompts are in the nearest caches.
const QUERIES: usize = 64;

/// Tokens of a prompt: those of its group, then its own. A query that `extends` has half of another prompt's own.
fn prompt(number: usize) -> Vec<TokenId> {
    let group = number / GROUP;
    (0..TOKENS)
        .map(|at| {
            let source = if at < SHARED { group } else { 1_000_000 + number };
            ((source as u64 * 1_000_003 + at as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 47) as TokenId
        })
        .collect()
}

struct Hashed {
    local: Vec<LocalBlockHash>,
    sequence: Vec<SequenceHash>,
}

fn hashed(tokens: &[TokenId], block_size: BlockSize) -> Hashed {
    let (mut local, mut sequence) = (Vec::new(), Vec::new());
    local_block_hashes(tokens, block_size, HashSeed::PLAIN, &mut local);
    sequence_hashes(&local, &mut sequence);
    Hashed { local, sequence }
}

const PARTS: [&str; 6] = ["local hashes", "sequence hashes", "match", "choose", "choose and reserve", "free"];
/// The least of so many rounds counts.
const ROUNDS: u32 = 20;

fn run(block_size: u32, prefill_load_model: PrefillLoadModel) {
    let block_size = BlockSize::new(block_size).expect("not zero");
    let mut index: KvIndex = KvIndex::default();
    let config = KvRouterConfig { prefill_load_model, ..KvRouterConfig::REFERENCE };
    let mut scheduler = KvScheduler::new(config, block_size, 1).expect("a model needs nothing that is off");
    for worker in 0..WORKERS {
        let slots = index.add_worker(worker, 1, 0..1, None).expect("room for 64");
        scheduler.set_worker(worker, 1, &slots, false);
    }
    let now = Instant::now();
    let per_worker = ACTIVE_BLOCKS / (TOKENS / block_size.get()) + 1;
    let prompts = per_worker * WORKERS as usize;
    for number in 0..prompts {
        let prompt = hashed(&prompt(number), block_size);
        let reservation = reserve(
            &mut scheduler,
            &prompt.sequence,
            &MatchBuffer::default(),
            Some(number as u64 % WORKERS),
            now,
        );
        let block = |(name, &tokens_hash): (&SequenceHash, _)| StoredBlock {
            block_hash: ExternalBlockHash(name.0),
            tokens_hash,
        };
        let blocks = prompt.sequence.iter().zip(&prompt.local).map(block).collect();
        let stored = KvCacheEventData::Stored { parent_hash: None, blocks };
        index.apply(reservation.selection.worker, 1, &stored).expect("a chain from its first block on");
    }
    // Half of them repeat a prompt, the others differ from all after their group's beginning.
    let tokens: Vec<_> = (0..QUERIES)
        .map(|query| prompt(if query % 2 == 0 { query * 7 % prompts } else { prompts + query }))
        .collect();
    let (mut local, mut sequence, mut matches) = (Vec::new(), Vec::new(), MatchBuffer::default());
    let mut prompts_hashed: Vec<_> = tokens.iter().map(|tokens| hashed(tokens, block_size)).collect();
    let mut running = Vec::with_capacity(QUERIES);
    let mut least = [Duration::MAX; PARTS.len()];
    let mut lap = |part: usize, each: &mut dyn FnMut(usize)| {
        let start = Instant::now();
        (0..QUERIES).for_each(each);
        least[part] = least[part].min(start.elapsed());
    };
    for _ in 0..ROUNDS {
        lap(0, &mut |at| local_block_hashes(&tokens[at], block_size, HashSeed::PLAIN, &mut local));
        lap(1, &mut |at| sequence_hashes(&prompts_hashed[at].local, &mut sequence));
        lap(2, &mut |at| index.find_matches(&prompts_hashed[at].local, &mut matches));
        lap(3, &mut |at| {
            let request = request(&prompts_hashed[at].sequence, None);
            black_box(scheduler.choose(&request, &matches, now).expect("there are workers"));
        });
        lap(4, &mut |at| {
            running.push(reserve(&mut scheduler, &prompts_hashed[at].sequence, &matches, None, now));
        });
        lap(5, &mut |_| _ = running.pop().map(|reservation| scheduler.free(reservation.id, now)));
        prompts_hashed.rotate_left(1);
    }
    println!(
        "blocks of {}, prefill load model {prefill_load_model}: {prompts} prompts run, {} blocks tracked in {} bytes",
        block_size.get(),
        scheduler.tracked_blocks(),
        scheduler.tracked_bytes()
    );
    let micros = |time: Duration| time.as_nanos() as f64 / 1000.0 / QUERIES as f64;
    for (name, part) in PARTS.into_iter().zip(least) {
        println!("  {name:<20} {:>8.1} µs", micros(part));
    }
    let decision = least[0] + least[1] + least[2] + least[4];
    println!("  {:<20} {:>8.1} µs", "decision", micros(decision));
}

fn request(sequence: &[SequenceHash], pinned_worker: Option<u64>) -> ScheduleRequest<'_> {
    let select = SelectRequest { isl_tokens: TOKENS, pinned_worker, ..SelectRequest::default() };
    ScheduleRequest { prompt_blocks: sequence, expected_output_tokens: None, select }
}

fn reserve(
    scheduler: &mut KvScheduler,
    sequence: &[SequenceHash],
    matches: &MatchBuffer,
    pinned: Option<u64>,
    now: Instant,
) -> Reservation {
    scheduler.choose_and_reserve(&request(sequence, pinned), matches, now).expect("there are workers")
}

fn main() {
    run(64, PrefillLoadModel::None);
    run(16, PrefillLoadModel::None);
    run(16, PrefillLoadModel::Measured);
}
