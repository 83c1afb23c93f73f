use super::frames::Malformed;
use super::payload_arena::PayloadArena;
use crate::identity::{Epoch, Incarnation, WorkerId};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What is known of an event besides its payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// Who published it.
    pub publisher: Incarnation,
    /// Its number among the publisher's events on this scope and topic: 0, 1, 2, …
    pub sequence: u64,
    /// When, in Unix milliseconds by the publisher's clock.
    pub published_at_ms: u64,
    /// Its topic.
    pub topic: Arc<str>,
}

/// What a subscriber gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EventItem {
    /// An event.
    Event {
        /// Who, when, what number.
        envelope: Envelope,
        /// The payload, by convention a MessagePack map with named fields ([`decode_payload`]).
        payload: Bytes,
    },
    /// The events numbered `from` to `to`, both included, did not arrive and will not.
    Gap {
        /// Whose events.
        publisher: Incarnation,
        /// The first that is missing.
        from: u64,
        /// The last that is missing.
        to: u64,
    },
    /// The publisher left, or a later incarnation took its place: nothing more comes from this one.
    PublisherGone(Incarnation),
}

/// Reads a payload published with [`publish`](super::EventPublisher::publish).
pub fn decode_payload<T: serde::de::DeserializeOwned>(payload: &[u8]) -> Result<T, rmp_serde::decode::Error> {
    rmp_serde::from_slice(payload)
}

/// An event on its way: in a queue, or just read from the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Arrival {
    pub(super) envelope: Envelope,
    pub(super) payload: Bytes,
}

/// The envelope as a MessagePack map. `epoch` is ours: absent from the incumbent's, which skips it in turn.
#[derive(Serialize, Deserialize)]
struct OnTheWire<'a> {
    publisher_id: u64,
    sequence: u64,
    published_at: u64,
    #[serde(borrow)]
    topic: &'a str,
    #[serde(borrow, with = "serde_bytes")]
    payload: &'a [u8],
    #[serde(default)]
    epoch: u64,
}

pub(super) fn write_map(
    envelope: &Envelope,
    payload: &[u8],
    buffer: &mut Vec<u8>,
) -> Result<(), rmp_serde::encode::Error> {
    let map = OnTheWire {
        publisher_id: envelope.publisher.worker_id.get(),
        sequence: envelope.sequence,
        published_at: envelope.published_at_ms,
        topic: &envelope.topic,
        payload,
        epoch: envelope.publisher.epoch.get(),
    };
    rmp_serde::encode::write_named(buffer, &map)
}

/// Reads the map of an event on `topic`. The payload is copied, once.
pub(super) fn read_map(
    bytes: &[u8],
    topic: &Arc<str>,
    arena: &mut PayloadArena,
) -> Result<Arrival, Malformed> {
    let map: OnTheWire<'_> = rmp_serde::from_slice(bytes).map_err(|_| Malformed::Envelope)?;
    if map.topic != &**topic {
        return Err(Malformed::Disagreement);
    }
    let publisher = Incarnation {
        worker_id: WorkerId::from_bits(map.publisher_id),
        epoch: Epoch::from_unix_ms(map.epoch),
    };
    let (sequence, published_at_ms) = (map.sequence, map.published_at);
    let envelope = Envelope { publisher, sequence, published_at_ms, topic: topic.clone() };
    Ok(Arrival { envelope, payload: arena.copy(map.payload) })
}
