use dynamo_wire::{CancelReason, Failure, FailureCode, OpenRefused};

/// Why a stream was not opened. Of these, [`StreamError::is_retriable`] ones may be sent to another worker.
pub type OpenError = StreamError;

/// Why a stream has no clean end.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// Nobody serves the path, the process goes away, or it can't be reached.
    #[error("unavailable: {0}")]
    Unavailable(String),
    /// A bound was hit.
    #[error("overloaded: {0}")]
    Overloaded(String),
    /// The connection was lost.
    #[error("the connection to the worker was lost")]
    Disconnected,
    /// The request's time ran out.
    #[error("the request's time ran out")]
    DeadlineExceeded,
    /// Taken back.
    #[error("the request was cancelled: {0:?}")]
    Cancelled(CancelReason),
    /// The reader took nothing for longer than the stall limit.
    #[error("the answer was not read in time")]
    SlowReader,
    /// The serving end let go of the stream without ending it.
    #[error("the worker dropped the request before its answer was complete")]
    Incomplete,
    /// Request or item longer than the other end accepts.
    #[error("too large: {0}")]
    TooLarge(String),
    /// The serving end's own failure.
    #[error("{message} (code {code})")]
    Application {
        /// The application's own code.
        code: u16,
        /// For logs; cut to 1 KiB on the way.
        message: String,
    },
}

impl StreamError {
    /// Whether a request that failed so before it was accepted may be sent to another worker.
    pub fn is_retriable(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Overloaded(_) | Self::Disconnected | Self::Incomplete)
    }
}

impl From<Failure> for StreamError {
    fn from(failure: Failure) -> Self {
        let Failure { code, detail, text } = failure;
        match code {
            FailureCode::Unavailable => Self::Unavailable(text),
            FailureCode::Overloaded => Self::Overloaded(text),
            FailureCode::DeadlineExceeded => Self::DeadlineExceeded,
            FailureCode::Cancelled => Self::Cancelled(CancelReason::from_wire(detail)),
            FailureCode::SlowReader => Self::SlowReader,
            FailureCode::Incomplete => Self::Incomplete,
            FailureCode::TooLarge => Self::TooLarge(text),
            FailureCode::Application => Self::Application { code: detail, message: text },
            FailureCode::Other(code) => Self::Application { code, message: text },
        }
    }
}

impl From<StreamError> for Failure {
    fn from(error: StreamError) -> Self {
        let (code, detail, text) = match error {
            StreamError::Unavailable(text) => (FailureCode::Unavailable, 0, text),
            StreamError::Overloaded(text) => (FailureCode::Overloaded, 0, text),
            // Told by a worker, it is of a worker behind it.
            StreamError::Disconnected => {
                (FailureCode::Unavailable, 0, "lost a connection behind it".to_owned())
            }
            StreamError::DeadlineExceeded => (FailureCode::DeadlineExceeded, 0, String::new()),
            StreamError::Cancelled(reason) => (FailureCode::Cancelled, reason.to_wire(), String::new()),
            StreamError::SlowReader => (FailureCode::SlowReader, 0, String::new()),
            StreamError::Incomplete => (FailureCode::Incomplete, 0, String::new()),
            StreamError::TooLarge(text) => (FailureCode::TooLarge, 0, text),
            StreamError::Application { code, message } => (FailureCode::Application, code, message),
        };
        Failure { code, detail, text }
    }
}

impl From<OpenRefused> for StreamError {
    fn from(refused: OpenRefused) -> Self {
        match refused {
            OpenRefused::NotEstablished | OpenRefused::Exhausted => Self::Unavailable(refused.to_string()),
            OpenRefused::TooManyStreams => Self::Overloaded(refused.to_string()),
            OpenRefused::HeadTooLarge | OpenRefused::PayloadTooLarge { .. } => {
                Self::TooLarge(refused.to_string())
            }
        }
    }
}

/// Why a request plane did not start.
#[derive(Debug, thiserror::Error)]
pub enum PlaneError {
    /// The address can't be bound.
    #[error("cannot listen for requests on {address}: {source}; choose another host or port")]
    Bind {
        /// As configured.
        address: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The advertised host has no address.
    #[error("the advertised host {host} has no address: {reason}; give an address or a name that resolves")]
    AdvertisedHost {
        /// As configured.
        host: String,
        /// Why.
        reason: String,
    },
}
