use std::{
    sync::{Arc, Condvar, Mutex, mpsc},
    time::Duration,
};

use dynamo_engine_api::{ExternalBlockHash, KvCacheEventData, StorageTier, StoredBlock};
use dynamo_tokens::{LocalBlockHash, SequenceHash};
use proptest::prelude::*;

use super::*;
use crate::{
    ApplyError, EventKind, EventStatus, IndexCounts, IndexParts, IndexerKind, KvIndex, MatchBuffer,
    PrefixIndex, SharedIndex, Slot,
};

/// Far more than anything here takes.
const LONG: Duration = Duration::from_secs(60);
const DEVICE: StorageTier = StorageTier::Device;

fn rank(worker_id: u64, dp_rank: u32) -> WorkerRank {
    WorkerRank { worker_id, dp_rank }
}

/// A sequence from its block `from` on, by chained names.
fn stored(locals: &[u64], from: usize) -> KvCacheEventData {
    let locals: Vec<_> = locals.iter().map(|&local| LocalBlockHash(local)).collect();
    let mut names = Vec::new();
    dynamo_tokens::sequence_hashes(&locals, &mut names);
    let name = |at: usize| ExternalBlockHash(names[at].0);
    let block = |at| StoredBlock { block_hash: name(at), tokens_hash: locals[at] };
    KvCacheEventData::Stored {
        parent_hash: from.checked_sub(1).map(name),
        blocks: (from..locals.len()).map(block).collect(),
    }
}

fn removed(locals: &[u64]) -> KvCacheEventData {
    let chain = |before, &local| Some(SequenceHash::chain(before, LocalBlockHash(local)));
    let name = locals.iter().fold(None, chain).map_or(0, |name: SequenceHash| name.0);
    KvCacheEventData::Removed { block_hashes: vec![ExternalBlockHash(name)] }
}

fn config(lanes: usize) -> LaneConfig {
    LaneConfig { lanes: NonZeroUsize::new(lanes).unwrap(), ..LaneConfig::REFERENCE }
}

type Reports = Arc<Mutex<Vec<LaneReport>>>;

fn start(kind: IndexerKind, config: LaneConfig) -> (LaneIndex, Reports) {
    let reports = Reports::default();
    let told = reports.clone();
    let parts = kind.build(config.lanes);
    (LaneIndex::start(parts, &config, move |report| told.lock().unwrap().push(report)).unwrap(), reports)
}

fn found(index: &LaneIndex, query: &[u64]) -> Vec<(WorkerRank, u32)> {
    let query: Vec<_> = query.iter().map(|&hash| LocalBlockHash(hash)).collect();
    let mut out = MatchBuffer::default();
    index.find_matches(&query, &mut out);
    let matches = out.matches().iter();
    let mut found: Vec<_> =
        matches.filter_map(|found| Some((index.owner(found.slot)?, found.device_blocks))).collect();
    found.sort();
    found
}

#[test]
fn events_wait_are_applied_in_order_and_counted() {
    for kind in IndexerKind::ALL {
        let (index, reports) = start(kind, config(3));
        for worker_id in 0..5 {
            index.add_worker(worker_id, 1, 0..2, Some(100)).unwrap();
            for dp_rank in 0..2 {
                for block in 0..50 {
                    let locals: Vec<u64> = (0..=block).collect();
                    let event = stored(&locals, block as usize);
                    index.apply(rank(worker_id, dp_rank), 1, DEVICE, event).unwrap();
                }
            }
        }
        index.flush(LONG).unwrap();
        let mut spent = Vec::new();
        index.take_spent(|data| spent.push(data));
        assert!(!spent.is_empty() && spent.len() < 500, "some come back: {}", spent.len());
        let all: Vec<u64> = (0..50).collect();
        assert_eq!(found(&index, &all).len(), 10);
        assert!(found(&index, &all).iter().all(|found| found.1 == 50));
        assert_eq!(index.counters().get(EventKind::Stored, EventStatus::Ok), 500);
        index.apply(rank(3, 0), 1, DEVICE, stored(&[77, 78], 1)).unwrap();
        index.flush(LONG).unwrap();
        assert_eq!(index.counters().get(EventKind::Stored, EventStatus::ParentBlockNotFound), 1);
        let error = IndexError::Apply(ApplyError::ParentBlockNotFound);
        let refused = LaneReport::Refused { worker: rank(3, 0), epoch: 1, error };
        assert_eq!(*reports.lock().unwrap(), [refused]);
        let gauges = index.gauges();
        assert_eq!((gauges.queued_events, gauges.queued_blocks), (0, 0));
        assert!(gauges.longest_wait > Duration::ZERO);
    }
}

#[test]
fn a_dump_in_chunks_rebuilds_a_rank_on_all_tiers() {
    let (index, _) = start(IndexerKind::ConcurrentRadix, config(2));
    index.add_worker(7, 1, 0..1, None).unwrap();
    let all: Vec<u64> = (0..5000).collect();
    index.apply(rank(7, 0), 1, DEVICE, stored(&all[..3000], 0)).unwrap();
    index.apply(rank(7, 0), 1, StorageTier::HostPinned, stored(&all, 3000)).unwrap();
    let mut dump = index.dump(rank(7, 0), LONG).unwrap();
    assert_eq!(dump.worker(), rank(7, 0));
    let (copy, _) = start(IndexerKind::Positional, config(2));
    copy.add_worker(7, 1, 0..1, None).unwrap();
    let mut next_id = 0;
    while !dump.is_empty() {
        let chunk = dump.next_chunk(1500);
        let blocks: usize = chunk.iter().map(|event| dump::blocks_of(&event.event.data)).sum();
        assert!((1..=2000).contains(&blocks), "{blocks}");
        for event in chunk {
            assert_eq!((event.event.event_id, event.worker_id), (next_id, 7));
            next_id += 1;
            copy.apply(rank(7, 0), 1, event.storage_tier, event.event.data).unwrap();
        }
    }
    copy.flush(LONG).unwrap();
    let query: Vec<_> = all.iter().map(|&local| LocalBlockHash(local)).collect();
    let mut out = MatchBuffer::default();
    copy.find_matches(&query, &mut out);
    let slot = copy.worker_slots(7)[0].slot;
    assert_eq!((out.device_blocks(slot), out.tiers(slot).host_blocks), (3000, 5000));
    assert_eq!(copy.dump(rank(8, 0), LONG).unwrap_err(), DumpError::UnknownWorker);
}

/// An index whose writer waits for a gate, and breaks when told to.
#[derive(Default)]
struct Gate {
    open: Mutex<bool>,
    opened: Condvar,
}

impl Gate {
    fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.opened.notify_all();
    }
}

struct Gated(Arc<Gate>);

impl PrefixIndex for Gated {
    fn apply(&mut self, _: Slot, event: &KvCacheEventData) -> Result<(), ApplyError> {
        let mut open = self.0.open.lock().unwrap();
        while !*open {
            open = self.0.opened.wait(open).unwrap();
        }
        drop(open);
        assert!(!matches!(event, KvCacheEventData::Cleared), "it breaks");
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

impl SharedIndex for Gated {
    fn find_matches(&self, local: &[LocalBlockHash], out: &mut MatchBuffer) {
        PrefixIndex::find_matches(self, local, out);
    }
    fn held_blocks(&self, slot: Slot) -> u32 {
        PrefixIndex::held_blocks(self, slot)
    }
    fn note_held_blocks(&self, out: &mut MatchBuffer) {
        PrefixIndex::note_held_blocks(self, out);
    }
    fn counts(&self) -> IndexCounts {
        PrefixIndex::counts(self)
    }
}

fn gated(config: LaneConfig) -> (LaneIndex, Arc<Gate>, Reports) {
    let (gate, reports) = (Arc::new(Gate::default()), Reports::default());
    let told = reports.clone();
    let parts =
        IndexParts { reader: Arc::new(Gated(gate.clone())), writers: vec![Box::new(Gated(gate.clone()))] };
    let index = LaneIndex::start(parts, &config, move |report| told.lock().unwrap().push(report)).unwrap();
    index.add_worker(1, 1, 0..1, None).unwrap();
    (index, gate, reports)
}

#[test]
fn a_full_lane_gives_back_or_lets_wait() {
    let (index, gate, _) = gated(LaneConfig { queued_events: NonZeroUsize::new(2).unwrap(), ..config(1) });
    let event = || stored(&[1, 2], 0);
    // Some may be in the lane's hands.
    let mut brought = 0;
    let given_back = loop {
        match index.try_apply(rank(1, 0), 1, DEVICE, event()) {
            Ok(()) => brought += 1,
            Err(error) => break error,
        }
        assert!(brought <= 4);
    };
    assert!(matches!(given_back, TryApplyError::Full(data) if data == event()));
    assert_eq!(index.flush(Duration::from_millis(1)), Err(FlushError::Timeout));
    let gauges = index.gauges();
    assert_eq!((gauges.queued_events, gauges.queued_blocks), (brought, 2 * brought));
    assert_eq!(gauges.refused, 1);
    let index = Arc::new(index);
    let waiting = {
        let index = index.clone();
        std::thread::spawn(move || (0..3).try_for_each(|_| index.apply(rank(1, 0), 1, DEVICE, event())))
    };
    gate.open();
    waiting.join().unwrap().unwrap();
    index.flush(LONG).unwrap();
    assert_eq!(index.counters().get(EventKind::Stored, EventStatus::Ok), brought as u64 + 3);
}

#[test]
fn a_lane_that_panics_says_so_and_keeps_nobody_waiting() {
    let (index, gate, reports) = gated(config(1));
    gate.open();
    index.apply(rank(1, 0), 1, DEVICE, KvCacheEventData::Cleared).unwrap();
    index.apply(rank(1, 0), 1, DEVICE, stored(&[1], 0)).unwrap();
    assert_eq!(index.flush(LONG), Err(FlushError::Stopped));
    assert_eq!(index.dump(rank(1, 0), LONG).unwrap_err(), DumpError::Stopped);
    let broken = index.broken().unwrap();
    assert!(broken.message.contains("it breaks"));
    assert_eq!(*reports.lock().unwrap(), [LaneReport::Broken(broken)]);
    assert_eq!(index.counters().get(EventKind::Stored, EventStatus::Ok), 0);
}

#[test]
fn what_waits_when_all_ends_is_told() {
    let (index, gate, _) = gated(config(1));
    index.apply(rank(1, 0), 1, DEVICE, stored(&[1], 0)).unwrap();
    let (sender, receiver) = mpsc::channel();
    // The lane is at the gate, or will be: the flush is behind it.
    index.flush_with({
        let sender = sender.clone();
        move |outcome| sender.send(outcome.map_err(|_| ())).unwrap()
    });
    index.dump_with(rank(1, 0), move |outcome| sender.send(outcome.map(drop).map_err(drop)).unwrap());
    let ending = std::thread::spawn(move || drop(index));
    gate.open();
    ending.join().unwrap();
    // In time or stopped: both were told.
    assert_eq!(receiver.iter().count(), 2);
}

#[test]
fn what_is_void_counts_as_empty_at_once() {
    let gate = Arc::new(Gate::default());
    // A lane that is held up by its reports.
    let (held, is_held) = (gate.clone(), Arc::new(Gate::default()));
    let holding = is_held.clone();
    let parts = IndexerKind::ConcurrentRadix.build(NonZeroUsize::MIN);
    let index = LaneIndex::start(parts, &config(1), move |_| {
        holding.open();
        let mut open = held.open.lock().unwrap();
        while !*open {
            open = held.opened.wait(open).unwrap();
        }
    })
    .unwrap();
    for worker_id in 1..=4 {
        index.add_worker(worker_id, 1, 0..1, None).unwrap();
        index.apply(rank(worker_id, 0), 1, DEVICE, stored(&[1, 2], 0)).unwrap();
    }
    index.flush(LONG).unwrap();
    assert_eq!(found(&index, &[1, 2]).len(), 4);
    index.apply(rank(4, 0), 1, DEVICE, stored(&[8, 9], 1)).unwrap();
    let mut open = is_held.open.lock().unwrap();
    while !*open {
        open = is_held.opened.wait(open).unwrap();
    }
    drop(open);
    index.apply(rank(1, 0), 2, DEVICE, stored(&[1], 0)).unwrap();
    index.clear_rank(rank(2, 0));
    index.remove_worker(3);
    assert_eq!(found(&index, &[1, 2]), [(rank(4, 0), 2)]);
    assert_eq!(index.held_blocks(rank(2, 0)), 0);
    gate.open();
    index.flush(LONG).unwrap();
    assert_eq!(found(&index, &[1, 2]), [(rank(1, 0), 1), (rank(4, 0), 2)]);
    assert_eq!(index.counts().blocks, 3);
}

#[derive(Clone, Debug)]
enum Step {
    Add { worker: u64, epoch: u64, ranks: u32, capacity: Option<u32> },
    Remove(u64),
    Clear(u64, u32),
    Event { worker: u64, rank: u32, epoch: u64, event: KvCacheEventData },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let at = || (0..3u64, 0..3u32, 1..4u64);
    let locals = || prop::collection::vec(0..2u64, 1..6);
    let step = prop_oneof![
        2 => (0..3u64, 1..4u64, 1..4u32, prop::option::of(3..9u32))
            .prop_map(|(worker, epoch, ranks, capacity)| Step::Add { worker, epoch, ranks, capacity }),
        1 => (0..3u64).prop_map(Step::Remove),
        1 => (0..3u64, 0..3u32).prop_map(|(worker, rank)| Step::Clear(worker, rank)),
        12 => (at(), locals(), 0..4usize).prop_map(|((worker, rank, epoch), locals, skip)| {
            let event = stored(&locals, skip.min(locals.len() - 1));
            Step::Event { worker, rank, epoch, event }
        }),
        5 => (at(), locals()).prop_map(|((worker, rank, epoch), locals)| {
            Step::Event { worker, rank, epoch, event: removed(&locals) }
        }),
        1 => at().prop_map(|(worker, rank, epoch)| {
            Step::Event { worker, rank, epoch, event: KvCacheEventData::Cleared }
        }),
    ];
    prop::collection::vec(step, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    #[test]
    fn lanes_end_up_where_the_plain_index_does(steps in steps(), kind in 0..4usize, lanes in 1..4usize) {
        let (index, _) = start(IndexerKind::ALL[kind], config(lanes));
        let mut plain: KvIndex = KvIndex::default();
        for step in &steps {
            match step.clone() {
                Step::Add { worker, epoch, ranks, capacity } => {
                    let expected = plain.add_worker(worker, epoch, 0..ranks, capacity);
                    prop_assert_eq!(index.add_worker(worker, epoch, 0..ranks, capacity), expected);
                }
                Step::Remove(worker) => {
                    plain.remove_worker(worker);
                    index.remove_worker(worker);
                }
                Step::Clear(worker, dp_rank) => {
                    plain.clear_rank(rank(worker, dp_rank));
                    index.clear_rank(rank(worker, dp_rank));
                }
                Step::Event { worker, rank: dp_rank, epoch, event } => {
                    let _ = plain.apply(rank(worker, dp_rank), epoch, &event);
                    let _ = index.apply(rank(worker, dp_rank), epoch, DEVICE, event);
                }
            }
        }
        index.flush(LONG).unwrap();
        prop_assert_eq!(&index.counters(), plain.counters());
        prop_assert_eq!(index.counts().blocks, plain.counts().blocks);
        let mut out = MatchBuffer::default();
        for query in (0..32u64).map(|bits| (0..5).map(|at| bits >> at & 1).collect::<Vec<_>>()) {
            let local: Vec<_> = query.iter().map(|&local| LocalBlockHash(local)).collect();
            plain.find_matches(&local, &mut out);
            let mut expected: Vec<_> = out
                .matches()
                .iter()
                .map(|found| (plain.owner(found.slot).unwrap(), found.device_blocks))
                .collect();
            expected.sort();
            prop_assert_eq!(found(&index, &query), expected);
        }
    }
}
