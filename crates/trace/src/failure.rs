//! How a request can fail.

use std::fmt;

/// Kinds of failures, counted apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FailureKind {
    /// No connection.
    Connect,
    /// The request could not be written.
    Send,
    /// A status other than 200.
    Status(u16),
    /// The stream ended in the middle.
    Cut,
    /// The answer was not HTTP.
    Protocol,
    /// The stream carried an error.
    ErrorEvent,
    /// The stream ended well, but its last event has no readable usage.
    NoUsage,
    /// Not complete in time.
    Timeout,
}

impl fmt::Display for FailureKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect => f.write_str("connect"),
            Self::Send => f.write_str("send"),
            Self::Status(status) => write!(f, "http {status}"),
            Self::Cut => f.write_str("cut"),
            Self::Protocol => f.write_str("protocol"),
            Self::ErrorEvent => f.write_str("error event"),
            Self::NoUsage => f.write_str("no usage"),
            Self::Timeout => f.write_str("timeout"),
        }
    }
}

/// A failed request.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{kind}: {message}")]
pub(crate) struct Failure {
    pub(crate) kind: FailureKind,
    pub(crate) message: String,
    /// Nothing came back on a connection that had been used before: the server closed it while idle.
    pub(crate) stale: bool,
}

impl Failure {
    pub(crate) fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), stale: false }
    }
}
