//! Engines that publish over ZeroMQ, in the format of vLLM.

use std::{collections::HashMap, sync::Arc};

use dynamo_engine_api::{KvCacheEventData, StorageTier};
use dynamo_kv_router::{EngineEvent, EngineEventDecoder, FilterReason, ReplayFailure, WorkerRank};
use dynamo_runtime::{
    TaskScope,
    metrics::{LABEL_WORKER, Metrics, MetricsError},
};
use dynamo_tokens::BlockSize;
use dynamo_worker::{EngineBatches, EngineEndpoint, EngineIntakeMetrics, EngineListener, SourceMetrics};
use parking_lot::Mutex;

use super::source::{Deliveries, Delivery, EventSource, ListenTo, ListenerStatus, StatusCell};

/// Listens to engines with a thread for each rank.
pub struct ZmqSource {
    families: EngineIntakeMetrics,
    series: Arc<Series>,
}

/// Whose series are shown: a worker's go with its last listener.
struct Series {
    metrics: Metrics,
    listeners: Mutex<HashMap<u64, usize>>,
}

impl Series {
    fn enter(&self, worker_id: u64) {
        *self.listeners.lock().entry(worker_id).or_default() += 1;
    }

    fn leave(&self, worker_id: u64) {
        let mut listeners = self.listeners.lock();
        let Some(count) = listeners.get_mut(&worker_id) else { return };
        *count -= 1;
        if *count == 0 {
            listeners.remove(&worker_id);
            self.metrics.remove_series(LABEL_WORKER, &format!("{worker_id:x}"));
        }
    }
}

impl ZmqSource {
    /// Its counters go into `metrics`.
    pub fn new(metrics: &Metrics) -> Result<Self, MetricsError> {
        let series = Arc::new(Series { metrics: metrics.clone(), listeners: Mutex::default() });
        Ok(Self { families: EngineIntakeMetrics::new(metrics)?, series })
    }
}

impl EventSource for ZmqSource {
    fn listen(&self, to: ListenTo, deliveries: Deliveries, status: StatusCell, scope: TaskScope) {
        let ListenTo { rank, endpoint, replay_endpoint, block_size } = to;
        let metrics = self.families.of_worker(rank.worker_id);
        let batches = Batches {
            rank,
            block_size,
            decoder: EngineEventDecoder::new(block_size),
            deliveries,
            metrics: metrics.clone(),
            events: Vec::new(),
            heard: false,
            told_of_payload: false,
            told_of_rank: false,
            told_of_size: false,
        };
        let at = EngineEndpoint { events: endpoint, topic: String::new(), replay: replay_endpoint };
        let listener = match EngineListener::start(at, batches, metrics) {
            Ok(listener) => listener,
            Err(error) => {
                tracing::warn!(worker_id = rank.worker_id, dp_rank = rank.dp_rank, %error, "no KV events come");
                return status.set(ListenerStatus::Failed);
            }
        };
        status.set(ListenerStatus::Active);
        self.series.enter(rank.worker_id);
        let (series, held) = (self.series.clone(), scope.clone());
        scope.spawn("engine-listener", async move {
            held.cancelled().await;
            drop(listener);
            series.leave(rank.worker_id);
        });
    }
}

/// Turns an engine's batches into deliveries.
struct Batches {
    rank: WorkerRank,
    block_size: BlockSize,
    decoder: EngineEventDecoder,
    deliveries: Deliveries,
    metrics: SourceMetrics,
    events: Vec<EngineEvent>,
    /// Whether a batch has come.
    heard: bool,
    // Each fault is told once, and counted each time.
    told_of_payload: bool,
    told_of_rank: bool,
    told_of_size: bool,
}

impl Batches {
    fn deliver(&self, delivery: Delivery) {
        // Who is not registered any more is about to be told to end.
        let _ = self.deliveries.deliver_blocking(delivery);
    }

    fn tell_of_size(&mut self, engine_block_size: Option<u64>) {
        if !std::mem::replace(&mut self.told_of_size, true) {
            tracing::warn!(
                worker_id = self.rank.worker_id,
                dp_rank = self.rank.dp_rank,
                engine_block_size,
                block_size = self.block_size.get(),
                "the engine's KV blocks have another size than it was registered with: they are left out; register it \
                 with its own block_size"
            );
        }
    }

    /// Who registers an engine says which rank it is; a batch of another one is that of another listener.
    fn is_own(&mut self, rank: Option<u32>) -> bool {
        let own = rank.is_none_or(|rank| rank == self.rank.dp_rank);
        if !own {
            self.metrics.unknown_rank.inc();
            if !std::mem::replace(&mut self.told_of_rank, true) {
                tracing::warn!(
                    worker_id = self.rank.worker_id,
                    dp_rank = self.rank.dp_rank,
                    engine_dp_rank = rank,
                    "the engine publishes events of another rank than it was registered with: they are left out; \
                     register each rank with its dp_rank"
                );
            }
        }
        own
    }
}

impl EngineBatches for Batches {
    fn batch(&mut self, sequence: u64, payload: &[u8]) {
        self.heard = true;
        let before = *self.decoder.counters();
        let decoded = self.decoder.decode(payload, &mut self.events);
        let after = *self.decoder.counters();
        self.metrics.add(&before, &after);
        if after.filtered(FilterReason::BlockSize) > before.filtered(FilterReason::BlockSize) {
            self.tell_of_size(after.other_block_size);
        }
        let own = match decoded {
            Ok(info) => self.is_own(info.dp_rank),
            Err(error) => {
                self.metrics.bad_payload.inc();
                if !std::mem::replace(&mut self.told_of_payload, true) {
                    tracing::warn!(worker_id = self.rank.worker_id, %error, "a batch of KV events cannot be read");
                }
                false
            }
        };
        let events: Vec<(StorageTier, KvCacheEventData)> =
            self.events.drain(..).map(|event| (event.tier, event.data)).collect();
        if own {
            self.deliver(Delivery::Batch { sequence, events });
        }
    }

    fn restarted(&mut self) {
        self.decoder.restarted();
        self.deliver(Delivery::Restarted);
    }

    fn lost(&mut self, batches: u64, why: Option<ReplayFailure>) {
        let why = why.map_or_else(|| "it has no replay endpoint".to_owned(), |failure| failure.to_string());
        let WorkerRank { worker_id, dp_rank } = self.rank;
        if !self.heard {
            // Nothing got lost on the way: the engine was there before.
            tracing::info!(
                worker_id,
                dp_rank,
                batches,
                why,
                "what the engine published before is not to be had from it: a peer may know what it holds"
            );
            return;
        }
        tracing::info!(worker_id, dp_rank, why, "lost KV events are not to be had again");
        self.deliver(Delivery::Lost(batches));
    }

    fn silent(&mut self) {
        tracing::warn!(
            worker_id = self.rank.worker_id,
            dp_rank = self.rank.dp_rank,
            "the engine has sent no KV events in the first minute: if it serves requests, check that it publishes them"
        );
    }
}
