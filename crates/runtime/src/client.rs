//! Clients of an endpoint: who serves it, and how a request finds one who takes it.
//!
//! A request that no worker has accepted is sent to another; only when none is left is it an error. A worker that could not
//! be reached or was lost is left alone for a short while that doubles with each failure, so that the requests after avoid
//! it at once. One whose record vanished without draining is in doubt, and used only when no other is left.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use crate::distributed::DistributedRuntime;
use crate::identity::{EndpointId, Incarnation, WorkerId};
use crate::request_plane::{OutgoingRequest, ResponseStream, StreamError};

mod breaker;
mod error;
mod follower;
mod instance;
mod shared;

pub use error::ClientError;
pub use instance::{Instance, InstanceState};

pub(crate) use shared::Following;

use shared::Shared;

/// How an instance is picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pick {
    /// Each in turn.
    RoundRobin,
    /// Any, evenly.
    Random,
}

/// A request that was accepted.
pub struct Opened {
    /// By whom.
    pub instance: Instance,
    /// Its answer.
    pub stream: ResponseStream,
}

/// A client of one endpoint. Clones, and clients of the same endpoint from one runtime, share their view.
#[derive(Clone)]
pub struct Client {
    following: Arc<Following>,
    turn: Arc<AtomicUsize>,
    /// What it stands on, so that it works for as long as it is held.
    _runtime: DistributedRuntime,
}

impl Client {
    pub(crate) fn new(following: Arc<Following>, runtime: DistributedRuntime) -> Self {
        Self { following, turn: Arc::default(), _runtime: runtime }
    }

    fn shared(&self) -> &Shared {
        &self.following.shared
    }

    /// The endpoint.
    pub fn endpoint(&self) -> &EndpointId {
        &self.shared().endpoint
    }

    /// Everyone known to serve it, by id; also who drains or is in doubt. Cheap: one atomic read.
    pub fn instances(&self) -> Arc<[Instance]> {
        self.shared().instances()
    }

    /// The instance of a worker.
    pub fn instance(&self, worker: WorkerId) -> Option<Instance> {
        let instances = self.shared().view();
        instances.binary_search_by_key(&worker, Instance::worker_id).ok().map(|at| instances[at].clone())
    }

    /// Follows [`instances`](Self::instances).
    pub fn watch(&self) -> watch::Receiver<Arc<[Instance]>> {
        self.shared().changes()
    }

    /// Waits until somebody takes requests.
    pub async fn wait_for_instances(&self, patience: Duration) -> Result<Arc<[Instance]>, ClientError> {
        let mut changes = self.watch();
        let anybody =
            |instances: &Arc<[Instance]>| instances.iter().any(|i| i.state() == InstanceState::Ready);
        match timeout(patience, changes.wait_for(anybody)).await {
            Ok(Ok(instances)) => Ok(instances.clone()),
            // The sender is part of what this client holds, so that only the time can be over.
            Ok(Err(_)) | Err(_) => {
                Err(ClientError::NobodyCame { endpoint: self.endpoint().clone(), waited: patience })
            }
        }
    }

    /// Sends a request to one instance after the other, in turn with other requests, until one accepts it.
    pub async fn round_robin(&self, request: OutgoingRequest) -> Result<Opened, ClientError> {
        self.send(Pick::RoundRobin, request).await
    }

    /// Sends a request to any instance, and to others until one accepts it.
    pub async fn random(&self, request: OutgoingRequest) -> Result<Opened, ClientError> {
        self.send(Pick::Random, request).await
    }

    /// Sends a request to the worker `worker` and to no other.
    pub async fn direct(&self, request: OutgoingRequest, worker: WorkerId) -> Result<Opened, ClientError> {
        let Some(instance) = self.instance(worker) else {
            return Err(ClientError::UnknownInstance { endpoint: self.endpoint().clone(), worker });
        };
        let stream = self.open(&instance, request).await?;
        Ok(Opened { instance, stream })
    }

    /// Opens a stream to `instance`, which the caller chose. One that drains is refused.
    pub async fn open(
        &self,
        instance: &Instance,
        request: OutgoingRequest,
    ) -> Result<ResponseStream, ClientError> {
        if instance.state() == InstanceState::Draining {
            let (endpoint, worker) = (self.endpoint().clone(), instance.worker_id());
            return Err(ClientError::Draining { endpoint, worker });
        }
        self.shared().attempt(instance, request).await.map_err(ClientError::from)
    }

    /// Picks by `pick` and sends, to others until one accepts.
    pub async fn send(&self, pick: Pick, mut request: OutgoingRequest) -> Result<Opened, ClientError> {
        let deadline = request.time_left.map(|left| Instant::now() + left);
        let turn = match pick {
            Pick::RoundRobin => self.turn.fetch_add(1, Ordering::Relaxed),
            Pick::Random => rand::random::<u32>() as usize,
        };
        // Empty, and so without an allocation, unless somebody refuses.
        let mut tried: Vec<WorkerId> = Vec::new();
        let mut last = None;
        loop {
            let Some(instance) = self.shared().pick(turn, &tried) else {
                let endpoint = self.endpoint().clone();
                return Err(match last {
                    Some(last) => ClientError::Refused { endpoint, attempts: tried.len(), last },
                    None => ClientError::NoInstances { endpoint },
                });
            };
            if let Some(deadline) = deadline {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(StreamError::DeadlineExceeded.into());
                }
                request.time_left = Some(left);
            }
            match self.shared().attempt(&instance, request.clone()).await {
                Ok(stream) => return Ok(Opened { instance, stream }),
                Err(error) if error.is_retriable() => {
                    tracing::debug!(%error, worker = %instance.worker_id(), request_id = %request.id, "trying another");
                    tried.push(instance.worker_id());
                    last = Some(error);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Tells that a stream from this incarnation was lost: requests avoid it for a while.
    pub fn report_lost(&self, incarnation: Incarnation) {
        self.shared().report_lost(incarnation);
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("endpoint", self.endpoint()).finish_non_exhaustive()
    }
}
