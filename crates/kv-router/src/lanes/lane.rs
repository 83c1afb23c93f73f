//! One lane: a thread that writes for its slots.

use std::{
    any::Any,
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Instant,
};

use dynamo_engine_api::{KvCacheEventData, StorageTier};
use parking_lot::Mutex;
use rustc_hash::FxHashMap;

use super::{
    LaneBroken, LaneReport,
    barrier::Barrier,
    dump::blocks_of,
    lane_index::Masks,
    outcomes::Outcomes,
    queue::{LaneQueue, Weight},
};
use crate::{
    EventCounters, EventKind, EventStatus, IndexError, Slot, WorkerRank,
    index::{TieredWriter, prefetch},
};

/// Gets a rank's events, tier by tier; `None` if the slot is not the lane's.
pub(super) type TakeDump = Box<dyn FnOnce(Option<Vec<(StorageTier, KvCacheEventData)>>) + Send>;

/// Applied events whose memory is kept for whoever decodes the next ones, in each lane: as many as a message has.
const KEPT_SPENT: usize = 128;

/// What a lane is given to do.
pub(super) enum Task {
    Event {
        slot: Slot,
        epoch: u64,
        tier: StorageTier,
        data: KvCacheEventData,
    },
    /// A slot has an owner, or its owner another incarnation or capacity. What an earlier one had goes; then so does
    /// the mask, if there is one.
    Adopt {
        slot: Slot,
        worker: WorkerRank,
        epoch: u64,
        capacity: Option<u32>,
        is_masked: bool,
    },
    /// A slot has no owner any more.
    Forget(Slot),
    /// A slot is to be filled anew; it is masked.
    Clear(Slot),
    Flush(Arc<Barrier>),
    Dump {
        slot: Slot,
        take: TakeDump,
    },
}

impl Task {
    pub(super) fn weight(&self) -> Weight {
        match self {
            Self::Event { data, .. } => Weight::Event { blocks: blocks_of(data) },
            _ => Weight::Order,
        }
    }
}

/// What is left of the batch in a lane's hands. On lines of its own: the lane writes it with each event, while others
/// write the queue.
#[derive(Default)]
#[repr(align(128))]
pub(super) struct InHand {
    pub(super) events: AtomicUsize,
    pub(super) blocks: AtomicUsize,
}

/// What a lane and those who look at it share.
pub(super) struct LaneState {
    pub(super) queue: LaneQueue<Task>,
    pub(super) in_hand: InHand,
    /// When the oldest of the batch in hand came.
    pub(super) since: Mutex<Option<Instant>>,
    /// Nanoseconds.
    pub(super) longest_wait: AtomicU64,
    pub(super) broken: Mutex<Option<LaneBroken>>,
    /// Events that were applied.
    pub(super) spent: Mutex<Vec<KvCacheEventData>>,
}

/// Told of what went wrong.
pub(super) type Report = Arc<dyn Fn(LaneReport) + Send + Sync>;

/// A slot's owner, as the lane knows it.
struct Owner {
    slot: Slot,
    worker: WorkerRank,
    epoch: u64,
    capacity: Option<u32>,
}

pub(super) struct Lane {
    pub(super) number: usize,
    pub(super) state: Arc<LaneState>,
    pub(super) writer: TieredWriter,
    pub(super) outcomes: Arc<Outcomes>,
    pub(super) masks: Arc<Masks>,
    pub(super) report: Report,
    owners: FxHashMap<usize, Owner>,
    counted: EventCounters,
    spent: Vec<KvCacheEventData>,
    is_broken: bool,
}

impl Lane {
    pub(super) fn new(
        number: usize,
        state: Arc<LaneState>,
        writer: TieredWriter,
        outcomes: Arc<Outcomes>,
        masks: Arc<Masks>,
        report: Report,
    ) -> Self {
        Self {
            number,
            state,
            writer,
            outcomes,
            masks,
            report,
            owners: FxHashMap::default(),
            counted: EventCounters::default(),
            spent: Vec::new(),
            is_broken: false,
        }
    }

    /// Applies what comes until the queue is closed.
    pub(super) fn run(mut self) {
        let mut tasks = VecDeque::new();
        while let Some(batch) = self.state.queue.take(&mut tasks) {
            let state = self.state.clone();
            state.in_hand.events.store(batch.events, Ordering::Relaxed);
            state.in_hand.blocks.store(batch.blocks, Ordering::Relaxed);
            *state.since.lock() = batch.since;
            if let Some(since) = batch.since {
                let nanos = u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX);
                state.longest_wait.fetch_max(nanos, Ordering::Relaxed);
            }
            // Once it is broken, only those who wait are told.
            while !tasks.is_empty() {
                let outcome = catch_unwind(AssertUnwindSafe(|| self.apply_all(&mut tasks)));
                if let Err(panic) = outcome {
                    self.break_down(&*panic);
                }
            }
            self.tell();
            state.in_hand.events.store(0, Ordering::Relaxed);
            state.in_hand.blocks.store(0, Ordering::Relaxed);
            *state.since.lock() = None;
        }
    }

    /// Lets others see what was counted, and have what is done with.
    fn tell(&mut self) {
        self.outcomes.add(&mut self.counted);
        let mut spent = self.state.spent.lock();
        let room = KEPT_SPENT - spent.len();
        spent.extend(self.spent.drain(..).take(room));
    }

    fn apply_all(&mut self, tasks: &mut VecDeque<Task>) {
        /// Tasks between two looks at whether to stop.
        const TASKS_PER_LOOK: usize = 256;
        /// Events whose memory is on its way while one is applied.
        const AHEAD: usize = 8;
        for number in 1.. {
            let Some(task) = tasks.pop_front() else { return };
            if number % TASKS_PER_LOOK == 0 && self.state.queue.is_closed() {
                tasks.clear();
                return;
            }
            if let Some(Task::Event { data, .. }) = tasks.get(2 * AHEAD) {
                ask_for(data);
            }
            if let Some(Task::Event { tier: StorageTier::Device, data, .. }) = tasks.get(AHEAD) {
                self.writer.announce(data);
            }
            self.apply(task);
        }
    }

    fn apply(&mut self, task: Task) {
        match task {
            Task::Event { slot, epoch, tier, data } => {
                let blocks = blocks_of(&data);
                if !self.is_broken {
                    self.apply_event(slot, epoch, tier, &data);
                }
                if self.spent.len() < KEPT_SPENT {
                    self.spent.push(data);
                }
                lower(&self.state.in_hand.events, 1);
                lower(&self.state.in_hand.blocks, blocks);
            }
            Task::Flush(barrier) => {
                self.tell();
                barrier.arrive(self.is_broken);
            }
            Task::Dump { take, .. } if self.is_broken => take(None),
            Task::Dump { slot, take } => {
                let known = self.owners.get(&slot.index()).is_some_and(|owner| owner.slot == slot);
                take(known.then(|| self.writer.dump(slot)));
            }
            // What a broken lane has stays masked.
            _ if self.is_broken => {}
            Task::Adopt { slot, worker, epoch, capacity, is_masked } => {
                if let Some(before) = self.owners.get(&slot.index())
                    && (before.slot != slot || before.epoch != epoch)
                {
                    self.writer.clear(before.slot);
                }
                self.owners.insert(slot.index(), Owner { slot, worker, epoch, capacity });
                if is_masked {
                    self.masks.lift(slot);
                }
            }
            Task::Forget(slot) => {
                if self.owners.get(&slot.index()).is_some_and(|owner| owner.slot == slot) {
                    self.owners.remove(&slot.index());
                }
                self.writer.clear(slot);
            }
            Task::Clear(slot) => {
                self.writer.clear(slot);
                self.masks.lift(slot);
            }
        }
    }

    fn apply_event(&mut self, slot: Slot, epoch: u64, tier: StorageTier, data: &KvCacheEventData) {
        let kind = EventKind::of(data);
        let Some(owner) = self.owners.get(&slot.index()).filter(|owner| owner.slot == slot) else {
            // It left while its event waited.
            self.counted.add(kind, EventStatus::UnknownWorker, 1);
            return;
        };
        let result = apply_to(&mut self.writer, owner, epoch, tier, data);
        self.counted.add(kind, EventStatus::of(&result), 1);
        if let Err(error) = result {
            (self.report)(LaneReport::Refused { worker: owner.worker, epoch, error });
        }
    }

    #[cold]
    fn break_down(&mut self, panic: &(dyn Any + Send)) {
        let message = panic.downcast_ref::<&str>().map(ToString::to_string);
        let message = message.or_else(|| panic.downcast_ref::<String>().cloned());
        let message = message.unwrap_or_else(|| "a panic without a message".to_owned());
        self.is_broken = true;
        let broken = LaneBroken { lane: self.number, message };
        let is_first = self.state.broken.lock().replace(broken.clone()).is_none();
        if is_first {
            // Who is told may be what panics.
            let report = self.report.clone();
            drop(catch_unwind(AssertUnwindSafe(|| report(LaneReport::Broken(broken)))));
        }
    }
}

/// Asks for what an event points at, which another thread wrote.
fn ask_for(data: &KvCacheEventData) {
    /// Cache lines; what is behind them comes on its own.
    const LINES: usize = 8;
    match data {
        KvCacheEventData::Stored { blocks, .. } => blocks.iter().step_by(4).take(LINES).for_each(prefetch),
        KvCacheEventData::Removed { block_hashes } => {
            block_hashes.iter().step_by(8).take(LINES).for_each(prefetch);
        }
        KvCacheEventData::Cleared => {}
    }
}

/// Lowers a number that nobody else writes.
fn lower(number: &AtomicUsize, by: usize) {
    number.store(number.load(Ordering::Relaxed) - by, Ordering::Relaxed);
}

/// As [`crate::KvIndex::apply`].
fn apply_to(
    writer: &mut TieredWriter,
    owner: &Owner,
    epoch: u64,
    tier: StorageTier,
    data: &KvCacheEventData,
) -> Result<(), IndexError> {
    if epoch < owner.epoch {
        return Err(IndexError::StaleEpoch { offered: epoch, known: owner.epoch });
    }
    let capacity = owner.capacity.filter(|_| tier == StorageTier::Device);
    let check = |writer: &TieredWriter| match capacity {
        Some(capacity) if writer.held_blocks(owner.slot) > capacity => {
            Err(IndexError::OverCapacity { held: writer.held_blocks(owner.slot), capacity })
        }
        _ => Ok(()),
    };
    if matches!(data, KvCacheEventData::Stored { .. }) {
        check(writer)?;
    }
    writer.apply(owner.slot, tier, data)?;
    check(writer)
}
