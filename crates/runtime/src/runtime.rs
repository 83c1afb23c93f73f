//! The root of everything a process runs: task scopes on a borrowed tokio handle, and the phases of its shutdown.

use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

use crate::scope::TaskScope;
use crate::shutdown::{self, Participant, Phase, ShutdownLimits, ShutdownReason};

/// A runtime on a tokio handle that someone else owns. It installs nothing in the process and may be dropped on any
/// thread; dropping the last clone without [`shutdown`](Self::shutdown) cancels its tasks without draining.
#[derive(Clone)]
pub struct Runtime {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) root: TaskScope,
    /// Where work runs: cancelled once it had its time to drain.
    pub(crate) work: TaskScope,
    /// What work stands on (discovery, planes, servers): cancelled last.
    pub(crate) planes: TaskScope,
    /// Closed from birth, so that waiting means "none is left".
    pub(crate) guards: TaskTracker,
    pub(crate) phase: watch::Sender<Phase>,
    pub(crate) limits: ShutdownLimits,
    /// Set by the second call of shutdown: no more waiting for work.
    pub(crate) hurry: CancellationToken,
    /// As many as the process has distributed runtimes and servers.
    pub(crate) participants: Mutex<Vec<Weak<dyn Participant>>>,
}

impl Runtime {
    /// A runtime whose tasks run on `handle`, with the usual [limits](ShutdownLimits::STANDARD) of shutdown.
    pub fn new(handle: Handle) -> Self {
        Self::with_limits(handle, ShutdownLimits::STANDARD)
    }

    /// A runtime with its own limits of shutdown.
    pub fn with_limits(handle: Handle, limits: ShutdownLimits) -> Self {
        let root = TaskScope::root(handle);
        let guards = TaskTracker::new();
        guards.close();
        Self {
            inner: Arc::new(Inner {
                work: root.child("work"),
                planes: root.child("planes"),
                root,
                guards,
                phase: watch::Sender::new(Phase::Running),
                limits,
                hurry: CancellationToken::new(),
                participants: Mutex::default(),
            }),
        }
    }

    /// The scope of the process's work: its tasks are told to stop when draining has ended.
    pub fn scope(&self) -> &TaskScope {
        &self.inner.work
    }

    /// The scope of what work stands on, servers and connections: its tasks are told to stop last.
    pub fn planes_scope(&self) -> &TaskScope {
        &self.inner.planes
    }

    pub(crate) fn root_scope(&self) -> &TaskScope {
        &self.inner.root
    }

    /// The present phase, and those to come.
    pub fn phase(&self) -> watch::Receiver<Phase> {
        self.inner.phase.subscribe()
    }

    /// Counts as work to drain until dropped: an HTTP stream, a background job that must end well.
    pub fn work(&self) -> WorkGuard {
        WorkGuard { _token: self.inner.guards.token() }
    }

    /// Work guards held and streams open.
    pub fn open_work(&self) -> usize {
        self.inner.open_work()
    }

    /// Takes part in shutdown for as long as `participant` lives.
    pub fn on_shutdown(&self, participant: &Arc<dyn Participant>) {
        let mut participants = self.inner.participants.lock();
        participants.retain(|known| known.strong_count() > 0);
        participants.push(Arc::downgrade(participant));
    }

    /// Begins the shutdown, which goes on by itself through the [phases](Phase). A second call ends all waiting for work:
    /// what still runs is cancelled at once.
    pub fn shutdown(&self, reason: ShutdownReason) {
        let first = self.inner.phase.send_if_modified(|phase| {
            let running = *phase == Phase::Running;
            if running {
                *phase = Phase::Leaving;
            }
            running
        });
        if first {
            tracing::info!(%reason, "shutting down");
            // On the root: its coordinator outlives the scopes that it cancels.
            self.inner.root.spawn("shutdown", shutdown::coordinate(self.inner.clone()));
        } else {
            tracing::info!(%reason, "shutting down without waiting for work");
            self.inner.hurry.cancel();
        }
    }

    /// Whether a shutdown has begun.
    pub fn is_shutting_down(&self) -> bool {
        *self.inner.phase.borrow() != Phase::Running
    }

    /// Resolves when a shutdown has begun.
    pub async fn shutting_down(&self) {
        self.reached(Phase::Leaving).await;
    }

    /// Resolves when a shutdown has drained the work or given up waiting for it.
    pub async fn drained(&self) {
        self.reached(Phase::Cancelling).await;
    }

    /// Resolves when a shutdown is complete.
    pub async fn closed(&self) {
        self.reached(Phase::Closed).await;
    }

    async fn reached(&self, wanted: Phase) {
        // The sender lives as long as this runtime.
        let _ = self.phase().wait_for(|phase| *phase >= wanted).await;
    }
}

impl Inner {
    pub(crate) fn participants(&self) -> Vec<Arc<dyn Participant>> {
        self.participants.lock().iter().filter_map(Weak::upgrade).collect()
    }

    pub(crate) fn open_work(&self) -> usize {
        self.guards.len()
            + self.participants().iter().map(|participant| participant.open_work()).sum::<usize>()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.root.cancel();
    }
}

impl std::fmt::Debug for Runtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runtime").field("phase", &*self.inner.phase.borrow()).finish_non_exhaustive()
    }
}

/// Work that a shutdown waits for. See [`Runtime::work`].
#[must_use = "work counts only while its guard is held"]
#[derive(Debug)]
pub struct WorkGuard {
    _token: TaskTrackerToken,
}
