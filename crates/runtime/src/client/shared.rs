//! What the clients of one endpoint share: the view of its instances, kept up to date by one task.

use std::sync::Arc;

use arc_swap::{ArcSwap, Guard};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::follower::Follower;
use super::instance::{Instance, InstanceState};
use crate::discovery::Watch;
use crate::identity::{EndpointId, Incarnation, WorkerId};
use crate::metrics::IntGauge;
use crate::request_plane::{OutgoingRequest, RequestPlane, ResponseStream, StreamError};
use crate::scope::TaskScope;

pub(crate) struct Shared {
    pub(super) endpoint: EndpointId,
    plane: RequestPlane,
    follower: Mutex<Follower>,
    /// Read with each request.
    view: ArcSwap<Arc<[Instance]>>,
    changes: watch::Sender<Arc<[Instance]>>,
    in_doubt: IntGauge,
}

/// Keeps a view up to date for as long as a client holds it.
pub(crate) struct Following {
    pub(super) shared: Arc<Shared>,
    scope: TaskScope,
}

impl Drop for Following {
    fn drop(&mut self) {
        self.scope.cancel();
        // The task may be gone before it could do this, with the runtime it ran on.
        self.shared.in_doubt.sub(self.shared.follower.lock().in_doubt() as i64);
        *self.shared.follower.lock() = Follower::default();
    }
}

impl Following {
    pub(crate) fn start(
        endpoint: EndpointId,
        plane: RequestPlane,
        watch: Watch,
        scope: &TaskScope,
        in_doubt: IntGauge,
    ) -> Arc<Self> {
        let scope = scope.child("client");
        let nobody: Arc<[Instance]> = Arc::new([]);
        let shared = Arc::new(Shared {
            endpoint,
            plane,
            follower: Mutex::default(),
            view: ArcSwap::from_pointee(nobody.clone()),
            changes: watch::Sender::new(nobody),
            in_doubt,
        });
        scope.spawn("follow instances", shared.clone().follow(watch, scope.clone()));
        Arc::new(Self { shared, scope })
    }
}

impl Shared {
    pub(super) fn instances(&self) -> Arc<[Instance]> {
        Arc::clone(&self.view.load())
    }

    pub(super) fn view(&self) -> Guard<Arc<Arc<[Instance]>>> {
        self.view.load()
    }

    pub(super) fn changes(&self) -> watch::Receiver<Arc<[Instance]>> {
        self.changes.subscribe()
    }

    async fn follow(self: Arc<Self>, mut watch: Watch, scope: TaskScope) {
        loop {
            let expiry = self.follower.lock().next_expiry();
            let expired = async {
                match expiry {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = scope.cancelled() => return,
                change = watch.next() => match change {
                    Some(change) => self.update(|follower| follower.apply(change, Instant::now())),
                    None => return,
                },
                () = expired => self.update(|follower| follower.expire(Instant::now())),
            }
        }
    }

    fn update(&self, change: impl FnOnce(&mut Follower) -> bool) {
        let mut follower = self.follower.lock();
        let before = follower.in_doubt();
        if change(&mut follower) {
            self.in_doubt.add(follower.in_doubt() as i64 - before as i64);
            let instances = follower.snapshot();
            // Under the lock, so that an older view never replaces a newer one.
            self.view.store(Arc::new(instances.clone()));
            self.changes.send_replace(instances);
        }
    }

    /// The instance at `turn` among the best that are left: those that are well, then those in doubt, and at last those that
    /// failed just now, for a failure is sooner over than nothing is an answer.
    pub(super) fn pick(&self, turn: usize, tried: &[WorkerId]) -> Option<Instance> {
        let view = self.view.load();
        let now = Instant::now();
        let untried = || view.iter().filter(|instance| !tried.contains(&instance.worker_id()));
        for state in [InstanceState::Ready, InstanceState::InDoubt] {
            let admissible = || untried().filter(|i| i.state == state && i.breaker.admits(now));
            let count = admissible().count();
            // A probe that another request took in between leaves the next one.
            for offset in 0..count {
                match admissible().nth((turn.wrapping_add(offset)) % count) {
                    Some(instance) if instance.breaker.claim(now) => return Some(instance.clone()),
                    _ => {}
                }
            }
        }
        let failed = || untried().filter(|i| i.state != InstanceState::Draining);
        let count = failed().count();
        failed().nth(turn.checked_rem(count)?).cloned()
    }

    /// Opens a stream and remembers how it went.
    pub(super) async fn attempt(
        &self,
        instance: &Instance,
        request: OutgoingRequest,
    ) -> Result<ResponseStream, StreamError> {
        let opened = self.plane.open(&instance.target, request).await;
        match &opened {
            Ok(_) => instance.breaker.succeeded(),
            // An overloaded worker is well, and a handler that let go of one request may serve the next.
            Err(StreamError::Unavailable(_) | StreamError::Disconnected) => {
                instance.breaker.failed(Instant::now());
                self.update(|follower| follower.give_up(instance.incarnation));
            }
            Err(_) => {}
        }
        opened
    }

    pub(super) fn report_lost(&self, incarnation: Incarnation) {
        let view = self.view.load();
        if let Some(instance) = view.iter().find(|instance| instance.incarnation == incarnation) {
            instance.breaker.failed(Instant::now());
        }
        self.update(|follower| follower.give_up(incarnation));
    }
}
