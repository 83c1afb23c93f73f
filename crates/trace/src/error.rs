//! Why a run could not start or go on.

use crate::{mooncake::TraceError, target::Target, target::TargetError};

/// Why there is no report. Failed requests are no such reason: they are counted in the report.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The URL is no URL.
    #[error("--url: {0}")]
    Url(#[from] TargetError),
    /// A flag's value makes no sense.
    #[error("{flag}: {why}")]
    Flag {
        /// The flag.
        flag: &'static str,
        /// What to give instead.
        why: String,
    },
    /// The trace cannot be replayed.
    #[error("--trace: {0}")]
    Trace(#[from] TraceError),
    /// Nobody answers.
    #[error("cannot connect to {target}: {why}; start the server, or name its address with --url")]
    Connect {
        /// Where.
        target: Target,
        /// What the system said.
        why: String,
    },
    /// The server has no model, or does not say which.
    #[error(
        "{target} names no model at /v1/models ({why}); wait until one is ready, or name it with --model"
    )]
    NoModel {
        /// Where.
        target: Target,
        /// What came instead.
        why: String,
    },
    /// A process to watch is not there.
    #[error("process {name}={pid}: {source}; give the id of a running process")]
    Process {
        /// Its name in the report.
        name: String,
        /// Its id.
        pid: u32,
        /// What the system said.
        source: std::io::Error,
    },
    /// Not one of the streams to hold open was answered.
    #[error("none of the {asked} streams to hold open was answered: {why}")]
    NoOpenStream {
        /// How many were asked for.
        asked: u32,
        /// The first failure.
        why: String,
    },
    /// The report cannot be written.
    #[error("cannot write the report to {path}: {source}")]
    Report {
        /// Where to.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A task of the generator died; a defect of its own.
    #[error("the load generator failed: {0}")]
    Task(#[from] tokio::task::JoinError),
}

impl BenchError {
    /// The exit code for it: like every start-up error.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        2
    }

    pub(crate) fn flag(flag: &'static str, why: impl Into<String>) -> Self {
        Self::Flag { flag, why: why.into() }
    }
}
