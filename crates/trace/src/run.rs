//! The command: find the server, measure, print.

use std::io::Write;

use tokio_util::sync::CancellationToken;

use crate::{
    args::BenchArgs,
    client::{connect, first_model, resolve},
    difference::Difference,
    error::BenchError,
    plan::Plan,
    point::{Session, measure},
    report::BenchReport,
    table,
    watch::Watch,
};

/// Runs the command that the flags describe, prints the table and writes the JSON.
///
/// It is cheapest on a current-thread runtime: it shares the machine with what it measures.
///
/// # Errors
/// If it cannot start: bad flags, nobody listening, no such process. Failed requests are part of the report.
pub async fn run(args: BenchArgs) -> Result<BenchReport, BenchError> {
    run_until(args, CancellationToken::new()).await
}

/// Like [`run`]; when `stop` is cancelled, no further request is sent, those in flight are awaited, and the report says
/// that it was interrupted.
///
/// # Errors
/// As [`run`].
pub async fn run_until(args: BenchArgs, stop: CancellationToken) -> Result<BenchReport, BenchError> {
    let report = measure_all(&args, &stop).await?;
    let text = match &report {
        BenchReport::Point(point) => table::point(point),
        BenchReport::Difference(difference) => table::difference(difference),
    };
    let failed = |path: &str| {
        let path = path.to_owned();
        move |source| BenchError::Report { path, source }
    };
    match args.json.as_deref() {
        Some(path) if path.as_os_str() == "-" => {
            write(&mut std::io::stderr(), &text).map_err(failed("standard error"))?;
            write(&mut std::io::stdout(), &json(&report)).map_err(failed("standard output"))?;
        }
        path => {
            write(&mut std::io::stdout(), &text).map_err(failed("standard output"))?;
            if let Some(path) = path {
                std::fs::write(path, json(&report)).map_err(failed(&path.display().to_string()))?;
            }
        }
    }
    Ok(report)
}

/// Runs what the flags describe, without printing.
///
/// # Errors
/// As [`run`].
pub async fn measure_all(args: &BenchArgs, stop: &CancellationToken) -> Result<BenchReport, BenchError> {
    // All flags are checked before anything is sent.
    let plan = Plan::new(args)?;
    let few_and_many = match args.difference.as_slice() {
        [] => None,
        [few, many] if 0 < *few && few < many => Some((*few, *many)),
        _ => {
            return Err(BenchError::flag(
                "--difference",
                "give two numbers of tokens, the smaller first, as in 64,512",
            ));
        }
    };
    let watch = Watch::new(&args.server_pids)?;
    let address = resolve(&plan.target).await?;
    let model = match &args.model {
        Some(model) => {
            connect(&plan.target, address).await?;
            model.clone()
        }
        None => first_model(&plan.target, address, &args.headers).await?,
    };
    drop(plan);
    let mut session = Session { address, model, watch };
    let Some((few, many)) = few_and_many else {
        let report = measure(&mut session, args, "measuring", stop).await?;
        return Ok(BenchReport::Point(Box::new(report)));
    };
    let mut points = Vec::new();
    for round in 0..args.rounds {
        for tokens in [few, many] {
            if stop.is_cancelled() {
                break;
            }
            // Other prompts in every run, or the server's caches would make the later ones cheaper.
            let seed = args.seed + points.len() as u64;
            let args =
                BenchArgs { output_tokens: Some(tokens), difference: Vec::new(), seed, ..args.clone() };
            let what = format!("round {}/{}, {tokens} tokens", round + 1, args.rounds);
            points.push(measure(&mut session, &args, &what, stop).await?);
        }
    }
    Ok(BenchReport::Difference(Box::new(Difference::of((few, many), points))))
}

fn json(report: &BenchReport) -> String {
    // Maps have integer or text keys only, and numbers are finite: this cannot fail.
    let mut text = serde_json::to_string_pretty(report).unwrap_or_default();
    text.push('\n');
    text
}

fn write(to: &mut dyn Write, text: &str) -> std::io::Result<()> {
    to.write_all(text.as_bytes())?;
    to.flush()
}
