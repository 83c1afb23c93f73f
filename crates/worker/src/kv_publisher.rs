//! Numbers a worker's KV events and publishes them.

use std::collections::HashMap;

use dynamo_engine_api::{
    ActiveLoad, DpRank, EngineObserver, KvCacheEvent, KvCacheEventData, RouterEvent, StorageTier,
};
use dynamo_runtime::events::EventPublisher;
use parking_lot::Mutex;

use crate::load::LoadGauges;

/// Events in one message at most: a router decodes a message in one go, between two requests.
const MAX_EVENTS_PER_MESSAGE: usize = 128;

/// The topic that routers subscribe to.
pub const KV_EVENTS_TOPIC: &str = "kv-events";

/// Tells routers what the engine caches, and `/metrics` how busy it is.
pub struct KvPublisher {
    worker_id: u64,
    publisher: EventPublisher,
    last_ids: Mutex<HashMap<DpRank, u64>>,
    load: LoadGauges,
}

impl KvPublisher {
    /// Publishes for `worker_id`.
    pub fn new(worker_id: u64, publisher: EventPublisher, load: LoadGauges) -> Self {
        Self { worker_id, publisher, last_ids: Mutex::new(HashMap::new()), load }
    }
}

impl EngineObserver for KvPublisher {
    fn kv_events(&self, dp_rank: DpRank, events: Vec<KvCacheEventData>) {
        let mut last_ids = self.last_ids.lock();
        let last_id = last_ids.entry(dp_rank).or_insert(0);
        let mut events = events.into_iter().peekable();
        while events.peek().is_some() {
            let message: Vec<RouterEvent> = events
                .by_ref()
                .take(MAX_EVENTS_PER_MESSAGE)
                .map(|data| {
                    *last_id += 1;
                    RouterEvent {
                        worker_id: self.worker_id,
                        event: KvCacheEvent { event_id: *last_id, data, dp_rank },
                        storage_tier: StorageTier::Device,
                    }
                })
                .collect();
            // Published under the lock: two messages of one rank must not overtake each other.
            if let Err(error) = self.publisher.publish(&message) {
                tracing::warn!(%error, worker_id = self.worker_id, "KV events were not published");
            }
        }
    }

    fn load(&self, load: ActiveLoad) {
        self.load.set(&load);
    }
}
