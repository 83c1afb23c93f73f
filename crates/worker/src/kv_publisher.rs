//! Numbers a worker's KV events, publishes them, and answers routers that missed some.

use std::{
    collections::BTreeMap,
    sync::{Arc, Weak},
};

use dynamo_engine_api::{ActiveLoad, DpRank, EngineObserver, KvCacheEventData, RouterEvent, StorageTier};
use dynamo_kv_router::{EngineEvent, EventPipeline, KvQuery, KvQueryAnswer};
use dynamo_runtime::{
    TaskScope,
    events::EventPublisher,
    request_plane::{Handler, IncomingRequest, Responder},
};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::{
    handler::{INVALID_REQUEST, failure},
    load::{LoadGauges, RankGauges},
    model_files::send_pieces,
};

#[cfg(test)]
mod routed_tests;
#[cfg(test)]
mod tests;

/// Events of a rank that wait for the task at most. Past it the engine numbers and publishes them itself: none may be lost,
/// and an engine that is faster than this process can tell of is to be slowed down.
const MAX_WAITING_EVENTS: usize = 4096;

/// Tells routers what the engine caches, and `/metrics` how busy it is. The engine only leaves its events here; a task
/// sends all that came since it looked last through the rank's [`EventPipeline`] and publishes the messages.
pub struct KvPublisher {
    worker_id: u64,
    publisher: EventPublisher,
    ranks: BTreeMap<DpRank, Rank>,
    wake: Arc<Notify>,
}

struct Rank {
    /// In the engine's order, not yet numbered.
    waiting: Mutex<Vec<EngineEvent>>,
    /// Held while events are taken, numbered and published, so that no two messages of one rank overtake each other.
    published: Mutex<Published>,
    gauges: RankGauges,
}

struct Published {
    pipeline: EventPipeline,
    // Scratch space, kept for its memory.
    taken: Vec<EngineEvent>,
    /// Events that the rank's own index could not make sense of were told of.
    warned: bool,
}

impl KvPublisher {
    /// Publishes for `worker_id`, which has these ranks, on a task in `scope` that ends with the publisher.
    pub fn start(
        worker_id: u64,
        ranks: impl IntoIterator<Item = DpRank>,
        publisher: EventPublisher,
        load: &LoadGauges,
        scope: &TaskScope,
    ) -> Arc<Self> {
        let of_rank = |rank| {
            let pipeline = EventPipeline::new(worker_id, rank);
            let published = Published { pipeline, taken: Vec::new(), warned: false };
            let gauges = load.of_rank(worker_id, rank);
            (rank, Rank { waiting: Mutex::default(), published: Mutex::new(published), gauges })
        };
        let ranks = ranks.into_iter().map(of_rank).collect();
        let wake = Arc::new(Notify::new());
        let this = Arc::new(Self { worker_id, publisher, ranks, wake: wake.clone() });
        scope.spawn("kv-publisher", publish_waiting(Arc::downgrade(&this), wake, scope.clone()));
        this
    }

    /// Whose events it publishes.
    pub fn worker_id(&self) -> u64 {
        self.worker_id
    }

    /// Numbers and publishes what waits.
    fn publish(&self, rank: &Rank, published: &mut Published) {
        let Published { pipeline, taken, warned } = published;
        std::mem::swap(&mut *rank.waiting.lock(), taken);
        let mut send = |message: &[RouterEvent]| {
            if let Err(error) = self.publisher.publish(message) {
                tracing::warn!(%error, worker_id = self.worker_id, "KV events were not published");
            }
        };
        let counts = |pipeline: &EventPipeline| {
            (pipeline.local().failed_events(), pipeline.lower_tiers(), pipeline.doubled_blocks())
        };
        let before = counts(pipeline);
        for event in taken.drain(..) {
            pipeline.push(event, &mut send);
        }
        pipeline.flush(&mut send);
        let after = counts(pipeline);
        rank.gauges.published(after.0 - before.0, after.1 - before.1, after.2 - before.2);
        if after.0 > before.0 && !std::mem::replace(warned, true) {
            tracing::warn!(
                worker_id = self.worker_id,
                "the engine's KV events do not fit together: a parent or a removed block was never stored; further \
                     ones are only counted"
            );
        }
    }

    /// Takes events of a rank, in the order in which they happened; false if the worker has no such rank.
    pub fn report(&self, dp_rank: DpRank, events: impl IntoIterator<Item = EngineEvent>) -> bool {
        let Some(rank) = self.ranks.get(&dp_rank) else { return false };
        let full = {
            let mut waiting = rank.waiting.lock();
            waiting.extend(events);
            waiting.len() > MAX_WAITING_EVENTS
        };
        if full {
            self.publish(rank, &mut rank.published.lock());
        } else {
            self.wake.notify_one();
        }
        true
    }

    /// Takes as long as a dump of the cache: not for a reactor.
    fn answer(&self, query: &KvQuery) -> Result<Vec<u8>, String> {
        let Some(rank) = self.ranks.get(&query.dp_rank) else {
            return Err(format!("this worker has no rank {}", query.dp_rank));
        };
        let answer: KvQueryAnswer = {
            let mut published = rank.published.lock();
            // What the engine has reported is there for whoever asks after it.
            self.publish(rank, &mut published);
            published.pipeline.answer(query)
        };
        // The task passes over a rank whose lock is held.
        self.wake.notify_one();
        rmp_serde::to_vec_named(&answer).map_err(|error| error.to_string())
    }
}

/// Ends with the publisher, or its scope.
async fn publish_waiting(publisher: Weak<KvPublisher>, wake: Arc<Notify>, scope: TaskScope) {
    loop {
        tokio::select! {
            () = wake.notified() => {}
            () = scope.cancelled() => return,
        }
        let Some(publisher) = publisher.upgrade() else { return };
        for rank in publisher.ranks.values() {
            // Who holds it publishes what waits, and wakes this task when done: it must not wait for a dump here.
            if let Some(mut published) = rank.published.try_lock() {
                publisher.publish(rank, &mut published);
            }
        }
    }
}

impl EngineObserver for KvPublisher {
    fn kv_events(&self, dp_rank: DpRank, events: Vec<KvCacheEventData>) {
        let on_device = |data| EngineEvent { tier: StorageTier::Device, data };
        if !self.report(dp_rank, events.into_iter().map(on_device)) {
            tracing::warn!(dp_rank, "the engine reported events of a rank that it does not have");
        }
    }

    fn load(&self, load: ActiveLoad) {
        if let Some(rank) = self.ranks.get(&load.dp_rank) {
            rank.gauges.set(&load);
        }
    }
}

impl Drop for KvPublisher {
    fn drop(&mut self) {
        self.wake.notify_one();
    }
}

/// Answers a router that missed events: [`KvQuery`] in, [`KvQueryAnswer`] out, both MessagePack. A dump of a large cache is
/// long, so it is written on a task of its own and sent in pieces.
pub struct KvQueryHandler {
    publisher: Arc<KvPublisher>,
    scope: TaskScope,
}

impl KvQueryHandler {
    /// Answers for what `publisher` published.
    pub fn new(publisher: Arc<KvPublisher>, scope: TaskScope) -> Self {
        Self { publisher, scope }
    }
}

impl Handler for KvQueryHandler {
    fn handle(&self, request: IncomingRequest, responder: Responder) {
        let query: KvQuery = match rmp_serde::from_slice(&request.payload) {
            Ok(query) => query,
            Err(error) => {
                return responder.fail(failure(INVALID_REQUEST, error.to_string()));
            }
        };
        let publisher = self.publisher.clone();
        self.scope.spawn("kv-query", async move {
            let answered = tokio::task::spawn_blocking(move || publisher.answer(&query)).await;
            match answered.unwrap_or_else(|error| Err(error.to_string())) {
                Ok(bytes) => send_pieces(bytes.into(), responder).await,
                Err(message) => responder.fail(failure(INVALID_REQUEST, message)),
            }
        });
    }
}
