//! An event as a ZeroMQ message of four frames:
//!
//! 1. the topic, UTF-8
//! 2. the publisher's id, u64 big-endian
//! 3. the sequence number, u64 big-endian
//! 4. version (u8, 1), length of the rest (u32 big-endian), and as the rest the envelope, a MessagePack map with the keys
//!    `publisher_id`, `sequence`, `published_at` (Unix milliseconds), `topic`, `payload` (bin) and `epoch`
//!    (Unix milliseconds; absent from publishers that have none, which counts as 0)

use super::envelope::{Arrival, read_map, write_map};
use super::payload_arena::PayloadArena;
use super::{Envelope, PublishError};
use crate::identity::WorkerId;
use std::sync::Arc;

/// Frames of a message.
pub const FRAMES: usize = 4;

/// The version in the fourth frame.
const VERSION: u8 = 1;

/// Bytes before the envelope in the fourth frame.
const HEADER: usize = 5;

/// Largest payload: the largest message of the request plane. Subscribers refuse frames that are longer than this and an
/// envelope.
pub const MAX_PAYLOAD: usize = 32 << 20;

/// What an envelope may add to a payload.
pub(super) const ENVELOPE_ROOM: usize = 4096;

/// Why a message is not an event for this subscription.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Not four frames.
    #[error("an event has {FRAMES} frames")]
    FrameCount,
    /// Another topic: ZeroMQ filters by prefix only, so `kv` also lets `kv2` through.
    #[error("another topic")]
    ForeignTopic,
    /// An id or a sequence number that is not 8 bytes.
    #[error("a number is not 8 bytes")]
    Number,
    /// A version that this release does not know.
    #[error("unknown version {0}")]
    Version(u8),
    /// The length does not fit the frame.
    #[error("the length does not fit the frame")]
    Length,
    /// The envelope is not the MessagePack map it should be.
    #[error("malformed envelope")]
    Envelope,
    /// Envelope and frames name different topics, publishers or numbers.
    #[error("envelope and frames disagree")]
    Disagreement,
}

/// The frames after the topic.
pub(super) struct Encoded {
    pub(super) publisher: [u8; 8],
    pub(super) sequence: [u8; 8],
    pub(super) body: Vec<u8>,
}

pub(super) fn encode(envelope: &Envelope, payload: &[u8]) -> Result<Encoded, PublishError> {
    let mut body = Vec::with_capacity(HEADER + payload.len() + envelope.topic.len() + 96);
    body.extend_from_slice(&[VERSION, 0, 0, 0, 0]);
    write_map(envelope, payload, &mut body)?;
    let length =
        u32::try_from(body.len() - HEADER).map_err(|_| PublishError::TooLarge { size: payload.len() })?;
    body[1..HEADER].copy_from_slice(&length.to_be_bytes());
    let publisher = envelope.publisher.worker_id.get().to_be_bytes();
    Ok(Encoded { publisher, sequence: envelope.sequence.to_be_bytes(), body })
}

pub(super) fn decode<F: AsRef<[u8]>>(
    frames: &[F],
    topic: &Arc<str>,
    arena: &mut PayloadArena,
) -> Result<Arrival, Malformed> {
    let [topic_frame, publisher, sequence, body] = frames else { return Err(Malformed::FrameCount) };
    if topic_frame.as_ref() != topic.as_bytes() {
        return Err(Malformed::ForeignTopic);
    }
    let publisher = WorkerId::from_bits(number(publisher.as_ref())?);
    let sequence = number(sequence.as_ref())?;
    let (header, envelope) = body.as_ref().split_at_checked(HEADER).ok_or(Malformed::Length)?;
    if header[0] != VERSION {
        return Err(Malformed::Version(header[0]));
    }
    let length = u32::from_be_bytes([header[1], header[2], header[3], header[4]]);
    if usize::try_from(length) != Ok(envelope.len()) {
        return Err(Malformed::Length);
    }
    let arrival = read_map(envelope, topic, arena)?;
    if arrival.envelope.publisher.worker_id != publisher || arrival.envelope.sequence != sequence {
        return Err(Malformed::Disagreement);
    }
    Ok(arrival)
}

fn number(frame: &[u8]) -> Result<u64, Malformed> {
    frame.try_into().map(u64::from_be_bytes).map_err(|_| Malformed::Number)
}

#[cfg(test)]
mod tests;
