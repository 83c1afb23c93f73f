//! Logs, trace context and request ids.
//!
//! A binary calls [`install`] once; libraries only emit `tracing` events. No payload and no secret belongs in a log.

mod filter;
mod jsonl;
mod options;
mod request_id;
mod subscriber;
mod trace_context;

pub use options::{LogFormat, LogOptions};
pub use request_id::{MAX_REQUEST_ID_BYTES, REQUEST_ID_HEADER, request_id};
pub use subscriber::{install, subscriber};
pub use trace_context::{TRACEPARENT, TRACESTATE, TraceContext};

/// Why logging cannot start.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// A filter that does not parse.
    #[error("{origin}: bad log filter {filter:?}: {reason}; write e.g. info,dynamo_runtime=debug")]
    Filter {
        /// The variable or file that holds it.
        origin: String,
        /// The filter as given.
        filter: String,
        /// What the parser said.
        reason: String,
    },
    /// The file of `DYN_LOGGING_CONFIG_PATH` cannot be used.
    #[error("the logging configuration {path} cannot be used: {reason}")]
    File {
        /// The path.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// A truth value that is none.
    #[error("{name}={value:?}: {reason}")]
    Variable {
        /// The variable.
        name: &'static str,
        /// Its value.
        value: String,
        /// What is wrong.
        reason: String,
    },
    /// A subscriber is there already.
    #[error("logging is already initialised in this process")]
    AlreadyInstalled,
}

#[cfg(test)]
mod tests;
