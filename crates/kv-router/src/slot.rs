//! Slots: small numbers for (worker, data-parallel rank), shared by the index, the active load and the selection.

use std::ops::Range;

use dynamo_engine_api::DpRank;
use rustc_hash::FxHashMap;
use serde::{Deserialize, Serialize};

/// A worker's number; 53 bits, so that it survives a JSON double.
pub type WorkerId = u64;

/// One cache: a worker and one of its data-parallel ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct WorkerRank {
    /// The worker.
    pub worker_id: WorkerId,
    /// The rank within it.
    pub dp_rank: DpRank,
}

/// The short name of a [`WorkerRank`]. It holds a dense index and a generation: after a removal the index is used
/// again under the next generation, so that what still carries the old name is not taken for the new owner.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(u32);

impl Slot {
    /// Bits of the index; the rest is generation. A million ranks are more than one router can serve.
    const INDEX_BITS: u32 = 20;
    /// Slots that can exist at once.
    pub const MAX_SLOTS: usize = 1 << Self::INDEX_BITS;

    /// The slot of an index (its low 20 bits) in its `generation` (its low 12 bits).
    pub const fn new(index: u32, generation: u32) -> Self {
        Self((index & (Self::MAX_SLOTS as u32 - 1)) | generation << Self::INDEX_BITS)
    }

    /// The dense index, for tables by slot.
    pub const fn index(self) -> usize {
        (self.0 as usize) & (Self::MAX_SLOTS - 1)
    }

    /// The whole of it as a number, for an atomic.
    pub(crate) const fn to_bits(self) -> u32 {
        self.0
    }

    pub(crate) const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// Another index in the same generation.
    pub(crate) const fn with_index(self, index: usize) -> Self {
        Self::new(index as u32, self.generation())
    }

    const fn generation(self) -> u32 {
        self.0 >> Self::INDEX_BITS
    }
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Slot({}.{})", self.index(), self.generation())
    }
}

/// Ranks of one worker at most; the largest deployments known use 256.
pub const MAX_RANKS_PER_WORKER: u32 = 4096;

/// Why a worker was not taken on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddWorkerError {
    /// A later incarnation of the worker is known already.
    #[error("epoch {offered} of worker {worker_id} is older than the known epoch {known}")]
    StaleEpoch {
        /// The worker.
        worker_id: WorkerId,
        /// The epoch that came.
        offered: u64,
        /// The epoch that is known.
        known: u64,
    },
    /// More ranks than [`MAX_RANKS_PER_WORKER`], or none.
    #[error("a worker has 1 to {MAX_RANKS_PER_WORKER} ranks, not {0}")]
    RankCount(u32),
    /// More than [`Slot::MAX_SLOTS`] ranks in all.
    #[error("the router serves {} ranks at most: remove workers or shard the deployment", Slot::MAX_SLOTS)]
    Full,
}

/// The incarnation of a worker and the slots of its ranks.
#[derive(Clone, Debug)]
pub(crate) struct Incarnation {
    pub(crate) epoch: u64,
    pub(crate) first_rank: DpRank,
    pub(crate) slots: Vec<Slot>,
    /// Blocks that a rank can hold, where known.
    pub(crate) capacity: Option<u32>,
}

impl Incarnation {
    pub(crate) fn slot(&self, rank: DpRank) -> Option<Slot> {
        self.slots.get(rank.checked_sub(self.first_rank)? as usize).copied()
    }
}

/// What [`SlotTable::add`] did.
#[derive(Debug)]
pub(crate) struct Added {
    /// Slots whose content belongs to an older incarnation, or whose rank is gone.
    pub(crate) outdated: Vec<Slot>,
}

/// Which slot belongs to whom.
#[derive(Debug, Default)]
pub(crate) struct SlotTable {
    workers: FxHashMap<WorkerId, Incarnation>,
    /// By index: the current slot and its owner, if there is one.
    owners: Vec<(Slot, Option<WorkerRank>)>,
    free: Vec<u32>,
}

impl SlotTable {
    pub(crate) fn worker(&self, worker_id: WorkerId) -> Option<&Incarnation> {
        self.workers.get(&worker_id)
    }

    pub(crate) fn workers(&self) -> impl Iterator<Item = (WorkerId, &Incarnation)> {
        self.workers.iter().map(|(&id, incarnation)| (id, incarnation))
    }

    pub(crate) fn owner(&self, slot: Slot) -> Option<WorkerRank> {
        self.owners.get(slot.index()).filter(|(current, _)| *current == slot)?.1
    }

    /// Takes on a worker, or a changed description of it; slots of ranks that stay are kept.
    pub(crate) fn add(
        &mut self,
        worker_id: WorkerId,
        epoch: u64,
        ranks: Range<DpRank>,
        capacity: Option<u32>,
    ) -> Result<Added, AddWorkerError> {
        let count = ranks.end.saturating_sub(ranks.start);
        if count == 0 || count > MAX_RANKS_PER_WORKER {
            return Err(AddWorkerError::RankCount(count));
        }
        let known = self.workers.get(&worker_id);
        if let Some(known) = known.filter(|known| known.epoch > epoch) {
            return Err(AddWorkerError::StaleEpoch { worker_id, offered: epoch, known: known.epoch });
        }
        let have = known.map_or(0, |known| known.slots.len());
        let available = Slot::MAX_SLOTS - self.owners.len() + self.free.len() + have;
        if (count as usize) > available {
            return Err(AddWorkerError::Full);
        }
        let old = self.workers.remove(&worker_id);
        let mut outdated = Vec::new();
        if let Some(old) = &old {
            for (rank, &slot) in (old.first_rank..).zip(&old.slots) {
                if !ranks.contains(&rank) {
                    self.release(slot);
                    outdated.push(slot);
                } else if old.epoch != epoch {
                    outdated.push(slot);
                }
            }
        }
        let slots = ranks
            .clone()
            .map(|dp_rank| {
                let kept = old.as_ref().and_then(|old| old.slot(dp_rank));
                kept.unwrap_or_else(|| self.take(WorkerRank { worker_id, dp_rank }))
            })
            .collect();
        self.workers.insert(worker_id, Incarnation { epoch, first_rank: ranks.start, slots, capacity });
        Ok(Added { outdated })
    }

    /// Forgets a worker; its slots are free for others.
    pub(crate) fn remove(&mut self, worker_id: WorkerId) -> Vec<Slot> {
        let Some(gone) = self.workers.remove(&worker_id) else { return Vec::new() };
        for &slot in &gone.slots {
            self.release(slot);
        }
        gone.slots
    }

    fn take(&mut self, owner: WorkerRank) -> Slot {
        if let Some(index) = self.free.pop() {
            let (slot, entry) = &mut self.owners[index as usize];
            *slot = Slot::new(index, slot.generation() + 1);
            *entry = Some(owner);
            *slot
        } else {
            let slot = Slot::new(self.owners.len() as u32, 0);
            self.owners.push((slot, Some(owner)));
            slot
        }
    }

    fn release(&mut self, slot: Slot) {
        self.owners[slot.index()].1 = None;
        self.free.push(slot.index() as u32);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_used_again_index_is_another_slot() {
        let mut table = SlotTable::default();
        table.add(1, 10, 0..2, None).unwrap();
        let old = table.worker(1).unwrap().slot(1).unwrap();
        assert_eq!(table.owner(old), Some(WorkerRank { worker_id: 1, dp_rank: 1 }));
        table.remove(1);
        assert_eq!(table.owner(old), None);
        table.add(2, 10, 0..2, None).unwrap();
        let new = table.worker(2).unwrap().slots.clone();
        assert!(new.iter().any(|slot| slot.index() == old.index()));
        assert!(!new.contains(&old));
        assert_eq!(table.owner(old), None);
    }

    #[test]
    fn a_higher_epoch_keeps_slots_and_outdates_their_content() {
        let mut table = SlotTable::default();
        assert!(table.add(1, 10, 0..3, None).unwrap().outdated.is_empty());
        let before = table.worker(1).unwrap().slots.clone();
        assert!(table.add(1, 10, 0..3, Some(5)).unwrap().outdated.is_empty());
        assert_eq!(table.add(1, 11, 0..2, None).unwrap().outdated, before);
        assert_eq!(table.worker(1).unwrap().slots, before[..2]);
        assert!(matches!(table.add(1, 10, 0..2, None), Err(AddWorkerError::StaleEpoch { known: 11, .. })));
        assert_eq!(table.add(1, 12, 3..3, None).unwrap_err(), AddWorkerError::RankCount(0));
    }

    #[test]
    fn generations_wrap_without_touching_the_index() {
        assert_eq!(Slot::new(7, 4096), Slot::new(7, 0));
        assert_eq!(Slot::new(7, 4095).index(), 7);
    }
}
