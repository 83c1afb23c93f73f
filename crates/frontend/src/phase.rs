//! How far the process is on its way out.

/// What the service does now. Only ever goes forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Everything is served.
    Serving,
    /// Not ready any more, so that load balancers turn away; requests that come are served, and connections are
    /// closed after their answer.
    Leaving,
    /// No connection and no request is accepted; running answers go on to their end.
    Draining,
    /// Running answers are broken off.
    Cancelled,
}

impl Phase {
    /// The name in `/health`.
    pub(crate) fn stage(self) -> &'static str {
        match self {
            Self::Serving => "ready",
            Self::Leaving => "leaving",
            Self::Draining => "draining",
            Self::Cancelled => "stopping",
        }
    }
}
