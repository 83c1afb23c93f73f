use std::time::Duration;

use crate::identity::{EndpointId, WorkerId};
use crate::request_plane::StreamError;

/// Why a request was accepted by nobody.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody serves the endpoint.
    #[error("no worker serves {endpoint}; start one, or wait until it has registered")]
    NoInstances {
        /// The endpoint.
        endpoint: EndpointId,
    },
    /// Nobody has come in the time given.
    #[error("no worker of {endpoint} has come within {waited:?}; is one running with the same discovery?")]
    NobodyCame {
        /// The endpoint.
        endpoint: EndpointId,
        /// How long was waited.
        waited: Duration,
    },
    /// The worker that was named does not serve the endpoint.
    #[error("worker {worker:x} does not serve {endpoint}")]
    UnknownInstance {
        /// The endpoint.
        endpoint: EndpointId,
        /// The worker.
        worker: WorkerId,
    },
    /// The worker that was named takes nothing new.
    #[error("worker {worker:x} of {endpoint} is draining; choose another")]
    Draining {
        /// The endpoint.
        endpoint: EndpointId,
        /// The worker.
        worker: WorkerId,
    },
    /// All were tried.
    #[error("none of {attempts} workers of {endpoint} accepted the request; the last one: {last}")]
    Refused {
        /// The endpoint.
        endpoint: EndpointId,
        /// How many were tried.
        attempts: usize,
        /// Why the last one did not.
        last: StreamError,
    },
    /// The worker that was named failed, or the request can be accepted by none.
    #[error(transparent)]
    Failed(#[from] StreamError),
}

impl ClientError {
    /// Whether another worker may accept the request: none has.
    pub fn is_retriable(&self) -> bool {
        match self {
            Self::UnknownInstance { .. } | Self::Draining { .. } => true,
            Self::Failed(error) => error.is_retriable(),
            Self::NoInstances { .. } | Self::NobodyCame { .. } | Self::Refused { .. } => false,
        }
    }

    /// What the request plane said, if the request got that far.
    pub fn stream_error(&self) -> Option<&StreamError> {
        match self {
            Self::Refused { last, .. } => Some(last),
            Self::Failed(error) => Some(error),
            _ => None,
        }
    }
}
