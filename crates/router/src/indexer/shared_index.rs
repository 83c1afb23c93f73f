//! The index of one model and routing group, as the service uses it. What it is made of is decided here and nowhere else.

use std::ops::Range;

use dynamo_engine_api::{DpRank, KvCacheEventData, StorageTier};
use dynamo_kv_router::{
    AddWorkerError, EventCounters, IndexCounts, IndexError, KvIndex, MatchBuffer, WorkerId, WorkerRank,
};
use dynamo_tokens::LocalBlockHash;
use parking_lot::RwLock;

/// Engines do not say in which of their lives they are, so each registration is the only one.
const EPOCH: u64 = 0;

/// How much of a prompt a rank holds: leading blocks in device memory, in device or host memory, and on any tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldBlocks {
    /// Who.
    pub rank: WorkerRank,
    /// On the device.
    pub device: u32,
    /// On the device or in host memory.
    pub host: u32,
    /// Anywhere.
    pub any: u32,
}

/// An index that many may read and write at once.
#[derive(Default)]
pub struct SharedKvIndex {
    index: RwLock<KvIndex>,
}

impl SharedKvIndex {
    /// An empty index.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes on a worker's ranks; those that it had before keep what they hold.
    pub fn set_worker(&self, worker_id: WorkerId, ranks: Range<DpRank>) -> Result<(), AddWorkerError> {
        self.index.write().add_worker(worker_id, EPOCH, ranks, None).map(drop)
    }

    /// Forgets a worker and all that it holds.
    pub fn remove_worker(&self, worker_id: WorkerId) {
        self.index.write().remove_worker(worker_id);
    }

    /// Forgets what one rank holds.
    pub fn clear_rank(&self, rank: WorkerRank) {
        self.index.write().clear_rank(rank);
    }

    /// Applies events of a rank, in order; returns how many did not apply. Every outcome is counted.
    pub fn apply(&self, rank: WorkerRank, events: &[(StorageTier, KvCacheEventData)]) -> usize {
        let mut index = self.index.write();
        let of_device = events.iter().filter(|(tier, _)| *tier == StorageTier::Device);
        of_device.filter(|(_, event)| index.apply(rank, EPOCH, event).is_err()).count()
    }

    /// Applies one event of a device, as a peer's dump has it.
    pub fn apply_one(&self, rank: WorkerRank, event: &KvCacheEventData) -> Result<(), IndexError> {
        self.index.write().apply(rank, EPOCH, event)
    }

    /// Who holds how much of a prompt, in no order. `buffer` may be used again and again.
    pub fn find_matches(&self, local: &[LocalBlockHash], buffer: &mut MatchBuffer) -> Vec<HeldBlocks> {
        buffer.clear();
        let index = self.index.read();
        index.find_matches(local, buffer);
        let held = buffer.matches().iter().filter_map(|found| {
            let blocks = found.device_blocks;
            Some(HeldBlocks { rank: index.owner(found.slot)?, device: blocks, host: blocks, any: blocks })
        });
        held.collect()
    }

    /// What a rank holds, as events that give the same when applied in order to an empty one.
    pub fn dump_rank(&self, rank: WorkerRank) -> Vec<KvCacheEventData> {
        self.index.read().dump_rank(rank)
    }

    /// How large it is.
    pub fn counts(&self) -> IndexCounts {
        self.index.read().counts()
    }

    /// Events by kind and status.
    pub fn counters(&self) -> EventCounters {
        *self.index.read().counters()
    }
}
