//! An index of workers: who they are, in which incarnation, and what became of their events.

use std::ops::Range;

use dynamo_engine_api::{DpRank, KvCacheEvent, KvCacheEventData, RouterEvent, StorageTier};
use dynamo_tokens::LocalBlockHash;

use super::{ApplyError, IndexCounts, MatchBuffer, PrefixIndex, RadixTree};
use crate::{
    AddWorkerError, Slot, WorkerId, WorkerRank,
    slot::{Incarnation, SlotTable},
};

/// Why an event of a worker did not apply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// It does not fit what the index has.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// No such worker was added, or it was removed.
    #[error("worker {worker_id} with rank {dp_rank} is not known")]
    UnknownWorker {
        /// The worker.
        worker_id: WorkerId,
        /// The rank.
        dp_rank: DpRank,
    },
    /// The event comes from an earlier incarnation of the worker.
    #[error("the event's epoch {offered} is older than the known epoch {known}")]
    StaleEpoch {
        /// The event's epoch.
        offered: u64,
        /// The worker's.
        known: u64,
    },
    /// The rank holds more blocks than its card says: events were lost, ask for a dump. Until it is applied after a
    /// `Cleared`, the rank's stores are refused.
    #[error("the rank holds {held} blocks, and its card says {capacity}: events were lost, ask for a dump")]
    OverCapacity {
        /// Blocks that the index has.
        held: u32,
        /// Blocks that the rank can hold.
        capacity: u32,
    },
}

impl IndexError {
    /// Whether the index and its worker disagree on what the worker holds.
    pub const fn asks_for_dump(&self) -> bool {
        matches!(
            self,
            Self::OverCapacity { .. }
                | Self::Apply(ApplyError::ParentBlockNotFound | ApplyError::BlockNotFound)
        )
    }
}

/// The kind of an event, as metrics label it (`event_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the kinds of events")]
pub enum EventKind {
    Stored,
    Removed,
    Cleared,
}

impl EventKind {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Stored, Self::Removed, Self::Cleared];

    /// The label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Stored => "stored",
            Self::Removed => "removed",
            Self::Cleared => "cleared",
        }
    }

    /// The kind of an event.
    pub const fn of(data: &KvCacheEventData) -> Self {
        match data {
            KvCacheEventData::Stored { .. } => Self::Stored,
            KvCacheEventData::Removed { .. } => Self::Removed,
            KvCacheEventData::Cleared => Self::Cleared,
        }
    }
}

/// What became of an event, as metrics label it (`status`). The first four are the reference's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the variants of IndexError")]
pub enum EventStatus {
    Ok,
    ParentBlockNotFound,
    BlockNotFound,
    InvalidBlock,
    UnchainedName,
    Full,
    OverCapacity,
    UnknownWorker,
    StaleEpoch,
}

impl EventStatus {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Ok,
        Self::ParentBlockNotFound,
        Self::BlockNotFound,
        Self::InvalidBlock,
        Self::UnchainedName,
        Self::Full,
        Self::OverCapacity,
        Self::UnknownWorker,
        Self::StaleEpoch,
    ];

    /// The label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::ParentBlockNotFound => "parent_block_not_found",
            Self::BlockNotFound => "block_not_found",
            Self::InvalidBlock => "invalid_block",
            Self::UnchainedName => "unchained_name",
            Self::Full => "index_full",
            Self::OverCapacity => "over_capacity",
            Self::UnknownWorker => "unknown_worker",
            Self::StaleEpoch => "stale_epoch",
        }
    }

    /// The status of a result.
    pub const fn of(result: &Result<(), IndexError>) -> Self {
        match result {
            Ok(()) => Self::Ok,
            Err(IndexError::Apply(ApplyError::ParentBlockNotFound)) => Self::ParentBlockNotFound,
            Err(IndexError::Apply(ApplyError::BlockNotFound)) => Self::BlockNotFound,
            Err(IndexError::Apply(ApplyError::InvalidBlock)) => Self::InvalidBlock,
            Err(IndexError::Apply(ApplyError::UnchainedName)) => Self::UnchainedName,
            Err(IndexError::Apply(ApplyError::Full)) => Self::Full,
            Err(IndexError::OverCapacity { .. }) => Self::OverCapacity,
            Err(IndexError::UnknownWorker { .. }) => Self::UnknownWorker,
            Err(IndexError::StaleEpoch { .. }) => Self::StaleEpoch,
        }
    }
}

/// Events by kind and status since the index was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EventCounters([[u64; EventStatus::ALL.len()]; EventKind::ALL.len()]);

impl EventCounters {
    pub(crate) const fn add(&mut self, kind: EventKind, status: EventStatus, count: u64) {
        self.0[kind as usize][status as usize] += count;
    }

    /// How many events of a kind ended so.
    pub const fn get(&self, kind: EventKind, status: EventStatus) -> u64 {
        self.0[kind as usize][status as usize]
    }

    /// All counts.
    pub fn iter(&self) -> impl Iterator<Item = (EventKind, EventStatus, u64)> + '_ {
        EventKind::ALL.into_iter().flat_map(move |kind| {
            EventStatus::ALL.into_iter().map(move |status| (kind, status, self.get(kind, status)))
        })
    }
}

/// A rank of a worker and its slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WorkerSlot {
    /// The rank.
    pub dp_rank: DpRank,
    /// Its slot, for as long as the worker is not removed.
    pub slot: Slot,
}

/// The index of one base model and block size: workers, their incarnations, and the blocks of their ranks.
///
/// Only events of workers that were added count, so that it is bounded by the workers there are and what they hold.
#[derive(Default)]
pub struct KvIndex<I = RadixTree> {
    index: I,
    slots: SlotTable,
    counters: EventCounters,
}

impl<I: PrefixIndex> KvIndex<I> {
    /// Takes an empty index.
    pub fn new(index: I) -> Self {
        Self { index, slots: SlotTable::default(), counters: EventCounters::default() }
    }

    /// Takes on a worker (again): with a higher epoch, what the earlier incarnation held is dropped; ranks outside of
    /// `ranks` go; slots of the others stay the same. `capacity` is the blocks that one rank can hold.
    pub fn add_worker(
        &mut self,
        worker_id: WorkerId,
        epoch: u64,
        ranks: Range<DpRank>,
        capacity: Option<u32>,
    ) -> Result<Vec<WorkerSlot>, AddWorkerError> {
        let added = self.slots.add(worker_id, epoch, ranks, capacity)?;
        for slot in added.outdated {
            self.index.clear(slot);
        }
        Ok(self.worker_slots(worker_id))
    }

    /// Forgets a worker and all that its ranks held.
    pub fn remove_worker(&mut self, worker_id: WorkerId) {
        for slot in self.slots.remove(worker_id) {
            self.index.clear(slot);
        }
    }

    /// The slots of a worker's ranks; none if it is not known.
    pub fn worker_slots(&self, worker_id: WorkerId) -> Vec<WorkerSlot> {
        self.slots.worker(worker_id).map_or_else(Vec::new, |worker| {
            let ranks = worker.first_rank..;
            ranks.zip(&worker.slots).map(|(dp_rank, &slot)| WorkerSlot { dp_rank, slot }).collect()
        })
    }

    /// Whose slot it is.
    pub fn owner(&self, slot: Slot) -> Option<WorkerRank> {
        self.slots.owner(slot)
    }

    /// Applies an event of a rank in the given incarnation of its worker. A higher epoch than the known one drops what
    /// the worker had; a lower one is ignored. Every outcome is counted.
    pub fn apply(
        &mut self,
        worker: WorkerRank,
        epoch: u64,
        event: &KvCacheEventData,
    ) -> Result<(), IndexError> {
        let result = self.try_apply(worker, epoch, event);
        self.counters.0[EventKind::of(event) as usize][EventStatus::of(&result) as usize] += 1;
        result
    }

    fn try_apply(
        &mut self,
        worker: WorkerRank,
        epoch: u64,
        event: &KvCacheEventData,
    ) -> Result<(), IndexError> {
        let WorkerRank { worker_id, dp_rank } = worker;
        let unknown = IndexError::UnknownWorker { worker_id, dp_rank };
        let known = self.slots.worker(worker_id).ok_or(unknown)?;
        if epoch < known.epoch {
            return Err(IndexError::StaleEpoch { offered: epoch, known: known.epoch });
        }
        let slot = known.slot(dp_rank).ok_or(unknown)?;
        let capacity = known.capacity;
        if epoch > known.epoch {
            let Incarnation { first_rank, slots, .. } = known;
            let ranks = *first_rank..*first_rank + slots.len() as u32;
            let added = self.slots.add(worker_id, epoch, ranks, capacity);
            for slot in added.into_iter().flat_map(|added| added.outdated) {
                self.index.clear(slot);
            }
        }
        let over = |held: u32| capacity.is_some_and(|capacity| held > capacity);
        let refused = |held| IndexError::OverCapacity { held, capacity: capacity.unwrap_or(u32::MAX) };
        if matches!(event, KvCacheEventData::Stored { .. }) {
            let held = self.index.held_blocks(slot);
            if over(held) {
                return Err(refused(held));
            }
        }
        self.index.apply(slot, event)?;
        let held = self.index.held_blocks(slot);
        if over(held) { Err(refused(held)) } else { Ok(()) }
    }

    /// Forgets what one rank held, before a dump replaces it.
    pub fn clear_rank(&mut self, worker: WorkerRank) {
        if let Some(slot) = self.slots.worker(worker.worker_id).and_then(|known| known.slot(worker.dp_rank)) {
            self.index.clear(slot);
        }
    }

    /// Replaces `out` by who holds how much of a prompt, first block first. The buffer may be used again and again.
    pub fn find_matches(&self, local: &[LocalBlockHash], out: &mut MatchBuffer) {
        self.index.find_matches(local, out);
        self.index.note_held_blocks(out);
    }

    /// Everything as events, ids from 0 for each rank, that give the same when applied in order to an empty index.
    pub fn dump(&self) -> Vec<RouterEvent> {
        let mut events = Vec::new();
        for (worker_id, worker) in self.slots.workers() {
            for (dp_rank, &slot) in (worker.first_rank..).zip(&worker.slots) {
                events.extend((0..).zip(self.index.dump(slot)).map(|(event_id, data)| RouterEvent {
                    worker_id,
                    event: KvCacheEvent { event_id, data, dp_rank },
                    storage_tier: StorageTier::Device,
                }));
            }
        }
        events
    }

    /// What one rank holds, as events that give the same when applied in order to an empty rank.
    pub fn dump_rank(&self, worker: WorkerRank) -> Vec<KvCacheEventData> {
        let slot = self.slots.worker(worker.worker_id).and_then(|known| known.slot(worker.dp_rank));
        slot.map_or_else(Vec::new, |slot| self.index.dump(slot))
    }

    /// Blocks that a rank holds.
    pub fn held_blocks(&self, worker: WorkerRank) -> u32 {
        let slot = self.slots.worker(worker.worker_id).and_then(|known| known.slot(worker.dp_rank));
        slot.map_or(0, |slot| self.index.held_blocks(slot))
    }

    /// How large the index is.
    pub fn counts(&self) -> IndexCounts {
        self.index.counts()
    }

    /// Events by kind and status.
    pub fn counters(&self) -> &EventCounters {
        &self.counters
    }
}

#[cfg(test)]
mod tests;
