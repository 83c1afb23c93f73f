//! From the listeners into an index: the deliveries of one rank on one lane, in order.

use std::{
    collections::VecDeque,
    ops::Range,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use dynamo_kv_router::WorkerRank;
use dynamo_runtime::TaskScope;
use tokio::sync::{mpsc, watch};

use super::{
    progress::Follows,
    refill::Refill,
    registry::{ModelIndex, ModelKey},
    shared_index::{Brought, TierEvent},
    source::{Delivered, Delivery},
};

/// Messages of engines that wait on one lane. A message is a step of an engine; when so many wait, the sockets keep more.
const LANE_CAPACITY: usize = 1024;

/// What became of deliveries since the start, over all lanes.
#[derive(Clone, Default)]
pub(super) struct LaneCounters(Arc<Counters>);

#[derive(Default)]
struct Counters {
    batches: AtomicU64,
    lost: AtomicU64,
    restarts: AtomicU64,
    refills: AtomicU64,
}

impl LaneCounters {
    /// Messages whose events were brought to the index.
    pub(super) fn batches(&self) -> u64 {
        self.0.batches.load(Ordering::Relaxed)
    }

    /// Messages that were lost for good.
    pub(super) fn lost(&self) -> u64 {
        self.0.lost.load(Ordering::Relaxed)
    }

    /// Engines that began anew.
    pub(super) fn restarts(&self) -> u64 {
        self.0.restarts.load(Ordering::Relaxed)
    }

    /// Ranks of which a peer gave what was missing.
    pub(super) fn refills(&self) -> u64 {
        self.0.refills.load(Ordering::Relaxed)
    }
}

/// What the lanes of an index work on.
#[derive(Clone)]
pub(super) struct LaneShared {
    pub(super) model: Arc<ModelIndex>,
    pub(super) key: ModelKey,
    pub(super) refill: Arc<OnceLock<Refill>>,
}

/// The lanes of one index; they end when this is dropped.
pub(super) struct Lanes {
    lanes: Vec<mpsc::Sender<Delivered>>,
    scope: TaskScope,
}

impl Lanes {
    /// Starts them; they apply nothing until `open` is true.
    pub(super) fn start(
        shared: LaneShared,
        count: usize,
        open: watch::Receiver<bool>,
        counters: &LaneCounters,
        scope: TaskScope,
    ) -> Self {
        let lanes = (0..count).map(|_| {
            let (sender, receiver) = mpsc::channel(LANE_CAPACITY);
            let lane = Lane { shared: shared.clone(), counters: counters.clone() };
            scope.spawn("lane", lane.run(receiver, open.clone(), scope.clone()));
            sender
        });
        Self { lanes: lanes.collect(), scope: scope.clone() }
    }

    /// The lane of a rank, always the same.
    pub(super) fn of(&self, rank: WorkerRank) -> mpsc::Sender<Delivered> {
        // Ids are often consecutive, or random.
        let place = rank.worker_id.wrapping_add(u64::from(rank.dp_rank)) % self.lanes.len() as u64;
        self.lanes[place as usize].clone()
    }

    /// Messages that wait, over all lanes.
    pub(super) fn waiting(&self) -> usize {
        self.lanes.iter().map(|lane| lane.max_capacity() - lane.capacity()).sum()
    }
}

impl Drop for Lanes {
    fn drop(&mut self) {
        self.scope.cancel();
    }
}

struct Lane {
    shared: LaneShared,
    counters: LaneCounters,
}

impl Lane {
    async fn run(
        self,
        mut deliveries: mpsc::Receiver<Delivered>,
        mut open: watch::Receiver<bool>,
        scope: TaskScope,
    ) {
        let opened = async {
            // A sender that is gone went with the registry, and the scope with it.
            let _ = open.wait_for(|open| *open).await;
        };
        tokio::select! {
            () = scope.cancelled() => return,
            () = opened => {}
        }
        loop {
            let delivered = tokio::select! {
                () = scope.cancelled() => return,
                delivered = deliveries.recv() => delivered,
            };
            let Some(delivered) = delivered else { return };
            tokio::select! {
                () = scope.cancelled() => return,
                () = self.take(delivered) => {}
            }
        }
    }

    async fn take(&self, Delivered { rank, generation, delivery, progress }: Delivered) {
        match delivery {
            Delivery::Batch { sequence, events } => {
                match progress.follow(sequence) {
                    Follows::Closely => {}
                    Follows::Anew => {
                        self.if_registered(rank, generation, || self.shared.model.index.clear_rank(rank));
                    }
                    Follows::Hole { from } => self.fill(rank, generation, from..sequence).await,
                }
                self.bring(rank, generation, events.into()).await;
                progress.brought(sequence);
                self.counters.0.batches.fetch_add(1, Ordering::Relaxed);
            }
            Delivery::Restarted => {
                tracing::info!(worker_id = rank.worker_id, dp_rank = rank.dp_rank, "engine began anew");
                self.counters.0.restarts.fetch_add(1, Ordering::Relaxed);
                progress.restarted();
                self.if_registered(rank, generation, || self.shared.model.index.clear_rank(rank));
            }
            Delivery::Lost(messages) => self.lost(rank, messages),
        }
    }

    fn lost(&self, rank: WorkerRank, messages: u64) {
        tracing::warn!(
            worker_id = rank.worker_id,
            dp_rank = rank.dp_rank,
            messages,
            "KV events were lost for good: the index may miss blocks of this engine, or hold gone ones"
        );
        self.counters.0.lost.fetch_add(messages, Ordering::Relaxed);
    }

    /// Between what a peer gave and the first message that was heard, some are missing: the peer has them by now, or
    /// will in a moment. What comes meanwhile waits in the lane.
    async fn fill(&self, rank: WorkerRank, generation: u64, missing: Range<u64>) {
        let LaneShared { model, key, refill } = &self.shared;
        let messages = missing.end - missing.start;
        let events = match refill.get() {
            Some(refill) => refill.rank(key, rank, missing.end - 1).await,
            None => None,
        };
        let Some(events) = events else { return self.lost(rank, messages) };
        tracing::info!(
            worker_id = rank.worker_id,
            dp_rank = rank.dp_rank,
            messages,
            "a peer gave what was missing"
        );
        self.counters.0.refills.fetch_add(1, Ordering::Relaxed);
        self.if_registered(rank, generation, || model.index.clear_rank(rank));
        self.bring(rank, generation, events).await;
    }

    /// At the index's pace: it waits while much waits there.
    async fn bring(&self, rank: WorkerRank, generation: u64, mut events: VecDeque<TierEvent>) {
        loop {
            match self.if_registered(rank, generation, || self.shared.model.index.bring(rank, &mut events)) {
                None | Some(Brought::All) => return,
                Some(Brought::Some) => tokio::task::consume_budget().await,
                Some(Brought::Full) => self.shared.model.index.caught_up().await,
            }
        }
    }

    /// Under the lock of who registers, so that nothing of an earlier registration comes in after its end.
    fn if_registered<R>(&self, rank: WorkerRank, generation: u64, apply: impl FnOnce() -> R) -> Option<R> {
        let engines = self.shared.model.engines.read();
        let current = engines.get(&rank.worker_id).and_then(|ranks| ranks.get(&rank.dp_rank));
        current.is_some_and(|current| current.generation == generation).then(apply)
    }
}
