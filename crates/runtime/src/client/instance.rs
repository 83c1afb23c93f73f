use std::sync::Arc;

use tokio::time::Instant;

use super::breaker::Breaker;
use crate::identity::{Incarnation, WorkerId};
use crate::request_plane::Target;

/// Whether requests go to an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstanceState {
    /// It takes requests.
    Ready,
    /// It takes none, and will go.
    Draining,
    /// Its record vanished without a word. It may live, and is used when no other is left, for a minute at most.
    InDoubt,
}

/// One worker that serves an endpoint, as it is known at one moment.
#[derive(Clone, Debug)]
pub struct Instance {
    pub(super) incarnation: Incarnation,
    pub(super) worker_name: Arc<str>,
    pub(super) target: Target,
    pub(super) state: InstanceState,
    /// Shared by all snapshots of the same incarnation at the same address.
    pub(super) breaker: Arc<Breaker>,
}

impl Instance {
    /// Which worker.
    pub fn worker_id(&self) -> WorkerId {
        self.incarnation.worker_id
    }

    /// Which worker, in which of its lives.
    pub fn incarnation(&self) -> Incarnation {
        self.incarnation
    }

    /// The worker's name.
    pub fn worker_name(&self) -> &str {
        &self.worker_name
    }

    /// Where it is.
    pub fn target(&self) -> &Target {
        &self.target
    }

    /// As of the snapshot.
    pub fn state(&self) -> InstanceState {
        self.state
    }

    /// Whether it takes requests and has not failed just now. A router filters by this before it chooses.
    pub fn is_available(&self) -> bool {
        self.state == InstanceState::Ready && self.breaker.admits(Instant::now())
    }
}
