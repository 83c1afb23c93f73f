//! The command: read the trace, run every router at every load, print.

use std::{
    io::Write,
    path::Path,
    sync::OnceLock,
    sync::atomic::{AtomicUsize, Ordering},
};

use dynamo_trace::{TraceRequest, read_trace};

use crate::{Mode, Outcome, Report, Setting, SimulateArgs, SimulateError, page, simulate, table};

/// With `--until-saturated`, at most 65,536 times the load that was given: a trace that is short can never be too much.
const MAX_DOUBLINGS: usize = 16;

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
    let at = |load: f64, modes: &[Mode]| {
        modes
            .iter()
            .map(|&mode| Ok((load, args.setting(mode, load)?)))
            .collect::<Result<Vec<_>, SimulateError>>()
    };
    let mut settings = Vec::new();
    for &load in &args.load {
        settings.extend(at(load, &modes)?);
    }
    let mut requests = read_trace(&args.trace)?;
    if let Some(most) = args.requests {
        requests.truncate(usize::try_from(most).unwrap_or(usize::MAX));
    }
    let mut outcomes = run_all(&requests, &settings)?;
    if args.until_saturated {
        let mut load = args.load.iter().copied().fold(f64::MIN_POSITIVE, f64::max);
        for _ in 0..MAX_DOUBLINGS {
            let saturated = |mode: &Mode| outcomes.iter().any(|o: &Outcome| o.mode == *mode && o.saturated);
            let left: Vec<Mode> = modes.iter().copied().filter(|mode| !saturated(mode)).collect();
            if left.is_empty() {
                break;
            }
            load *= 2.0;
            outcomes.extend(run_all(&requests, &at(load, &left)?)?);
        }
    }
    Ok(Report { version: env!("CARGO_PKG_VERSION"), parameters: args.clone(), outcomes })
}

/// Runs the settings, each with the load that it is told by, on as many threads as there are cores.
fn run_all(requests: &[TraceRequest], settings: &[(f64, Setting)]) -> Result<Vec<Outcome>, SimulateError> {
    let next = AtomicUsize::new(0);
    let outcomes: Vec<OnceLock<Result<Outcome, SimulateError>>> =
        settings.iter().map(|_| OnceLock::new()).collect();
    let work = || {
        while let Some((place, (load, setting))) = {
            let place = next.fetch_add(1, Ordering::Relaxed);
            settings.get(place).map(|setting| (place, setting))
        } {
            let outcome = simulate(requests, setting).map(|outcome| Outcome { load: *load, ..outcome });
            // Each place is taken once.
            let _ = outcomes[place].set(outcome);
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(settings.len());
    std::thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(work);
        }
        work();
    });
    outcomes.into_iter().filter_map(OnceLock::into_inner).collect()
}
