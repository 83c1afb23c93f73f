use super::PublishError;
use super::envelope::{Arrival, Envelope};
use super::frames::MAX_PAYLOAD;
use crate::identity::{Epoch, Incarnation};
use crate::metrics::{IntCounter, IntGauge};
use bytes::Bytes;
use parking_lot::Mutex;
use serde::Serialize;
use std::sync::Arc;

/// Publishes on one scope and topic. Clones share the numbering; when the last is dropped, the channel leaves discovery.
#[derive(Clone)]
pub struct EventPublisher {
    pub(super) shared: Arc<Shared>,
}

pub(super) struct Shared {
    incarnation: Incarnation,
    topic: Arc<str>,
    next_sequence: Mutex<u64>,
    published: IntCounter,
    open: IntGauge,
    outlet: Box<dyn Outlet>,
}

/// The transport's part of a publisher. Dropping it closes the channel.
pub(super) trait Outlet: Send + Sync {
    /// Takes the event without waiting. Called in the order of the sequence numbers.
    fn send(&self, arrival: Arrival) -> Result<(), PublishError>;
}

impl EventPublisher {
    pub(super) fn new(
        incarnation: Incarnation,
        topic: Arc<str>,
        published: IntCounter,
        open: IntGauge,
        outlet: Box<dyn Outlet>,
    ) -> Self {
        open.inc();
        let next_sequence = Mutex::new(0);
        Self { shared: Arc::new(Shared { incarnation, topic, next_sequence, published, open, outlet }) }
    }

    /// Publishes an event as a MessagePack map with named fields. Never waits: if the queue to the transport is full, its
    /// oldest event is dropped and counted, and subscribers see a gap.
    pub fn publish<T: Serialize + ?Sized>(&self, event: &T) -> Result<(), PublishError> {
        self.publish_bytes(Bytes::from(rmp_serde::to_vec_named(event)?))
    }

    /// Publishes a payload that is encoded already.
    pub fn publish_bytes(&self, payload: Bytes) -> Result<(), PublishError> {
        if payload.len() > MAX_PAYLOAD {
            return Err(PublishError::TooLarge { size: payload.len() });
        }
        let shared = &self.shared;
        let published_at_ms = Epoch::now().get();
        // Held while the transport takes the event, so that the order of the queue is that of the numbers.
        let mut next = shared.next_sequence.lock();
        let (publisher, topic) = (shared.incarnation, shared.topic.clone());
        let envelope = Envelope { publisher, sequence: *next, published_at_ms, topic };
        shared.outlet.send(Arrival { envelope, payload })?;
        *next += 1;
        drop(next);
        shared.published.inc();
        Ok(())
    }

    /// Who publishes.
    pub fn incarnation(&self) -> Incarnation {
        self.shared.incarnation
    }

    /// The topic.
    pub fn topic(&self) -> &str {
        &self.shared.topic
    }

    /// The number that the next event will have: what a snapshot taken now includes all events below of.
    pub fn next_sequence(&self) -> u64 {
        *self.shared.next_sequence.lock()
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.open.dec();
    }
}
