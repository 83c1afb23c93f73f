//! A process from its first line to its exit code.

use std::process::ExitCode;

use dynamo_runtime::{Runtime, ShutdownLimits, ShutdownReason};
use tokio::signal::unix::{SignalKind, signal};

/// Exit code of a process that could not start: a bad flag, a port in use, a missing file.
const EXIT_USAGE: u8 = 2;

/// A fault of the set-up: printed as one line that says what to do, exit code 2. Anything else is a fault of ours or
/// of the surroundings while running: exit code 1.
#[derive(Debug)]
pub(crate) struct StartError(pub(crate) anyhow::Error);

impl std::fmt::Display for StartError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#}", self.0)
    }
}

impl std::error::Error for StartError {}

/// Runs `main` on a tokio runtime of `threads` (none: one per core), with SIGINT and SIGTERM bound to the phases of
/// shutdown: the first one drains, a second one does not wait. Returns when `main` has returned and the runtime is
/// closed, or when the runtime is closed and `main` still starts.
pub(crate) fn run<Main, Running>(threads: Option<usize>, limits: ShutdownLimits, main: Main) -> ExitCode
where
    Main: FnOnce(Runtime) -> Running,
    Running: Future<Output = anyhow::Result<()>>,
{
    let descriptors = crate::descriptors::raise_limit();
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    if let Some(threads) = threads {
        builder.worker_threads(threads.max(1));
    }
    let tokio = match builder.enable_all().thread_name("dynamo").build() {
        Ok(tokio) => tokio,
        Err(error) => return report(&anyhow::Error::from(error).context("cannot start threads")),
    };
    let result = tokio.block_on(async {
        let runtime = Runtime::with_limits(tokio.handle().clone(), limits);
        tracing::debug!(?descriptors, "descriptor limit");
        let signals = runtime.clone();
        runtime.scope().spawn("signals", async move { follow_signals(&signals).await });
        let result = tokio::select! {
            biased;
            result = main(runtime.clone()) => result,
            () = runtime.closed() => Ok(()),
        };
        let result = result.or_else(|error| unless_interrupted(error, runtime.is_shutting_down()));
        if !runtime.is_shutting_down() {
            runtime.shutdown(ShutdownReason::Requested);
        }
        runtime.closed().await;
        result
    });
    tokio.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => report(&error),
    }
}

/// A start that a signal ended is no fault of the set-up.
fn unless_interrupted(error: anyhow::Error, shutting_down: bool) -> anyhow::Result<()> {
    if shutting_down && error.chain().any(|cause| cause.is::<StartError>()) {
        tracing::info!("ended while starting: {error:#}");
        return Ok(());
    }
    Err(error)
}

pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    eprintln!("error: {error:#}");
    if error.chain().any(|cause| cause.is::<StartError>()) {
        ExitCode::from(EXIT_USAGE)
    } else {
        ExitCode::FAILURE
    }
}

async fn follow_signals(runtime: &Runtime) {
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        tracing::warn!("cannot install signal handlers: SIGTERM will end this process without a drain");
        return;
    };
    loop {
        let name = tokio::select! {
            _ = interrupt.recv() => "SIGINT",
            _ = terminate.recv() => "SIGTERM",
            () = runtime.scope().cancelled() => return,
        };
        tracing::info!(signal = name, "draining; another signal ends without waiting");
        // The second call does not wait, whoever made the first.
        runtime.shutdown(ShutdownReason::Signal(name));
    }
}

#[cfg(test)]
mod tests;
