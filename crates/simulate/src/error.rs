//! Why there is nothing to report.

use dynamo_trace::TraceError;

/// Why a simulation could not run. Requests that no worker takes are part of the report.
#[derive(Debug, thiserror::Error)]
pub enum SimulateError {
    /// The trace cannot be read.
    #[error("--trace: {0}")]
    Trace(#[from] TraceError),
    /// A flag's value makes no sense.
    #[error("{flag}: {why}")]
    Flag {
        /// The flag.
        flag: &'static str,
        /// What to give instead.
        why: String,
    },
    /// The workers cannot be as described.
    #[error(transparent)]
    Engine(#[from] dynamo_mocker::MockConfigError),
    /// The router cannot be as described.
    #[error("router: {0}")]
    Router(#[from] dynamo_kv_router::ConfigError),
    /// There are too many workers.
    #[error(transparent)]
    Workers(#[from] dynamo_kv_router::AddWorkerError),
    /// The report cannot be written.
    #[error("cannot write the report to {path}: {source}")]
    Report {
        /// Where to.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
}

impl SimulateError {
    /// The exit code for it: like every start-up error.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        2
    }

    pub(crate) fn flag(flag: &'static str, why: impl Into<String>) -> Self {
        Self::Flag { flag, why: why.into() }
    }
}
