//! `dynamo bench`.

use std::process::ExitCode;

use dynamo_trace::{BenchArgs, run_until};
use tokio_util::sync::CancellationToken;

/// Runs the load generator; an interrupt ends the load and still reports what was measured.
pub fn run(args: BenchArgs) -> ExitCode {
    crate::descriptors::raise_limit();
    // One thread: streams need no locks between them, and the server keeps the other cores.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let stop = CancellationToken::new();
    let outcome = runtime.block_on(async {
        let run = run_until(args, stop.clone());
        tokio::pin!(run);
        tokio::select! {
            outcome = &mut run => return outcome,
            _ = tokio::signal::ctrl_c() => stop.cancel(),
        }
        run.await
    });
    match outcome {
        Ok(report) => ExitCode::from(report.exit_code()),
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
