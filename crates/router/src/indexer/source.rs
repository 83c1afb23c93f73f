//! The contract between an engine's listener and the index.

use std::sync::{
    Arc,
    atomic::{AtomicU8, Ordering},
};

use dynamo_engine_api::{KvCacheEventData, StorageTier};
use dynamo_kv_router::WorkerRank;
use dynamo_runtime::TaskScope;
use dynamo_tokens::BlockSize;
use tokio::sync::mpsc;

use super::progress::Progress;

/// Whom to listen to.
#[derive(Clone, Debug)]
pub struct ListenTo {
    /// Whose events they are.
    pub rank: WorkerRank,
    /// Where the engine publishes, as in `tcp://host:port`.
    pub endpoint: String,
    /// Where it gives again what was lost, if it does.
    pub replay_endpoint: Option<String>,
    /// Tokens per block; events of other sizes are not taken.
    pub block_size: BlockSize,
}

/// What a listener hands on.
#[derive(Clone, Debug, PartialEq)]
pub enum Delivery {
    /// One message of the engine, decoded.
    Batch {
        /// The engine's number of it.
        sequence: u64,
        /// In the engine's order.
        events: Vec<(StorageTier, KvCacheEventData)>,
    },
    /// The engine began anew: it holds nothing.
    Restarted,
    /// Messages were lost for good, so many if that is known.
    Lost(u64),
}

/// A delivery on its way, with whom it is of and in which registration.
#[derive(Debug)]
pub(super) struct Delivered {
    pub(super) rank: WorkerRank,
    pub(super) generation: u64,
    pub(super) delivery: Delivery,
    pub(super) progress: Arc<Progress>,
}

/// The way from a listener to its index. It is bounded: a listener waits for room, and the engine's socket keeps what
/// comes meanwhile.
#[derive(Clone, Debug)]
pub struct Deliveries {
    rank: WorkerRank,
    generation: u64,
    lane: mpsc::Sender<Delivered>,
    progress: Arc<Progress>,
}

/// Nobody wants the deliveries any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the engine is not registered any more")]
pub struct Unregistered;

impl Deliveries {
    pub(super) fn new(
        rank: WorkerRank,
        generation: u64,
        lane: mpsc::Sender<Delivered>,
        progress: Arc<Progress>,
    ) -> Self {
        Self { rank, generation, lane, progress }
    }

    fn of(&self, delivery: Delivery) -> Delivered {
        match &delivery {
            Delivery::Batch { sequence, .. } => self.progress.heard(*sequence),
            Delivery::Restarted => self.progress.heard_restart(),
            Delivery::Lost(_) => {}
        }
        Delivered { rank: self.rank, generation: self.generation, delivery, progress: self.progress.clone() }
    }

    /// Hands one on, when there is room.
    pub async fn deliver(&self, delivery: Delivery) -> Result<(), Unregistered> {
        self.lane.send(self.of(delivery)).await.map_err(|_| Unregistered)
    }

    /// The same for a listener with a thread of its own.
    pub fn deliver_blocking(&self, delivery: Delivery) -> Result<(), Unregistered> {
        self.lane.blocking_send(self.of(delivery)).map_err(|_| Unregistered)
    }
}

/// What a listener is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ListenerStatus {
    /// It is not connected yet.
    Pending,
    /// What comes is applied.
    Active,
    /// What comes waits until a recovery is over.
    Paused,
    /// It ended, or was never connected.
    Failed,
}

impl ListenerStatus {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Pending, Self::Active, Self::Paused, Self::Failed];

    /// As `/workers` and metrics write it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Paused => "paused",
            Self::Failed => "failed",
        }
    }

    /// How far from working it is.
    pub(super) const fn trouble(self) -> u8 {
        match self {
            Self::Active => 0,
            Self::Paused => 1,
            Self::Pending => 2,
            Self::Failed => 3,
        }
    }
}

/// A listener's status, shared with who shows it.
#[derive(Clone, Debug, Default)]
pub struct StatusCell(Arc<AtomicU8>);

impl StatusCell {
    /// What the listener itself says; whether it is paused is the registry's to say.
    pub fn set(&self, status: ListenerStatus) {
        self.0.store(status as u8, Ordering::Relaxed);
    }

    /// What was set last; [`ListenerStatus::Pending`] at first.
    pub fn get(&self) -> ListenerStatus {
        let value = self.0.load(Ordering::Relaxed);
        ListenerStatus::ALL
            .into_iter()
            .find(|status| *status as u8 == value)
            .unwrap_or(ListenerStatus::Failed)
    }
}

/// What listens to engines.
pub trait EventSource: Send + Sync + 'static {
    /// Begins to listen, on tasks of `scope`, until that is cancelled. Deliveries of one rank keep their order. Trouble
    /// that may pass is for the listener to deal with; what may not is told in `status`.
    fn listen(&self, to: ListenTo, deliveries: Deliveries, status: StatusCell, scope: TaskScope);
}

/// Why an address is none at which an engine publishes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid ZMQ endpoint `{endpoint}`: {reason}")]
pub struct EndpointError {
    /// As it was given.
    pub endpoint: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

/// Longer addresses are refused.
const MAX_ENDPOINT: usize = 1024;

/// Checks the address of an engine: `tcp://host:port` or `ipc://path`.
pub fn check_endpoint(endpoint: &str) -> Result<(), EndpointError> {
    let fail =
        |reason| Err(EndpointError { endpoint: endpoint.chars().take(MAX_ENDPOINT).collect(), reason });
    if endpoint.len() > MAX_ENDPOINT {
        return fail("too long");
    }
    match endpoint.split_once("://") {
        None => fail("missing scheme"),
        Some(("tcp", address)) => {
            let Some((host, port)) = address.rsplit_once(':') else { return fail("missing port") };
            if host.is_empty() || host == "*" {
                return fail("missing host");
            }
            match port.parse::<u16>() {
                Ok(1..) => Ok(()),
                _ => fail("the port is not a number from 1 to 65535"),
            }
        }
        Some(("ipc", "")) => fail("missing path"),
        Some(("ipc", _)) => Ok(()),
        Some(_) => fail("unknown scheme; use tcp or ipc"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_that_no_engine_can_have_are_told_apart() {
        for good in ["tcp://127.0.0.1:5557", "tcp://[::1]:1", "tcp://worker-0.ns:65535", "ipc:///tmp/kv"] {
            assert_eq!(check_endpoint(good), Ok(()), "{good}");
        }
        for (bad, reason) in [
            ("bogus", "missing scheme"),
            ("tcp://host", "missing port"),
            ("tcp://:1", "missing host"),
            ("tcp://*:1", "missing host"),
            ("tcp://host:0", "the port is not a number from 1 to 65535"),
            ("ipc://", "missing path"),
            ("udp://host:1", "unknown scheme; use tcp or ipc"),
        ] {
            assert_eq!(check_endpoint(bad).unwrap_err().reason, reason, "{bad}");
        }
        let told = check_endpoint("bogus").unwrap_err().to_string();
        assert_eq!(told, "invalid ZMQ endpoint `bogus`: missing scheme");
    }

    #[test]
    fn a_status_is_pending_until_it_is_set() {
        let cell = StatusCell::default();
        assert_eq!(cell.get(), ListenerStatus::Pending);
        for status in ListenerStatus::ALL {
            cell.set(status);
            assert_eq!(cell.get(), status);
        }
    }
}
