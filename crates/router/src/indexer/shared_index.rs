//! The index of one model and routing group, as the service uses it. What it is made of is decided here and nowhere else.

use std::{
    collections::VecDeque,
    ops::Range,
    time::{Duration, Instant},
};

use dynamo_engine_api::{DpRank, KvCacheEventData, StorageTier};
use dynamo_kv_router::{
    AddWorkerError, DumpError, EventCounters, IndexCounts, IndexParts, IndexerKind, LaneConfig, LaneGauges,
    LaneIndex, LaneReport, MatchBuffer, RankDump, Slot, StartLanesError, TryApplyError, WorkerId, WorkerRank,
};
use dynamo_runtime::TaskScope;
use dynamo_tokens::LocalBlockHash;
use tokio::sync::oneshot;

use super::index_choice::IndexChoice;

/// Engines do not say in which of their lives they are, so each registration is the only one.
const EPOCH: u64 = 0;
/// Events that [`SharedKvIndex::bring`] takes in one call, some 100 µs: whoever calls it may hold a lock.
const EVENTS_AT_ONCE: usize = 256;
/// For a rank's lane to come to its dump: what may wait before it takes a few tenths of a second.
const DUMP_WAIT: Duration = Duration::from_secs(30);

/// An event, and the tier that it happened on.
pub type TierEvent = (StorageTier, KvCacheEventData);

/// How much of a prompt a rank holds: leading blocks in device memory, in device or host memory, and on any tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldBlocks {
    /// Who.
    pub rank: WorkerRank,
    /// On the device.
    pub device: u32,
    /// On the device or in host memory; at least `device`.
    pub host: u32,
    /// Anywhere; at least `host`.
    pub any: u32,
}

/// What became of events that were brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Brought {
    /// All are queued, or refused and counted.
    All,
    /// As many as one call takes: call again.
    Some,
    /// The lane has as much to do as may wait: call again after [`SharedKvIndex::caught_up`].
    Full,
}

/// An index that many may read and write at once, and none waits for another. Events are queued for threads of the
/// index's own; a query sees what was applied.
pub struct SharedKvIndex {
    /// `None` only while it is dropped.
    index: Option<LaneIndex>,
    /// Where it ends.
    scope: TaskScope,
}

impl SharedKvIndex {
    /// Starts an empty index. Its end, which waits for its threads, is a task of `scope`.
    pub fn start(choice: IndexChoice, scope: TaskScope) -> Result<Self, StartLanesError> {
        let lanes = choice.lanes();
        let parts = match choice {
            IndexChoice::Radix { frequency_window: Some(window) } => {
                IndexParts::counting_uses(window, Instant::now())
            }
            IndexChoice::Radix { frequency_window: None } => IndexerKind::Radix.build(lanes),
            IndexChoice::Run { .. } => IndexerKind::Run.build(lanes),
        };
        let lanes = LaneConfig { lanes, ..LaneConfig::REFERENCE };
        let index = LaneIndex::start(parts, &lanes, |report| match report {
            // Counted; engines cannot be asked for a dump.
            LaneReport::Refused { .. } => {}
            LaneReport::Broken(broken) => {
                tracing::error!(%broken, "answers are not to be trusted: restart the indexer");
            }
        })?;
        Ok(Self { index: Some(index), scope })
    }

    fn lanes(&self) -> &LaneIndex {
        self.index.as_ref().expect("it is there until it is dropped")
    }

    /// Takes on a worker's ranks; those that it had before keep what they hold.
    pub fn set_worker(&self, worker_id: WorkerId, ranks: Range<DpRank>) -> Result<(), AddWorkerError> {
        self.lanes().add_worker(worker_id, EPOCH, ranks, None).map(drop)
    }

    /// Forgets a worker and all that it holds.
    pub fn remove_worker(&self, worker_id: WorkerId) {
        self.lanes().remove_worker(worker_id);
    }

    /// Forgets what one rank holds.
    pub fn clear_rank(&self, rank: WorkerRank) {
        self.lanes().clear_rank(rank);
    }

    /// Queues events of a rank, first to last, and takes them out of `events`; it never waits. Every outcome is
    /// counted, of those that do not apply too.
    pub fn bring(&self, rank: WorkerRank, events: &mut VecDeque<TierEvent>) -> Brought {
        let index = self.lanes();
        for _ in 0..EVENTS_AT_ONCE {
            let Some((tier, data)) = events.pop_front() else { break };
            match index.try_apply(rank, EPOCH, tier, data) {
                Err(TryApplyError::Full(data)) => {
                    events.push_front((tier, data));
                    return Brought::Full;
                }
                Ok(()) | Err(TryApplyError::Refused(_) | TryApplyError::Stopped) => {}
            }
        }
        // Nobody decodes into them.
        index.take_spent(drop);
        if events.is_empty() { Brought::All } else { Brought::Some }
    }

    /// Waits until all that was brought before is applied.
    pub async fn caught_up(&self) {
        let (done, told) = oneshot::channel();
        self.lanes().flush_with(move |_| {
            // Nobody waits any more.
            let _ = done.send(());
        });
        // A lane that has stopped applies nothing, and tells so itself.
        let _ = told.await;
    }

    /// Who holds how much of a prompt, in no order. `buffer` may be used again and again; if uses are counted, this is
    /// one of them, and [`MatchBuffer::frequencies`] tells those before it.
    pub fn find_matches(
        &self,
        local: &[LocalBlockHash],
        now: Instant,
        buffer: &mut MatchBuffer,
    ) -> Vec<HeldBlocks> {
        let index = self.lanes();
        index.find_matches_at(local, now, buffer);
        let held =
            |slot: Slot, device, host, any| Some(HeldBlocks { rank: index.owner(slot)?, device, host, any });
        let on_device = buffer.matches().iter().filter_map(|found| {
            let below = buffer.tiers_of(found);
            held(found.slot, found.device_blocks, below.host_blocks, below.any_blocks)
        });
        // Those that have the prompt's first block below only.
        let below = buffer.lower_tiers().iter().filter(|below| below.device_blocks == 0);
        let below = below.filter_map(|below| held(below.slot, 0, below.host_blocks, below.any_blocks));
        on_device.chain(below).collect()
    }

    /// What a rank holds on all tiers after what was brought before. It waits for the rank's lane.
    pub fn dump_rank(&self, rank: WorkerRank) -> Result<RankDump, DumpError> {
        self.lanes().dump(rank, DUMP_WAIT)
    }

    /// How large it is: blocks on devices, and the bytes of all tiers.
    pub fn counts(&self) -> IndexCounts {
        let index = self.lanes();
        let counts = index.counts();
        IndexCounts { bytes: counts.bytes + index.lower_counts().bytes, ..counts }
    }

    /// How its threads keep up.
    pub fn gauges(&self) -> LaneGauges {
        self.lanes().gauges()
    }

    /// Events by kind and status, as far as they were applied or refused.
    pub fn counters(&self) -> EventCounters {
        self.lanes().counters()
    }

    /// Whether a thread of it broke: its answers are not to be trusted.
    pub fn is_broken(&self) -> bool {
        self.lanes().broken().is_some()
    }
}

impl Drop for SharedKvIndex {
    /// Its threads are waited for where waiting is allowed.
    fn drop(&mut self) {
        let index = self.index.take();
        drop(self.scope.spawn_blocking("index-end", move || drop(index)));
    }
}

#[cfg(test)]
impl SharedKvIndex {
    /// Breaks a thread of it.
    pub(super) fn break_down(&self) {
        self.lanes().flush_with(|_| panic!("a test breaks the index"));
    }
}

#[cfg(test)]
mod tests;
