//! The event plane: typed publish and subscribe, with an [`Envelope`] that says who published what number of event, when.
//!
//! Delivery is at most once and never waits: a publisher does not know its subscribers, and a subscriber that is slow loses
//! the oldest events. But nothing is lost in silence. Events of a publisher carry consecutive numbers from 0, and a
//! subscriber reports what is missing as [`EventItem::Gap`], the events from before it came included; what to do about it (a
//! range from the publisher, a snapshot) is the consumer's business. Duplicates, and events from an incarnation that has
//! been replaced, are dropped.
//!
//! Two transports: in one process through an [`EventHub`], and ZeroMQ PUB/SUB between processes, where publishers are found
//! through discovery. On the wire an event is what the incumbent sends (see [`frames`]), plus the publisher's epoch.

mod config;
mod drop_oldest;
mod envelope;
mod error;
pub mod frames;
mod hub;
mod inbox;
mod metrics;
mod payload_arena;
mod plane;
mod publisher;
mod subscriber;
mod tracker;
mod zmq_direct;

pub use config::{EventPlaneConfig, EventPlaneKind};
pub use envelope::{Envelope, EventItem, decode_payload};
pub use error::{EventPlaneError, PublishError};
pub use hub::EventHub;
pub use metrics::EventMetrics;
pub use plane::EventPlane;
pub use publisher::EventPublisher;
pub use subscriber::EventSubscriber;

#[cfg(test)]
mod tests;
