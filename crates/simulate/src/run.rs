//! The command: read the trace, run every router at every load, print.

use std::{
    io::Write,
    path::Path,
    sync::Mutex,
    sync::atomic::{AtomicUsize, Ordering},
};

use dynamo_trace::read_trace;

use crate::{Outcome, Report, Setting, SimulateArgs, SimulateError, page, simulate, table};

/// Runs what the flags describe, prints the table, and writes JSON and plots.
///
/// # Errors
/// If it cannot run.
pub fn run(args: SimulateArgs) -> Result<Report, SimulateError> {
    let report = simulate_all(&args)?;
    let text = table::table(&report);
    match args.json.as_deref() {
        Some(path) if path.as_os_str() == "-" => {
            write(Path::new("standard error"), |_| std::io::stderr().write_all(text.as_bytes()))?;
            write(Path::new("standard output"), |_| std::io::stdout().write_all(json(&report).as_bytes()))?;
        }
        path => {
            write(Path::new("standard output"), |_| std::io::stdout().write_all(text.as_bytes()))?;
            if let Some(path) = path {
                write(path, |path| std::fs::write(path, json(&report)))?;
            }
        }
    }
    if let Some(path) = args.html.as_deref() {
        write(path, |path| std::fs::write(path, page::page(&report)))?;
    }
    Ok(report)
}

fn write(path: &Path, to: impl FnOnce(&Path) -> std::io::Result<()>) -> Result<(), SimulateError> {
    to(path).map_err(|source| SimulateError::Report { path: path.display().to_string(), source })
}

fn json(report: &Report) -> String {
    // Maps have text keys only, and numbers are finite: this cannot fail.
    let mut text = serde_json::to_string_pretty(report).unwrap_or_default();
    text.push('\n');
    text
}

/// Runs what the flags describe, without printing; several runs at once where there are cores.
///
/// # Errors
/// If it cannot run.
pub fn simulate_all(args: &SimulateArgs) -> Result<Report, SimulateError> {
    let modes = if args.compare.is_empty() { vec![args.router_mode] } else { args.compare.clone() };
    let mut settings: Vec<(f64, Setting)> = Vec::new();
    for &load in &args.load {
        for &mode in &modes {
            settings.push((load, args.setting(mode, load)?));
        }
    }
    let mut requests = read_trace(&args.trace)?;
    if let Some(most) = args.requests {
        requests.truncate(usize::try_from(most).unwrap_or(usize::MAX));
    }
    let next = AtomicUsize::new(0);
    let outcomes: Vec<Mutex<Option<Result<Outcome, SimulateError>>>> =
        settings.iter().map(|_| Mutex::new(None)).collect();
    let work = || {
        while let Some((place, (load, setting))) = {
            let place = next.fetch_add(1, Ordering::Relaxed);
            settings.get(place).map(|setting| (place, setting))
        } {
            let outcome = simulate(&requests, setting).map(|outcome| Outcome { load: *load, ..outcome });
            *outcomes[place].lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(outcome);
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(settings.len());
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
    let done = outcomes
        .into_iter()
        .filter_map(|outcome| outcome.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner));
    Ok(Report {
        version: env!("CARGO_PKG_VERSION"),
        parameters: args.clone(),
        outcomes: done.collect::<Result<_, _>>()?,
    })
}
