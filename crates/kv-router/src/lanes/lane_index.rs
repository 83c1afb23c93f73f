//! An index of workers whose events are applied by lanes.

mod ranks;

use std::{
    io,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use dynamo_engine_api::{DpRank, KvCacheEventData, StorageTier};
use dynamo_tokens::LocalBlockHash;
use parking_lot::{Mutex, RwLock};
use smallvec::SmallVec;

use super::{
    DumpError, FlushError, LaneBroken, LaneConfig, LaneGauges, LaneReport, RankDump,
    barrier::{Barrier, Done},
    lane::{InHand, Lane, LaneState, Report, Task},
    outcomes::Outcomes,
    queue::{LaneQueue, Limits, Refused},
};
use crate::{
    AddWorkerError, EventCounters, EventKind, EventStatus, IndexCounts, IndexError, IndexParts, MatchBuffer,
    Slot, WorkerId, WorkerRank, WorkerSlot,
    index::{TieredIndex, with_tiers},
    slot::SlotTable,
};

/// Why lanes were not started.
#[derive(Debug, thiserror::Error)]
#[error("no thread for lane {lane} of the index: allow the process more threads, or use fewer lanes")]
pub struct StartLanesError {
    /// Which one.
    pub lane: usize,
    /// What the system says.
    pub source: io::Error,
}

/// Why an event was not taken at once.
#[derive(Debug, thiserror::Error)]
pub enum TryApplyError {
    /// Its lane has as much to do as may wait: bring it again after a flush.
    #[error("the lane's queue is full")]
    Full(KvCacheEventData),
    /// It does not count.
    #[error(transparent)]
    Refused(#[from] IndexError),
    /// The lane is broken or has stopped.
    #[error("the lane is broken or has stopped")]
    Stopped,
}

/// Slots whose content does not count until their lane has cleared it.
#[derive(Default)]
pub(super) struct Masks {
    count: AtomicUsize,
    /// A slot may be there more than once.
    slots: Mutex<Vec<Slot>>,
}

impl Masks {
    fn put(&self, slot: Slot) {
        self.slots.lock().push(slot);
        self.count.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn lift(&self, slot: Slot) {
        let mut slots = self.slots.lock();
        if let Some(at) = slots.iter().position(|&other| other == slot) {
            slots.swap_remove(at);
            self.count.fetch_sub(1, Ordering::SeqCst);
        }
    }

    fn get(&self) -> SmallVec<[Slot; 8]> {
        if self.count.load(Ordering::SeqCst) == 0 {
            SmallVec::new()
        } else {
            self.slots.lock().as_slice().into()
        }
    }
}

/// The index of one base model and block size, shared by all threads: workers, their incarnations, and the blocks of
/// their ranks. It is what a [`KvIndex`](crate::KvIndex) is, but events are queued for lanes, and their outcomes are counted and reported
/// later.
///
/// A query sees what was applied. After [`Self::flush`] that is all that was brought before; a new incarnation, a
/// cleared rank and a removed worker count as empty at once.
pub struct LaneIndex {
    reader: TieredIndex,
    /// Held while orders are queued, so that lanes get them in the order of their making.
    slots: RwLock<SlotTable>,
    lanes: Vec<Arc<LaneState>>,
    threads: Vec<JoinHandle<()>>,
    outcomes: Arc<Outcomes>,
    masks: Arc<Masks>,
    waits: AtomicU64,
    refused: AtomicU64,
}

impl LaneIndex {
    /// Starts a lane for each writer of an empty index. `report` is told what went wrong, on the lanes' threads.
    pub fn start(
        parts: IndexParts,
        config: &LaneConfig,
        report: impl Fn(LaneReport) + Send + Sync + 'static,
    ) -> Result<Self, StartLanesError> {
        let (reader, mut writers) = with_tiers(parts);
        writers.truncate(config.lanes.get());
        let limits = Limits { events: config.queued_events.get(), blocks: config.queued_blocks.get() };
        let report: Report = Arc::new(report);
        let mut index = Self {
            reader,
            slots: RwLock::default(),
            lanes: Vec::new(),
            threads: Vec::new(),
            outcomes: Arc::default(),
            masks: Arc::default(),
            waits: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        };
        for (number, writer) in writers.into_iter().enumerate() {
            let state = Arc::new(LaneState {
                queue: LaneQueue::new(limits),
                in_hand: InHand::default(),
                since: Mutex::new(None),
                longest_wait: AtomicU64::new(0),
                broken: Mutex::new(None),
                spent: Mutex::new(Vec::new()),
            });
            let (outcomes, masks) = (index.outcomes.clone(), index.masks.clone());
            let lane = Lane::new(number, state.clone(), writer, outcomes, masks, report.clone());
            let thread = std::thread::Builder::new().name(format!("kv-lane-{number}"));
            let thread =
                thread.spawn(|| lane.run()).map_err(|source| StartLanesError { lane: number, source })?;
            index.lanes.push(state);
            index.threads.push(thread);
        }
        Ok(index)
    }

    /// Takes on a worker, as [`KvIndex::add_worker`](crate::KvIndex::add_worker).
    pub fn add_worker(
        &self,
        worker_id: WorkerId,
        epoch: u64,
        ranks: Range<DpRank>,
        capacity: Option<u32>,
    ) -> Result<Vec<WorkerSlot>, AddWorkerError> {
        self.add_to(&mut self.slots.write(), worker_id, epoch, ranks, capacity)
    }

    fn add_to(
        &self,
        slots: &mut SlotTable,
        worker_id: WorkerId,
        epoch: u64,
        ranks: Range<DpRank>,
        capacity: Option<u32>,
    ) -> Result<Vec<WorkerSlot>, AddWorkerError> {
        let added = slots.add(worker_id, epoch, ranks, capacity)?;
        let owned = slots_of(slots, worker_id);
        for slot in &added.outdated {
            if !owned.iter().any(|rank| rank.slot == *slot) {
                self.order(*slot, Task::Forget(*slot));
            }
        }
        for &WorkerSlot { dp_rank, slot } in &owned {
            let is_masked = added.outdated.contains(&slot);
            if is_masked {
                self.masks.put(slot);
            }
            let worker = WorkerRank { worker_id, dp_rank };
            self.order(slot, Task::Adopt { slot, worker, epoch, capacity, is_masked });
        }
        Ok(owned)
    }

    /// Forgets a worker and all that its ranks held.
    pub fn remove_worker(&self, worker_id: WorkerId) {
        let mut slots = self.slots.write();
        for slot in slots.remove(worker_id) {
            self.order(slot, Task::Forget(slot));
        }
    }

    /// Forgets what one rank held, before a dump replaces it.
    pub fn clear_rank(&self, worker: WorkerRank) {
        let slots = self.slots.write();
        if let Some(slot) = slots.worker(worker.worker_id).and_then(|known| known.slot(worker.dp_rank)) {
            self.masks.put(slot);
            self.order(slot, Task::Clear(slot));
        }
    }

    /// The slots of a worker's ranks; none if it is not known.
    pub fn worker_slots(&self, worker_id: WorkerId) -> Vec<WorkerSlot> {
        slots_of(&self.slots.read(), worker_id)
    }

    /// All workers and their ranks.
    pub fn ranks(&self) -> Vec<WorkerRank> {
        let slots = self.slots.read();
        let ranks_of = |worker_id| slots_of(&slots, worker_id).into_iter().map(move |rank| rank.dp_rank);
        let ranks = slots.workers().flat_map(|(worker_id, _)| {
            ranks_of(worker_id).map(move |dp_rank| WorkerRank { worker_id, dp_rank })
        });
        ranks.collect()
    }

    /// Whose slot it is.
    pub fn owner(&self, slot: Slot) -> Option<WorkerRank> {
        self.slots.read().owner(slot)
    }

    /// Brings an event of a rank in the given incarnation of its worker, and waits while its lane has as much to do
    /// as may wait: whoever brings events is slowed down to the lanes' pace, and nothing is lost. Do not call it where
    /// waiting is forbidden; there is [`Self::try_apply`]. A higher epoch than the known one drops what the worker had.
    ///
    /// What is refused at once is counted and returned; what the lane refuses is counted and reported.
    pub fn apply(
        &self,
        worker: WorkerRank,
        epoch: u64,
        tier: StorageTier,
        data: KvCacheEventData,
    ) -> Result<(), IndexError> {
        let slot = self.admit(worker, epoch, &data)?;
        let task = Task::Event { slot, epoch, tier, data };
        let weight = task.weight();
        if let Ok(true) = self.lane(slot).queue.put(task, weight, Instant::now) {
            self.waits.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// As [`Self::apply`], but gives the event back instead of waiting.
    pub fn try_apply(
        &self,
        worker: WorkerRank,
        epoch: u64,
        tier: StorageTier,
        data: KvCacheEventData,
    ) -> Result<(), TryApplyError> {
        let slot = self.admit(worker, epoch, &data)?;
        let task = Task::Event { slot, epoch, tier, data };
        let weight = task.weight();
        self.lane(slot).queue.try_put(task, weight, Instant::now).map_err(|(task, refused)| {
            match (refused, task) {
                (Refused::Full, Task::Event { data, .. }) => {
                    self.refused.fetch_add(1, Ordering::Relaxed);
                    TryApplyError::Full(data)
                }
                _ => TryApplyError::Stopped,
            }
        })
    }

    /// Gives back the memory of some events that were applied, for the next ones to be decoded into.
    pub fn take_spent(&self, mut take: impl FnMut(KvCacheEventData)) {
        for lane in &self.lanes {
            lane.spent.lock().drain(..).for_each(&mut take);
        }
    }

    /// The slot of a rank whose event counts.
    fn admit(&self, worker: WorkerRank, epoch: u64, data: &KvCacheEventData) -> Result<Slot, IndexError> {
        let mut result = self.slot_for(&self.slots.read(), worker, epoch);
        if let Ok(None) = result {
            // Looked at again: another thread may have been here.
            let mut slots = self.slots.write();
            result = self.slot_for(&slots, worker, epoch);
            if let Ok(None) = result {
                result = Ok(self.renew(&mut slots, worker, epoch));
            }
        }
        let unknown = IndexError::UnknownWorker { worker_id: worker.worker_id, dp_rank: worker.dp_rank };
        let result = result.and_then(|slot| slot.ok_or(unknown));
        if result.is_err() {
            self.outcomes.count(EventKind::of(data), EventStatus::of(&result.map(|_| ())));
        }
        result
    }

    /// `None` if the epoch is newer than what is known.
    fn slot_for(
        &self,
        slots: &SlotTable,
        worker: WorkerRank,
        epoch: u64,
    ) -> Result<Option<Slot>, IndexError> {
        let WorkerRank { worker_id, dp_rank } = worker;
        let unknown = IndexError::UnknownWorker { worker_id, dp_rank };
        let known = slots.worker(worker_id).ok_or(unknown)?;
        if epoch < known.epoch {
            return Err(IndexError::StaleEpoch { offered: epoch, known: known.epoch });
        }
        let slot = known.slot(dp_rank).ok_or(unknown)?;
        Ok((epoch == known.epoch).then_some(slot))
    }

    /// A known worker has a higher epoch.
    fn renew(&self, slots: &mut SlotTable, worker: WorkerRank, epoch: u64) -> Option<Slot> {
        let known = slots.worker(worker.worker_id)?;
        let ranks = known.first_rank..known.first_rank + known.slots.len() as u32;
        let capacity = known.capacity;
        let owned = self.add_to(slots, worker.worker_id, epoch, ranks, capacity).ok()?;
        owned.iter().find(|rank| rank.dp_rank == worker.dp_rank).map(|rank| rank.slot)
    }

    fn lane(&self, slot: Slot) -> &LaneState {
        &self.lanes[slot.index() % self.lanes.len()]
    }

    fn order(&self, slot: Slot, task: Task) {
        let weight = task.weight();
        // A lane that has stopped has nothing to forget.
        let _ = self.lane(slot).queue.put(task, weight, Instant::now);
    }

    /// Replaces `out` by who holds how much of a prompt, first block first. The buffer may be used again and again.
    pub fn find_matches(&self, local: &[LocalBlockHash], out: &mut MatchBuffer) {
        let masked = self.masks.get();
        self.reader.find_matches(local, out);
        if !masked.is_empty() {
            out.hide(&masked);
        }
    }

    /// The same, as [`SharedIndex::find_matches_at`](crate::SharedIndex::find_matches_at).
    pub fn find_matches_at(&self, local: &[LocalBlockHash], now: Instant, out: &mut MatchBuffer) {
        let masked = self.masks.get();
        self.reader.find_matches_at(local, now, out);
        if !masked.is_empty() {
            out.hide(&masked);
        }
    }

    /// Blocks that a rank holds on its device, as far as events were applied.
    pub fn held_blocks(&self, worker: WorkerRank) -> u32 {
        let slot = self.slots.read().worker(worker.worker_id).and_then(|known| known.slot(worker.dp_rank));
        slot.filter(|slot| !self.masks.get().contains(slot)).map_or(0, |slot| self.reader.held_blocks(slot))
    }

    /// How large the index of the devices' blocks is.
    pub fn counts(&self) -> IndexCounts {
        self.reader.counts()
    }

    /// How large the index of lower tiers is; see [`TieredIndex::lower_counts`].
    pub fn lower_counts(&self) -> IndexCounts {
        self.reader.lower_counts()
    }

    /// Events by kind and status, as far as they were applied or refused. Lanes tell after each batch.
    pub fn counters(&self) -> EventCounters {
        self.outcomes.get()
    }

    /// How the lanes keep up.
    pub fn gauges(&self) -> LaneGauges {
        let mut gauges = LaneGauges {
            lanes: self.lanes.len(),
            waits: self.waits.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
            ..LaneGauges::default()
        };
        for lane in &self.lanes {
            let (events, blocks, since) = lane.queue.waiting();
            gauges.queued_events += events + lane.in_hand.events.load(Ordering::Relaxed);
            gauges.queued_blocks += blocks + lane.in_hand.blocks.load(Ordering::Relaxed);
            let oldest = lane.since.lock().or(since).map_or(Duration::ZERO, |since| since.elapsed());
            gauges.oldest_wait = gauges.oldest_wait.max(oldest);
            let longest = Duration::from_nanos(lane.longest_wait.load(Ordering::Relaxed));
            gauges.longest_wait = gauges.longest_wait.max(longest);
        }
        gauges
    }

    /// The first lane that broke, if one did.
    pub fn broken(&self) -> Option<LaneBroken> {
        self.lanes.iter().find_map(|lane| lane.broken.lock().clone())
    }

    /// Calls `done`, on some lane's thread, when all that was brought before is applied.
    pub fn flush_with(&self, done: impl FnOnce(Result<(), FlushError>) + Send + 'static) {
        let done: Done = Box::new(done);
        let barrier = Arc::new(Barrier::new(self.lanes.len(), done));
        for lane in &self.lanes {
            let task = Task::Flush(barrier.clone());
            let weight = task.weight();
            let _ = lane.queue.put(task, weight, Instant::now);
        }
    }

    /// Waits until all that was brought before is applied.
    pub fn flush(&self, timeout: Duration) -> Result<(), FlushError> {
        let (sender, receiver) = mpsc::sync_channel(1);
        self.flush_with(move |outcome| {
            // Nobody waits any more.
            let _ = sender.try_send(outcome);
        });
        receiver.recv_timeout(timeout).unwrap_or(Err(FlushError::Timeout))
    }

    /// Calls `done`, on the rank's lane, with all that the rank holds after what was brought before.
    pub fn dump_with(
        &self,
        worker: WorkerRank,
        done: impl FnOnce(Result<RankDump, DumpError>) + Send + 'static,
    ) {
        let slots = self.slots.read();
        let Some(slot) = slots.worker(worker.worker_id).and_then(|known| known.slot(worker.dp_rank)) else {
            drop(slots);
            return done(Err(DumpError::UnknownWorker));
        };
        drop(slots);
        let mut reply = DumpReply(Some(done));
        let take = Box::new(move |events: Option<_>| {
            let dump = events.map(|events| RankDump::new(worker, events));
            reply.tell(dump.ok_or(DumpError::Stopped));
        });
        self.order(slot, Task::Dump { slot, take });
    }

    /// All that a rank holds after what was brought before.
    pub fn dump(&self, worker: WorkerRank, timeout: Duration) -> Result<RankDump, DumpError> {
        let (sender, receiver) = mpsc::sync_channel(1);
        self.dump_with(worker, move |outcome| {
            // Nobody waits any more.
            let _ = sender.try_send(outcome);
        });
        receiver.recv_timeout(timeout).unwrap_or(Err(DumpError::Timeout))
    }
}

/// Tells that the lane has stopped if nothing else was told.
struct DumpReply<F: FnOnce(Result<RankDump, DumpError>)>(Option<F>);

impl<F: FnOnce(Result<RankDump, DumpError>)> DumpReply<F> {
    fn tell(&mut self, outcome: Result<RankDump, DumpError>) {
        if let Some(done) = self.0.take() {
            done(outcome);
        }
    }
}

impl<F: FnOnce(Result<RankDump, DumpError>)> Drop for DumpReply<F> {
    fn drop(&mut self) {
        self.tell(Err(DumpError::Stopped));
    }
}

impl Drop for LaneIndex {
    /// Stops the lanes, whatever waits, and waits for them to end.
    fn drop(&mut self) {
        for lane in &self.lanes {
            drop(lane.queue.close());
        }
        for thread in self.threads.drain(..) {
            // The last handle may be dropped by what a lane calls.
            if thread.thread().id() != std::thread::current().id() {
                // A lane catches its panics and tells of them.
                let _ = thread.join();
            }
        }
    }
}

fn slots_of(slots: &SlotTable, worker_id: WorkerId) -> Vec<WorkerSlot> {
    slots.worker(worker_id).map_or_else(Vec::new, |worker| {
        (worker.first_rank..)
            .zip(&worker.slots)
            .map(|(dp_rank, &slot)| WorkerSlot { dp_rank, slot })
            .collect()
    })
}
