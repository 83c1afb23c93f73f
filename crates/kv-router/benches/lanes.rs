//! What it costs to bring an event to a lane, and to apply it there: `cargo bench -p dynamo-kv-router --bench lanes`.
//!
//! Events have one block each, as decoding sends them. `idle` is an index that does nothing: what is left is the
//! queue. Nanoseconds by the clock until the queues are drained, those that all threads computed until then, and those
//! of the thread that brings them.

use std::{
    num::NonZeroUsize,
    sync::Arc,
    time::{Duration, Instant},
};

use dynamo_engine_api::{ExternalBlockHash, KvCacheEventData, StorageTier, StoredBlock};
use dynamo_kv_router::{
    ApplyError, IndexCounts, IndexParts, IndexerKind, LaneConfig, LaneIndex, MatchBuffer, PrefixIndex,
    SharedIndex, Slot, WorkerRank,
};
use dynamo_tokens::{LocalBlockHash, SequenceHash};
use nix::time::ClockId;

const WORKERS: u64 = 16;
const CHAIN: u64 = 500;
const EVENTS: u64 = 1_000_000;

/// Does nothing.
struct Idle;

impl PrefixIndex for Idle {
    fn apply(&mut self, _: Slot, _: &KvCacheEventData) -> Result<(), ApplyError> {
        Ok(())
    }
    fn clear(&mut self, _: Slot) {}
    fn find_matches(&self, _: &[LocalBlockHash], out: &mut MatchBuffer) {
        out.clear();
    }
    fn dump(&self, _: Slot) -> Vec<KvCacheEventData> {
        Vec::new()
    }
    fn held_blocks(&self, _: Slot) -> u32 {
        0
    }
    fn note_held_blocks(&self, _: &mut MatchBuffer) {}
    fn counts(&self) -> IndexCounts {
        IndexCounts::default()
    }
}

impl SharedIndex for Idle {
    fn find_matches(&self, _: &[LocalBlockHash], out: &mut MatchBuffer) {
        out.clear();
    }
    fn held_blocks(&self, _: Slot) -> u32 {
        0
    }
    fn note_held_blocks(&self, _: &mut MatchBuffer) {}
    fn counts(&self) -> IndexCounts {
        IndexCounts::default()
    }
}

/// One block after another, chain after chain, the workers in turn.
fn events() -> Vec<(WorkerRank, KvCacheEventData)> {
    let mut events = Vec::with_capacity(EVENTS as usize);
    for chain in 0..EVENTS / CHAIN {
        let worker = WorkerRank { worker_id: chain % WORKERS, dp_rank: 0 };
        let mut parent = None;
        for at in 0..CHAIN {
            let tokens_hash = LocalBlockHash((chain << 20 | at).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
            let name =
                SequenceHash::chain(parent.map(|ExternalBlockHash(name)| SequenceHash(name)), tokens_hash);
            let block = StoredBlock { block_hash: ExternalBlockHash(name.0), tokens_hash };
            events.push((worker, KvCacheEventData::Stored { parent_hash: parent, blocks: vec![block] }));
            parent = Some(block.block_hash);
        }
    }
    events
}

fn computed(clock: ClockId) -> Duration {
    clock.now().map_or(Duration::ZERO, Duration::from)
}

fn measure(name: &str, lanes: usize, parts: IndexParts) {
    let config = LaneConfig { lanes: NonZeroUsize::new(lanes).expect("not zero"), ..LaneConfig::REFERENCE };
    let report = |report| panic!("{report:?}");
    let index = LaneIndex::start(parts, &config, report).expect("threads");
    for worker_id in 0..WORKERS {
        index.add_worker(worker_id, 1, 0..1, None).expect("room");
    }
    let events = events();
    let (thread, process) = (ClockId::CLOCK_THREAD_CPUTIME_ID, ClockId::CLOCK_PROCESS_CPUTIME_ID);
    let (start, before, before_all) = (Instant::now(), computed(thread), computed(process));
    for (worker, event) in events {
        index.apply(worker, 1, StorageTier::Device, event).expect("known workers");
    }
    let bringing = computed(thread) - before;
    index.flush(Duration::from_secs(60)).expect("in time");
    let (drained, all) = (start.elapsed(), computed(process) - before_all);
    let per_event = |time: Duration| time.as_nanos() as f64 / EVENTS as f64;
    println!(
        "{{\"index\":\"{name}\",\"lanes\":{lanes},\"drained_ns\":{:.1},\"cpu_ns\":{:.1},\"bring_cpu_ns\":{:.1},\"waits\":{},\
         \"longest_wait_ms\":{:.1}}}",
        per_event(drained),
        per_event(all),
        per_event(bringing),
        index.gauges().waits,
        index.gauges().longest_wait.as_secs_f64() * 1e3,
    );
}

fn main() {
    for lanes in [1, 2] {
        let writers = (0..lanes).map(|_| -> Box<dyn PrefixIndex> { Box::new(Idle) }).collect();
        measure("idle", lanes, IndexParts { reader: Arc::new(Idle), writers });
        for kind in IndexerKind::ALL.into_iter().filter(|kind| kind.max_lanes() >= lanes) {
            let parts = kind.build(NonZeroUsize::new(lanes).expect("not zero"));
            measure(&kind.to_string(), lanes, parts);
        }
    }
}
