//! All that a rank holds, handed out in chunks.

use std::collections::VecDeque;

use dynamo_engine_api::{KvCacheEvent, KvCacheEventData, RouterEvent, StorageTier};

use crate::WorkerRank;

/// Why there is no dump.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DumpError {
    /// No such worker was added, or it was removed.
    #[error("the rank is not known")]
    UnknownWorker,
    /// Its lane has more to do than the time allowed.
    #[error("the lane did not come to the dump in time: it is behind, or stuck")]
    Timeout,
    /// Its lane is broken or has stopped.
    #[error("the rank's lane is broken or has stopped")]
    Stopped,
}

/// What a rank held at one moment, as events that give the same when they are applied in order to a rank that is
/// empty. It is a copy: take it in chunks, at leisure, while the index goes on.
#[derive(Clone, Debug)]
pub struct RankDump {
    worker: WorkerRank,
    events: VecDeque<(StorageTier, KvCacheEventData)>,
    next_id: u64,
}

impl RankDump {
    pub(super) fn new(worker: WorkerRank, events: Vec<(StorageTier, KvCacheEventData)>) -> Self {
        Self { worker, events: events.into(), next_id: 0 }
    }

    /// The rank.
    pub fn worker(&self) -> WorkerRank {
        self.worker
    }

    /// Whether all was taken.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// The next events, of some `max_blocks` blocks: at least one event, which has 1024 blocks at most, until all were
    /// taken. Their ids count from 0.
    pub fn next_chunk(&mut self, max_blocks: usize) -> Vec<RouterEvent> {
        let mut chunk = Vec::new();
        let mut blocks = 0;
        while let Some((_, event)) = self.events.front() {
            blocks += blocks_of(event);
            if blocks > max_blocks && !chunk.is_empty() {
                break;
            }
            let Some((storage_tier, data)) = self.events.pop_front() else { break };
            let event = KvCacheEvent { event_id: self.next_id, data, dp_rank: self.worker.dp_rank };
            self.next_id += 1;
            chunk.push(RouterEvent { worker_id: self.worker.worker_id, event, storage_tier });
        }
        chunk
    }
}

/// Blocks that an event names.
pub(super) fn blocks_of(event: &KvCacheEventData) -> usize {
    match event {
        KvCacheEventData::Stored { blocks, .. } => blocks.len(),
        KvCacheEventData::Removed { block_hashes } => block_hashes.len(),
        KvCacheEventData::Cleared => 0,
    }
}
