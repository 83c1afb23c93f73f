//! What is measured of an index, and printed.

use std::{
    hint::black_box,
    sync::{
        RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use dynamo_engine_api::KvCacheEventData;
use dynamo_kv_router::{MatchBuffer, Slot};
use dynamo_tokens::LocalBlockHash;

use crate::{
    Subject, memory, queued,
    workload::{Workload, blocks_of, one_by_one},
};

/// Rounds of reading, of which the last one's latencies and the best one's rate are printed.
const READ_ROUNDS: usize = 3;
const CYCLES: usize = 6;

fn slot(worker: u32) -> Slot {
    Slot::new(worker, 0)
}

pub(crate) fn percentile(sorted: &[u64], share: f64) -> u64 {
    sorted[((sorted.len() - 1) as f64 * share) as usize]
}

/// Time that this thread has computed, so that others on the machine disturb less.
pub(crate) fn computed() -> Duration {
    nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID.now().map_or(Duration::ZERO, Duration::from)
}

/// Applies events; returns seconds by the clock and of computing.
fn write(index: &mut impl Subject, events: &[(u32, KvCacheEventData)]) -> (f64, f64) {
    let (start, before) = (Instant::now(), computed());
    for (worker, event) in events {
        index.apply(slot(*worker), event).expect("the workers' events are in order");
    }
    (start.elapsed().as_secs_f64(), (computed() - before).as_secs_f64())
}

/// Applies events; returns the microseconds that the longest took to compute.
fn longest(index: &mut impl Subject, events: &[(u32, KvCacheEventData)]) -> f64 {
    let (mut before, mut longest) = (computed(), Duration::ZERO);
    for (worker, event) in events {
        index.apply(slot(*worker), event).expect("the workers' events are in order");
        let now = computed();
        longest = longest.max(now - before);
        before = now;
    }
    longest.as_nanos() as f64 / 1e3
}

pub(crate) fn all<I: Subject>(name: &str, load: &Workload, wanted: &str) {
    let wants = |phase| wanted.is_empty() || wanted.split(',').any(|other| other == phase);
    let held = load.held_pairs() as f64;
    let blocks = load.event_blocks() as f64;
    memory::take_peak();
    let (live, resident) = (memory::live(), memory::resident());
    let mut index = I::make();
    let (_, computed) = write(&mut index, &load.events);
    let peak = (memory::take_peak() - live) as f64 / held;
    let bytes = (memory::live() - live) as f64 / held;
    let pages = memory::resident().saturating_sub(resident) as f64 / held;
    let (counted, count) = (index.counts().bytes as f64 / held, index.counts().blocks);
    if wants("read") {
        read(name, "read", &index, &load.queries, false);
        read(name, "read-warm", &index, &load.queries, true);
    }
    if wants("mixed") {
        mixed(name, index, load, blocks);
    } else {
        drop(index);
    }
    let seconds = queued::write(I::KIND, load.workers, load.events.clone());
    println!(
        "{{\"index\":\"{name}\",\"phase\":\"write\",\"events\":{},\"blocks\":{blocks},\"s\":{seconds:.4},\
         \"Mblocks_per_s\":{:.3},\"bytes_per_held\":{:.2},\"page_bytes_per_held\":{:.2},\"peak_per_held\":{:.2},\
         \"counted_per_held\":{:.2},\"direct_Mblocks_per_s\":{:.3},\"held\":{}}}",
        load.events.len(),
        blocks / seconds / 1e6,
        bytes,
        pages,
        peak,
        counted,
        blocks / computed / 1e6,
        count,
    );
    if wants("one-block") {
        single::<I>(name, load, blocks);
    }
    if wants("cycles") {
        cycles::<I>(name, load);
    }
}

/// Queries as they lie in memory, or, warm, as a router has them that has just hashed its prompt.
pub(crate) fn read(
    name: &str,
    phase: &str,
    index: &impl Subject,
    queries: &[Vec<LocalBlockHash>],
    is_warm: bool,
) {
    let blocks: usize = queries.iter().map(Vec::len).sum();
    let (mut out, mut warm) = (MatchBuffer::default(), Vec::new());
    let (mut best, mut check, mut latencies) = (f64::MAX, 0u64, Vec::with_capacity(queries.len()));
    for _ in 0..READ_ROUNDS {
        latencies.clear();
        check = 0;
        let start = Instant::now();
        for query in queries {
            let query = if is_warm {
                warm.clear();
                warm.extend_from_slice(query);
                &warm
            } else {
                query
            };
            let begin = Instant::now();
            index.find_matches(black_box(query), &mut out);
            latencies.push(begin.elapsed().as_nanos() as u64);
            for found in out.matches() {
                let worker = found.slot.index() as u64;
                check = check.wrapping_add((worker + 1).wrapping_mul(u64::from(found.device_blocks)));
            }
        }
        let seconds =
            if is_warm { latencies.iter().sum::<u64>() as f64 / 1e9 } else { start.elapsed().as_secs_f64() };
        best = best.min(seconds);
    }
    latencies.sort_unstable();
    println!(
        "{{\"index\":\"{name}\",\"phase\":\"{phase}\",\"queries\":{},\"blocks\":{blocks},\"s\":{best:.4},\
         \"kq_per_s\":{:.2},\"Mblocks_per_s\":{:.2},\"p50_ns\":{},\"p99_ns\":{},\"check\":{check}}}",
        queries.len(),
        queries.len() as f64 / best / 1e3,
        blocks as f64 / best / 1e6,
        percentile(&latencies, 0.5),
        percentile(&latencies, 0.99),
    );
}

/// The events once more, while another thread reads. What one loses to the other is told by the same without the other.
fn mixed<I: Subject>(name: &str, mut index: I, load: &Workload, blocks: f64) {
    let (alone, _) = write(&mut index, &load.events);
    let reader = index.reader();
    let index = RwLock::new(index);
    let stop = AtomicBool::new(false);
    let (queries, query_blocks) = (AtomicU64::new(0), AtomicU64::new(0));
    let mut times = Vec::new();
    let seconds = std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut out = MatchBuffer::default();
            for query in load.queries.iter().cycle() {
                let begin = Instant::now();
                match &reader {
                    Some(reader) => reader.find_matches(query, &mut out),
                    None => index.read().expect("no panic").find_matches(query, &mut out),
                }
                times.push(begin.elapsed().as_nanos() as u64);
                black_box(&out);
                queries.fetch_add(1, Relaxed);
                query_blocks.fetch_add(query.len() as u64, Relaxed);
                if stop.load(Relaxed) {
                    break;
                }
            }
        });
        while queries.load(Relaxed) == 0 {
            std::thread::yield_now();
        }
        let before = (queries.load(Relaxed), query_blocks.load(Relaxed));
        let start = Instant::now();
        if reader.is_some() {
            let mut index = index.write().expect("no panic");
            write(&mut *index, &load.events);
        } else {
            for (worker, event) in &load.events {
                let applied = index.write().expect("no panic").apply(slot(*worker), event);
                applied.expect("the workers' events are in order");
            }
        }
        let seconds = start.elapsed().as_secs_f64();
        stop.store(true, Relaxed);
        queries.fetch_sub(before.0, Relaxed);
        query_blocks.fetch_sub(before.1, Relaxed);
        seconds
    });
    times.sort_unstable();
    println!(
        "{{\"index\":\"{name}\",\"phase\":\"mixed\",\"s\":{seconds:.4},\"write_Mblocks_per_s\":{:.3},\
         \"write_alone_Mblocks_per_s\":{:.3},\"read_kq_per_s\":{:.2},\"total_Mblocks_per_s\":{:.2},\"p50_ns\":{},\
         \"p99_ns\":{}}}",
        blocks / seconds / 1e6,
        blocks / alone / 1e6,
        queries.load(Relaxed) as f64 / seconds / 1e3,
        (blocks + query_blocks.load(Relaxed) as f64) / seconds / 1e6,
        percentile(&times, 0.5),
        percentile(&times, 0.99),
    );
}

/// The same stream, a block an event, as decoding stores them.
fn single<I: Subject>(name: &str, load: &Workload, blocks: f64) {
    let held = load.held_pairs() as f64;
    let events: Vec<(u32, Vec<KvCacheEventData>)> =
        load.events.iter().map(|(worker, event)| (*worker, one_by_one(event))).collect();
    let live = memory::live();
    let mut index = I::make();
    let (mut store, mut remove, mut stored) = (0.0, 0.0, 0);
    for (worker, events) in &events {
        let start = Instant::now();
        for event in events {
            index.apply(slot(*worker), event).expect("the workers' events are in order");
        }
        let seconds = start.elapsed().as_secs_f64();
        if matches!(events.first(), Some(KvCacheEventData::Stored { .. })) {
            store += seconds;
            stored += events.len();
        } else {
            remove += seconds;
        }
    }
    let bytes = (memory::live() - live) as f64 / held;
    let one_by_one =
        events.into_iter().flat_map(|(worker, events)| events.into_iter().map(move |event| (worker, event)));
    let seconds = queued::write(I::KIND, load.workers, one_by_one.collect());
    println!(
        "{{\"index\":\"{name}\",\"phase\":\"one-block-writes\",\"events\":{blocks},\"s\":{seconds:.4},\"Mblocks_per_s\":{:.3},\
         \"direct_Mstores_per_s\":{:.3},\"direct_Mremovals_per_s\":{:.3},\"bytes_per_held\":{bytes:.2}}}",
        blocks / seconds / 1e6,
        stored as f64 / store / 1e6,
        if remove > 0.0 { (blocks - stored as f64) / remove / 1e6 } else { 0.0 },
    );
    read(name, "one-block-read", &index, &load.queries, false);
}

/// Filling and draining again and again.
fn cycles<I: Subject>(name: &str, load: &Workload) {
    /// Blocks of a removal: about as many as an engine evicts for one request.
    const EVICTED: usize = 512;
    let held = load.held_pairs() as f64;
    let mut drain: Vec<(u32, KvCacheEventData)> = Vec::new();
    for (worker, names) in (0..load.workers).zip(&load.held) {
        let chunks = names.chunks(EVICTED);
        drain
            .extend(chunks.map(|names| (worker, KvCacheEventData::Removed { block_hashes: names.to_vec() })));
    }
    let drained: usize = drain.iter().map(|(_, event)| blocks_of(event)).sum();
    memory::take_peak();
    let (live, resident) = (memory::live(), memory::resident());
    let mut index = I::make();
    let (mut full, mut pages, mut pause, mut peak) = (0.0f64, 0.0f64, 0.0f64, 0.0f64);
    let start = Instant::now();
    let empty = memory::live() - live;
    for cycle in 0..CYCLES {
        pause = pause.max(longest(&mut index, &load.events));
        full = (memory::live() - live) as f64 / held;
        pages = memory::resident().saturating_sub(resident) as f64 / held;
        // The last one leaves a tenth, of every worker.
        let count = if cycle + 1 == CYCLES { drain.len() * 9 / 10 } else { drain.len() };
        pause = pause.max(longest(&mut index, &drain[..count]));
        peak = peak.max((memory::take_peak() - live) as f64 / held);
    }
    let seconds = start.elapsed().as_secs_f64();
    let tenth = index.counts().bytes as f64;
    write(&mut index, &drain[drain.len() * 9 / 10..]);
    let blocks = (load.event_blocks() + drained) * CYCLES;
    println!(
        "{{\"index\":\"{name}\",\"phase\":\"cycles\",\"cycles\":{CYCLES},\"s\":{seconds:.4},\"Mblocks_per_s\":{:.3},\
         \"bytes_per_held\":{full:.2},\"page_bytes_per_held\":{pages:.2},\"peak_per_held\":{peak:.2},\
         \"longest_event_us\":{pause:.0},\"tenth_left_MB\":{:.2},\"drained_KB\":{},\"fresh_KB\":{}}}",
        blocks as f64 / seconds / 1e6,
        tenth / 1e6,
        (memory::live() - live) / 1000,
        empty / 1000,
    );
}
