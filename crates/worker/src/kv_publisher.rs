//! Numbers a worker's KV events, publishes them, and answers routers that missed some.

use std::{collections::BTreeMap, sync::Arc};

use dynamo_engine_api::{ActiveLoad, DpRank, EngineObserver, KvCacheEventData, RouterEvent, StorageTier};
use dynamo_kv_router::{KvQuery, KvQueryAnswer, LocalIndexer};
use dynamo_runtime::{
    TaskScope,
    events::EventPublisher,
    request_plane::{Handler, IncomingRequest, Responder},
};
use parking_lot::Mutex;

use crate::{
    handler::{INVALID_REQUEST, failure},
    load::LoadGauges,
    model_files::send_pieces,
};

/// Events in one message at most: a router decodes a message in one go, between two requests.
const MAX_EVENTS_PER_MESSAGE: usize = 128;

/// Tells routers what the engine caches, and `/metrics` how busy it is.
pub struct KvPublisher {
    worker_id: u64,
    publisher: EventPublisher,
    ranks: Mutex<BTreeMap<DpRank, LocalIndexer>>,
    load: LoadGauges,
}

impl KvPublisher {
    /// Publishes for `worker_id`, which has these ranks.
    pub fn new(
        worker_id: u64,
        ranks: impl IntoIterator<Item = DpRank>,
        publisher: EventPublisher,
        load: LoadGauges,
    ) -> Self {
        let ranks = ranks.into_iter().map(|rank| (rank, LocalIndexer::new(rank))).collect();
        Self { worker_id, publisher, ranks: Mutex::new(ranks), load }
    }
}

impl KvPublisher {
    fn answer(&self, query: &KvQuery) -> Result<Vec<u8>, String> {
        let answer: KvQueryAnswer = match self.ranks.lock().get(&query.dp_rank) {
            Some(local) => local.answer(query),
            None => return Err(format!("this worker has no rank {}", query.dp_rank)),
        };
        rmp_serde::to_vec_named(&answer).map_err(|error| error.to_string())
    }
}

impl EngineObserver for KvPublisher {
    fn kv_events(&self, dp_rank: DpRank, events: Vec<KvCacheEventData>) {
        // Published under the lock: two messages of one rank must not overtake each other.
        let mut ranks = self.ranks.lock();
        let Some(local) = ranks.get_mut(&dp_rank) else {
            tracing::warn!(dp_rank, "the engine reported events of a rank that it does not have");
            return;
        };
        let mut events = events.into_iter().peekable();
        while events.peek().is_some() {
            let message: Vec<RouterEvent> = events
                .by_ref()
                .take(MAX_EVENTS_PER_MESSAGE)
                .map(|data| RouterEvent {
                    worker_id: self.worker_id,
                    event: local.record(data),
                    storage_tier: StorageTier::Device,
                })
                .collect();
            if let Err(error) = self.publisher.publish(&message) {
                tracing::warn!(%error, worker_id = self.worker_id, "KV events were not published");
            }
        }
    }

    fn load(&self, load: ActiveLoad) {
        self.load.set(&load);
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
