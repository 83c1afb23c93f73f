use crate::discovery::DiscoveryError;
use crate::metrics::MetricsError;
use crate::request_plane::PlaneError;
use crate::system::SystemError;

/// Why a distributed runtime did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The runtime is on its way out.
    #[error("the process is shutting down")]
    ShuttingDown,
    /// Discovery cannot be opened, or the identity is another's.
    #[error(transparent)]
    Discovery(#[from] DiscoveryError),
    /// The request plane cannot listen.
    #[error(transparent)]
    RequestPlane(#[from] PlaneError),
    /// A metric is taken.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// The system server cannot listen.
    #[error(transparent)]
    System(#[from] SystemError),
}

/// Why something is not served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The runtime is on its way out.
    #[error("the process is shutting down")]
    ShuttingDown,
    /// It cannot be registered.
    #[error(transparent)]
    Discovery(#[from] DiscoveryError),
}
