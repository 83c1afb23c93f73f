//! Listens to an engine's own KV event socket.
//!
//! Engines publish batches over ZeroMQ PUB, each as three frames: topic, number (u64, big-endian), payload. What was
//! missed is asked for at the engine's replay socket, if it has one. libzmq's sockets belong to one thread, so a listener
//! has one; it hands batches over in order, on that thread.

use std::{io::Write as _, os::unix::net::UnixStream};

use dynamo_kv_router::ReplayFailure;

mod metrics;
mod replay;
mod run;

pub use metrics::{EngineIntakeMetrics, SourceMetrics};

/// Where an engine publishes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineEndpoint {
    /// The PUB socket, as in `tcp://127.0.0.1:5557`.
    pub events: String,
    /// Only messages whose topic begins so; mostly empty.
    pub topic: String,
    /// The ROUTER socket that gives out batches again.
    pub replay: Option<String>,
}

/// Takes what an engine publishes. Called on the listener's thread; while it works, messages wait in the socket.
pub trait EngineBatches: Send + 'static {
    /// The next batch.
    fn batch(&mut self, sequence: u64, payload: &[u8]);
    /// The engine counts anew: what it had cached is gone.
    fn restarted(&mut self);
    /// So many batches before the next one did not come and will not; why a replay did not bring them, if one was tried.
    fn lost(&mut self, batches: u64, why: Option<ReplayFailure>);
    /// Nothing at all has come for a minute since the start. Called once.
    fn silent(&mut self);
}

/// Why a listener did not start.
#[derive(Debug, thiserror::Error)]
pub enum ListenerError {
    /// The address is none that libzmq can connect to.
    #[error("cannot listen to the engine at {address}: {reason}; give tcp://HOST:PORT or ipc://PATH")]
    Address {
        /// As given.
        address: String,
        /// What libzmq says.
        reason: zmq::Error,
    },
    /// No socket or thread could be made.
    #[error("cannot listen to engines: {0}")]
    Start(#[from] std::io::Error),
}

/// A listener at work; dropping it ends its thread.
#[must_use = "dropping the listener ends it"]
pub struct EngineListener {
    /// A byte here ends the thread.
    stop: UnixStream,
}

impl EngineListener {
    /// Connects, now or as soon as the engine is there, and hands over what comes.
    pub fn start(
        endpoint: EngineEndpoint,
        batches: impl EngineBatches,
        metrics: SourceMetrics,
    ) -> Result<Self, ListenerError> {
        let (stop, stopped) = UnixStream::pair()?;
        let thread = run::Listening::new(endpoint, batches, metrics, stopped)?;
        std::thread::Builder::new().name("engine-events".to_owned()).spawn(move || thread.run())?;
        Ok(Self { stop })
    }
}

impl Drop for EngineListener {
    fn drop(&mut self) {
        // A closed end says as much.
        let _ = (&self.stop).write(&[0]);
    }
}

#[cfg(test)]
mod tests;
