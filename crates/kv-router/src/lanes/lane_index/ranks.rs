//! Answers in terms of ranks, for indexes and routers of different processes: each has slots of its own.

use super::LaneIndex;
use crate::{MalformedMatches, Match, MatchBuffer, RankMatch, RankMatches, TierMatch, WorkerRank};

impl LaneIndex {
    /// Adds what every rank has, by an answer of [`Self::find_matches`].
    pub fn name_ranks(&self, found: &MatchBuffer, out: &mut RankMatches) {
        out.raise_shared_blocks(found.shared_blocks());
        let slots = self.slots.read();
        // By slot index: of two owners of an index only the present one is looked for.
        let mut on_device: Vec<Option<Match>> = Vec::new();
        for found in found.matches() {
            let index = found.slot.index();
            on_device.resize(on_device.len().max(index + 1), None);
            if slots.owner(found.slot).is_some() {
                on_device[index] = Some(*found);
            }
        }
        for (worker_id, worker) in slots.workers() {
            for (dp_rank, &slot) in (worker.first_rank..).zip(&worker.slots) {
                let on_device = on_device.get(slot.index()).copied().flatten();
                let tiers = found.tiers_of(&on_device.unwrap_or(Match { slot, device_blocks: 0 }));
                out.push(&RankMatch {
                    worker: WorkerRank { worker_id, dp_rank },
                    epoch: worker.epoch,
                    held_blocks: found.held_blocks(slot),
                    device_blocks: tiers.device_blocks,
                    host_blocks: tiers.host_blocks,
                    any_blocks: tiers.any_blocks,
                });
            }
        }
    }

    /// Replaces `out` by what an index elsewhere answered, as far as it is of ranks that are known here, in the
    /// incarnation that is known here. On an error `out` is as it was.
    pub fn find_ranks(&self, answer: &RankMatches, out: &mut MatchBuffer) -> Result<(), MalformedMatches> {
        let ranks = answer.iter()?;
        out.clear();
        out.set_shared_blocks(answer.shared_blocks());
        let slots = self.slots.read();
        for found in ranks {
            let worker = slots.worker(found.worker.worker_id).filter(|known| known.epoch == found.epoch);
            let Some(slot) = worker.and_then(|known| known.slot(found.worker.dp_rank)) else { continue };
            let RankMatch { held_blocks, device_blocks, host_blocks, any_blocks, .. } = found;
            out.note_held(slot, held_blocks);
            if device_blocks > 0 {
                out.push(Match { slot, device_blocks });
            }
            if any_blocks > device_blocks {
                out.push_lower(TierMatch { slot, device_blocks, host_blocks, any_blocks });
            }
        }
        out.sort_lower();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use dynamo_engine_api::{ExternalBlockHash, KvCacheEventData, StorageTier, StoredBlock};
    use dynamo_tokens::LocalBlockHash;

    use super::*;
    use crate::{IndexerKind, LaneConfig};

    const PATIENCE: Duration = Duration::from_secs(20);

    fn index(kind: IndexerKind) -> LaneIndex {
        LaneIndex::start(kind.build(LaneConfig::REFERENCE.lanes), &LaneConfig::REFERENCE, |_| {}).unwrap()
    }

    /// Blocks of one prompt, with the names that the run index wants: chained hashes.
    fn store(index: &LaneIndex, worker: WorkerRank, tier: StorageTier, blocks: std::ops::Range<usize>) {
        let local: Vec<_> = (0..8).map(|block| LocalBlockHash(block * 17)).collect();
        let mut names = Vec::new();
        dynamo_tokens::sequence_hashes(&local, &mut names);
        let name = |place: usize| ExternalBlockHash(names[place].0);
        let block = |place: usize| StoredBlock { block_hash: name(place), tokens_hash: local[place] };
        let parent_hash = blocks.start.checked_sub(1).map(name);
        let data = KvCacheEventData::Stored { parent_hash, blocks: blocks.map(block).collect() };
        index.apply(worker, 5, tier, data).unwrap();
        index.flush(PATIENCE).unwrap();
    }

    fn rank(worker_id: u64, dp_rank: u32) -> WorkerRank {
        WorkerRank { worker_id, dp_rank }
    }

    #[test]
    fn another_process_sees_what_the_index_has_in_its_own_slots() {
        for kind in [IndexerKind::Run, IndexerKind::Radix] {
            let (ours, theirs) = (index(kind), index(kind));
            ours.add_worker(7, 5, 0..2, None).unwrap();
            ours.add_worker(8, 5, 0..1, None).unwrap();
            ours.add_worker(9, 5, 0..1, None).unwrap();
            store(&ours, rank(7, 1), StorageTier::Device, 0..4);
            store(&ours, rank(8, 0), StorageTier::HostPinned, 0..3);
            store(&ours, rank(8, 0), StorageTier::Disk, 3..6);
            store(&ours, rank(9, 0), StorageTier::Device, 0..8);
            store(&ours, rank(9, 0), StorageTier::External, 0..2);
            // They know no 9, know 8 in another order, and have one that is not known here.
            theirs.add_worker(3, 5, 0..1, None).unwrap();
            let eight = theirs.add_worker(8, 5, 0..1, None).unwrap()[0].slot;
            let seven = theirs.add_worker(7, 5, 0..2, None).unwrap();
            let query: Vec<_> = (0..5).map(|block| LocalBlockHash(block * 17)).collect();
            let mut found = MatchBuffer::default();
            ours.find_matches(&query, &mut found);
            let mut answer = RankMatches::default();
            ours.name_ranks(&found, &mut answer);
            assert_eq!(answer.len(), 4);
            let mut heard = MatchBuffer::default();
            heard.push(Match { slot: seven[0].slot, device_blocks: 99 });
            theirs.find_ranks(&answer, &mut heard).unwrap();
            assert_eq!(heard.matches(), [Match { slot: seven[1].slot, device_blocks: 4 }], "{kind:?}");
            assert_eq!((heard.held_blocks(seven[1].slot), heard.held_blocks(seven[0].slot)), (4, 0));
            assert_eq!((found.shared_blocks(), heard.shared_blocks()), (2, 2));
            let lower = TierMatch { slot: eight, device_blocks: 0, host_blocks: 3, any_blocks: 5 };
            assert_eq!(heard.lower_tiers(), [lower]);
        }
    }

    #[test]
    fn what_another_incarnation_had_does_not_count() {
        let (ours, theirs) = (index(IndexerKind::Run), index(IndexerKind::Run));
        ours.add_worker(7, 5, 0..1, None).unwrap();
        store(&ours, rank(7, 0), StorageTier::Device, 0..4);
        let (mut found, mut answer) = (MatchBuffer::default(), RankMatches::default());
        ours.find_matches(&[LocalBlockHash(0)], &mut found);
        ours.name_ranks(&found, &mut answer);
        for (epoch, matches) in [(4, 0), (5, 1), (6, 0)] {
            theirs.add_worker(7, epoch, 0..1, None).unwrap();
            theirs.find_ranks(&answer, &mut found).unwrap();
            assert_eq!(found.matches().len(), matches, "{epoch}");
        }
    }
}
