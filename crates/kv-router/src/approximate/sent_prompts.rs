//! An [`ApproximateIndex`] in step with the workers.

use std::time::Instant;

use dynamo_tokens::{LocalBlockHash, SequenceHash};
use rustc_hash::FxHashMap;

use super::{ApproximateConfig, ApproximateIndex};
use crate::{IndexCounts, MatchBuffer, Slot, WorkerId, WorkerRank, WorkerSlot};

/// The prompts that were sent to the ranks of known workers, as far as those may still hold them. What was sent to a
/// worker goes with it, or with its incarnation. Slots come from the index of the same model.
pub struct SentPrompts {
    workers: FxHashMap<WorkerId, Known>,
    index: ApproximateIndex,
}

struct Known {
    epoch: u64,
    slots: Vec<WorkerSlot>,
}

impl SentPrompts {
    /// Knows no workers.
    pub fn new(config: ApproximateConfig) -> Self {
        Self { workers: FxHashMap::default(), index: ApproximateIndex::new(config) }
    }

    /// Takes on a worker, or a changed description of it, with the blocks that each of its ranks can hold, where known.
    pub fn set_worker(
        &mut self,
        worker_id: WorkerId,
        epoch: u64,
        slots: &[WorkerSlot],
        capacity: Option<u32>,
    ) {
        if let Some(before) = self.workers.remove(&worker_id) {
            let stays = |slot: Slot| before.epoch == epoch && slots.iter().any(|rank| rank.slot == slot);
            for WorkerSlot { slot, .. } in before.slots {
                if !stays(slot) {
                    self.index.clear(slot);
                }
            }
        }
        for rank in slots {
            self.index.set_capacity(rank.slot, capacity);
        }
        self.workers.insert(worker_id, Known { epoch, slots: slots.to_vec() });
    }

    /// Forgets a worker and what was sent to it.
    pub fn remove_worker(&mut self, worker_id: WorkerId) {
        for WorkerSlot { slot, .. } in
            self.workers.remove(&worker_id).map_or_else(Vec::new, |known| known.slots)
        {
            self.index.clear(slot);
        }
    }

    /// A prompt of these sequence hashes went to a rank; nothing is remembered of a rank that is not known.
    pub fn sent(&mut self, worker: WorkerRank, names: &[SequenceHash], now: Instant) {
        let ranks = self.workers.get(&worker.worker_id).map_or(&[][..], |known| &known.slots);
        let Some(slot) = ranks.iter().find(|rank| rank.dp_rank == worker.dp_rank).map(|rank| rank.slot)
        else {
            return;
        };
        if self.index.routed(slot, names, now).is_err() {
            // The tree has no numbers left, far beyond any setting that makes sense: make room.
            self.index.clear(slot);
        }
    }

    /// As [`ApproximateIndex::find_matches`].
    pub fn find_matches(
        &self,
        names: &[SequenceHash],
        path: &mut Vec<LocalBlockHash>,
        out: &mut MatchBuffer,
    ) {
        self.index.find_matches(names, path, out);
    }

    /// As [`ApproximateIndex::expire`].
    pub fn expire(&mut self, now: Instant, most: usize) -> bool {
        self.index.expire(now, most)
    }

    /// As [`ApproximateIndex::counts`].
    pub fn counts(&self) -> IndexCounts {
        self.index.counts()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rank(worker_id: u64, dp_rank: u32) -> WorkerRank {
        WorkerRank { worker_id, dp_rank }
    }

    fn slots(of: &[u32]) -> Vec<WorkerSlot> {
        (0..).zip(of).map(|(dp_rank, &slot)| WorkerSlot { dp_rank, slot: Slot::new(slot, 0) }).collect()
    }

    fn names(count: u64) -> Vec<SequenceHash> {
        (1..=count).map(SequenceHash).collect()
    }

    fn runs(sent: &SentPrompts) -> Vec<(usize, u32)> {
        let mut out = MatchBuffer::default();
        sent.find_matches(&names(9), &mut Vec::new(), &mut out);
        let mut runs: Vec<_> =
            out.matches().iter().map(|found| (found.slot.index(), found.device_blocks)).collect();
        runs.sort_unstable();
        runs
    }

    #[test]
    fn what_was_sent_goes_with_its_worker_rank_and_incarnation() {
        let mut sent = SentPrompts::new(ApproximateConfig::REFERENCE);
        let now = Instant::now();
        sent.sent(rank(7, 0), &names(3), now);
        assert_eq!(sent.counts().blocks, 0, "7 is not known yet");
        sent.set_worker(7, 1, &slots(&[0, 1]), None);
        sent.set_worker(8, 1, &slots(&[2]), None);
        sent.sent(rank(7, 0), &names(3), now);
        sent.sent(rank(7, 1), &names(4), now);
        sent.sent(rank(8, 0), &names(5), now);
        sent.sent(rank(8, 1), &names(6), now);
        assert_eq!(runs(&sent), [(0, 3), (1, 4), (2, 5)]);
        sent.set_worker(7, 1, &slots(&[0]), None);
        assert_eq!(runs(&sent), [(0, 3), (2, 5)], "a rank is gone");
        sent.set_worker(8, 2, &slots(&[2]), None);
        assert_eq!(runs(&sent), [(0, 3)], "8 began anew");
        sent.remove_worker(7);
        sent.sent(rank(7, 0), &names(3), now);
        assert_eq!((runs(&sent), sent.counts().blocks), (Vec::new(), 0));
    }
}
