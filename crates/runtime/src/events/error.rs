use super::frames::MAX_PAYLOAD;
use crate::discovery::DiscoveryError;
use std::net::IpAddr;

/// Why a publisher or a subscription cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum EventPlaneError {
    /// The topic is empty or too long.
    #[error("event topic {topic:?} is not of 1 to 255 bytes")]
    Topic {
        /// The topic, as given.
        topic: String,
    },
    /// Subscribers could not connect to what the publisher would advertise.
    #[error(
        "event plane host {0} is a wildcard: set DYN_EVENT_PLANE_HOST to the address at which this host is reached"
    )]
    WildcardHost(IpAddr),
    /// No port could be bound.
    #[error(
        "cannot bind an event publisher to {host}: {reason}; set DYN_EVENT_PLANE_HOST to an address of this host"
    )]
    Bind {
        /// The configured address.
        host: IpAddr,
        /// What libzmq said.
        reason: String,
    },
    /// libzmq or the system refused a socket or a thread.
    #[error("cannot start the event plane: {0}; too many open files? raise the limit with ulimit -n")]
    Start(String),
    /// The channel could not be registered, or the topic not watched.
    #[error("event channel and discovery: {0}")]
    Discovery(#[from] DiscoveryError),
    /// The plane was shut down.
    #[error("the event plane is closed")]
    Closed,
}

/// Why an event was not published.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// It cannot be written as MessagePack.
    #[error("event cannot be encoded: {0}")]
    Encode(#[from] rmp_serde::encode::Error),
    /// It is larger than any subscriber accepts.
    #[error("event of {size} bytes is over the limit of {MAX_PAYLOAD}")]
    TooLarge {
        /// Bytes of payload.
        size: usize,
    },
    /// The plane was shut down.
    #[error("the event plane is closed")]
    Closed,
}
