//! Routers of the same workers tell each other what they send there, over the event plane.

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use dynamo_kv_router::{
    ActiveSequenceChange, ActiveSequenceEvent, KvScheduler, REPLICA_BATCH_DELAY, ReplicaBookings,
    ReplicaOutbox, ReservationId, WorkerRank,
};
use dynamo_runtime::{
    TaskScope,
    events::{EventItem, EventPublisher, EventSubscriber, decode_payload},
};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::Router;

/// Pairs of publisher and router that are remembered, to know whose requests end with a publisher: a process is one of
/// each, and a deployment has some dozens.
const MAX_KNOWN_ROUTERS: usize = 4096;

/// What is said and heard.
pub(super) struct Replicas {
    router_id: u64,
    outbox: Mutex<ReplicaOutbox>,
    wake: Notify,
    bookings: Mutex<ReplicaBookings>,
}

impl Replicas {
    pub(super) fn new(router_id: u64, now: Instant) -> Self {
        Self {
            router_id,
            outbox: Mutex::default(),
            wake: Notify::new(),
            bookings: Mutex::new(ReplicaBookings::new(router_id, now)),
        }
    }

    /// Tells the others; `false` if there was no room.
    pub(super) fn tell(
        &self,
        id: ReservationId,
        worker: WorkerRank,
        data: ActiveSequenceChange,
        lora_name: Option<String>,
    ) -> bool {
        let request_id = id.number().to_string();
        let event = ActiveSequenceEvent { request_id, worker, data, router_id: self.router_id, lora_name };
        let told = self.outbox.lock().push(event);
        self.wake.notify_one();
        told
    }

    pub(super) fn sweep(&self, scheduler: &KvScheduler, now: Instant) {
        self.bookings.lock().sweep(scheduler, now);
    }
}

impl Router {
    /// Publishes what this router says, and counts what others say, until the scope is cancelled.
    pub(crate) async fn sync_replicas(
        self: Arc<Self>,
        publisher: EventPublisher,
        mut subscriber: EventSubscriber,
        scope: TaskScope,
    ) {
        let Some(replicas) = &self.replicas else { return };
        // By publisher: the routers whose events came from it.
        let mut known = BTreeSet::new();
        loop {
            tokio::select! {
                () = scope.cancelled() => return,
                () = replicas.wake.notified() => {
                    // The first one waits for others, so that they share a message.
                    tokio::time::sleep(REPLICA_BATCH_DELAY).await;
                    publish(replicas, &publisher);
                }
                item = subscriber.next() => match item {
                    Some(EventItem::Event { envelope, payload }) => {
                        self.on_replica_events(envelope.publisher.worker_id.get(), &payload, &mut known);
                    }
                    Some(EventItem::Gap { from, to, .. }) => {
                        // What began unheard is not counted, and what ended unheard expires.
                        tracing::info!(from, to, "messages of another router were lost");
                    }
                    Some(EventItem::PublisherGone(publisher)) => {
                        self.on_router_gone(publisher.worker_id.get(), &mut known);
                    }
                    None => return,
                },
            }
        }
    }

    fn on_replica_events(self: &Arc<Self>, publisher: u64, payload: &[u8], known: &mut BTreeSet<(u64, u64)>) {
        let Some(replicas) = &self.replicas else { return };
        let events: Vec<ActiveSequenceEvent> = match decode_payload(payload) {
            Ok(events) => events,
            Err(error) => {
                tracing::warn!(%error, "events of another router that do not decode are dropped");
                return;
            }
        };
        let now = Instant::now();
        let mut scheduler = self.scheduler.lock();
        let mut bookings = replicas.bookings.lock();
        for event in &events {
            let outcome = bookings.apply(event, &mut scheduler, now);
            self.meters.replica_event(outcome);
            if event.router_id != replicas.router_id && known.len() < MAX_KNOWN_ROUTERS {
                known.insert((publisher, event.router_id));
            }
        }
        drop((scheduler, bookings));
        for event in events.iter().filter(|event| event.router_id != replicas.router_id) {
            if let ActiveSequenceChange::AddRequest { token_sequence: Some(sequence), .. } = &event.data {
                self.remember_sent(event.worker, sequence, now);
            }
        }
        self.call_next();
    }

    fn on_router_gone(self: &Arc<Self>, publisher: u64, known: &mut BTreeSet<(u64, u64)>) {
        let Some(replicas) = &self.replicas else { return };
        let now = Instant::now();
        let mut scheduler = self.scheduler.lock();
        let mut bookings = replicas.bookings.lock();
        let mut freed = 0;
        known.retain(|&(of, router_id)| {
            if of == publisher {
                freed += bookings.forget_router(router_id, &mut scheduler, now);
            }
            of != publisher
        });
        drop((scheduler, bookings));
        if freed > 0 {
            tracing::info!(publisher, freed, "a router is gone, and its requests no longer count");
        }
        self.call_next();
    }
}

fn publish(replicas: &Replicas, publisher: &EventPublisher) {
    let mut batch = Vec::new();
    loop {
        replicas.outbox.lock().take_batch(&mut batch);
        if batch.is_empty() {
            return;
        }
        if let Err(error) = publisher.publish(&batch[..]) {
            tracing::warn!(%error, "other routers are not told of requests");
        }
    }
}

#[cfg(test)]
mod tests;
