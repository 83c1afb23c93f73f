//! The load generator as a program of its own.

use std::process::ExitCode;

use clap::Parser;
use dynamo_trace::{BenchArgs, run_until};
use tokio_util::sync::CancellationToken;

/// Loads an OpenAI-compatible server
#[derive(Parser)]
struct Command {
    #[command(flatten)]
    args: BenchArgs,
}

fn main() -> ExitCode {
    let args = Command::parse().args;
    raise_descriptor_limit();
    // One thread: streams need no locks between them, and the server keeps the other cores.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: {error}");
            return ExitCode::from(2);
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

/// Ten thousand streams need as many descriptors.
fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        // Too low a limit shows in the report, as failed connections.
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}
