//! How a process goes: leave, take stragglers, stop admitting, drain, cancel, close. In this order, so that no request is
//! sent to a worker that is gone, and none that was accepted is lost while there is time.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::runtime::Inner;

#[cfg(test)]
mod tests;

/// Where a runtime is in its life. Phases only go forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Takes work.
    Running,
    /// Not ready any more: it leaves discovery and tells its peers, and still admits what was on the way.
    Leaving,
    /// Admits nothing, and finishes what it has.
    Draining,
    /// What is left is told to stop.
    Cancelling,
    /// Nothing runs; connections are closed.
    Closed,
}

/// Why a runtime shuts down; for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ShutdownReason {
    /// A signal, by its name.
    Signal(&'static str),
    /// Somebody asked for it.
    Requested,
    /// Something the process cannot live without has failed.
    Fatal(String),
}

impl fmt::Display for ShutdownReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ShutdownReason::Signal(name) => write!(f, "received {name}"),
            ShutdownReason::Requested => f.write_str("requested"),
            ShutdownReason::Fatal(what) => write!(f, "fatal: {what}"),
        }
    }
}

/// How long each phase may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShutdownLimits {
    /// For which stragglers are admitted after leaving: what load balancers and clients need to notice.
    pub grace: Duration,
    /// For draining to zero.
    pub drain: Duration,
    /// For cancelled work to end.
    pub cancel: Duration,
    /// For planes and discovery to close.
    pub close: Duration,
}

impl ShutdownLimits {
    /// The values of the field: 5 s of grace, 900 s to drain; 5 s for what was cancelled, 5 s to close.
    pub const STANDARD: Self = Self {
        grace: Duration::from_secs(5),
        drain: Duration::from_secs(900),
        cancel: Duration::from_secs(5),
        close: Duration::from_secs(5),
    };

    /// For processes that only talk to processes of the same host: everybody has noticed within half a second.
    pub const LOCAL: Self = Self { grace: Duration::from_millis(500), ..Self::STANDARD };
}

/// A future of a participant.
pub type PhaseFuture<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

/// Something with a part in shutdown: a distributed runtime, a server.
pub trait Participant: Send + Sync {
    /// [`Phase::Leaving`] has begun: tell everybody not to send more. Cut off when the grace is over.
    fn leave(&self) -> PhaseFuture<'_>;
    /// [`Phase::Draining`] begins: refuse what comes from now on.
    fn stop_admitting(&self);
    /// Work that is still open, beside the runtime's own guards.
    fn open_work(&self) -> usize;
    /// The last phase: close what is open. Cut off at its limit.
    fn close(&self) -> PhaseFuture<'_>;
}

/// How often open work of participants is counted while draining: they only count, and do not tell.
const COUNT: Duration = Duration::from_millis(10);

/// How often a drain that goes on says what it waits for.
const REPORT: Duration = Duration::from_secs(30);

/// Runs the phases after [`Phase::Leaving`] was entered.
pub(crate) async fn coordinate(runtime: Arc<Inner>) {
    let limits = runtime.limits;
    let hurry = &runtime.hurry;
    let participants = runtime.participants();

    let grace_over = Instant::now() + limits.grace;
    tokio::select! {
        () = hurry.cancelled() => {}
        () = async {
            let leaving = async { for_each(&participants, |participant| participant.leave()).await };
            if tokio::time::timeout_at(grace_over, leaving).await.is_err() {
                tracing::warn!("leaving took longer than the grace; going on");
            }
            sleep_until(grace_over).await;
        } => {}
    }

    runtime.phase.send_replace(Phase::Draining);
    for participant in &participants {
        participant.stop_admitting();
    }
    tokio::select! {
        () = hurry.cancelled() => {}
        drained = timeout(limits.drain, drain(&runtime)) => {
            if drained.is_err() {
                tracing::error!(left = runtime.open_work(), "work was not drained in time and is cancelled");
            }
        }
    }

    runtime.phase.send_replace(Phase::Cancelling);
    runtime.work.cancel();
    let stopped = async {
        runtime.guards.wait().await;
        runtime.work.closed().await;
    };
    if timeout(limits.cancel, stopped).await.is_err() {
        let left = runtime.root.census();
        tracing::warn!(
            ?left,
            guards = runtime.guards.len(),
            "cancelled work has not ended; going on without it"
        );
    }

    if timeout(limits.close, for_each(&participants, |participant| participant.close())).await.is_err() {
        tracing::warn!("planes were not closed in time; going on");
    }
    runtime.planes.cancel();
    if timeout(limits.close, runtime.planes.closed()).await.is_err() {
        tracing::warn!(left = ?runtime.root.census(), "tasks of the planes have not ended; going on without them");
    }
    runtime.phase.send_replace(Phase::Closed);
    tracing::info!("shut down");
}

/// Calls every participant, all at the same time.
async fn for_each<'a>(
    participants: &'a [Arc<dyn Participant>],
    call: impl Fn(&'a dyn Participant) -> PhaseFuture<'a>,
) {
    let mut pending: Vec<PhaseFuture<'a>> =
        participants.iter().map(|participant| call(&**participant)).collect();
    std::future::poll_fn(|context| {
        pending.retain_mut(|future| future.as_mut().poll(context).is_pending());
        if pending.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}

async fn drain(runtime: &Inner) {
    let mut report = Instant::now() + REPORT;
    loop {
        // The guards tell when they are gone; participants are asked.
        if timeout(REPORT, runtime.guards.wait()).await.is_ok() {
            if runtime.open_work() == 0 {
                return;
            }
            sleep(COUNT).await;
        }
        if Instant::now() >= report {
            report = Instant::now() + REPORT;
            tracing::info!(left = runtime.open_work(), "draining");
        }
    }
}
