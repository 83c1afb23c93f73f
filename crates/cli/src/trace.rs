//! `dynamo trace`.

use std::process::ExitCode;

use dynamo_trace::{TraceArgs, run_trace};

/// Checks, describes, makes or converts a trace.
pub fn run(args: TraceArgs) -> ExitCode {
    match run_trace(args) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
