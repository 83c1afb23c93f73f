//! The command: find the server, measure, print.

use std::io::Write;

use tokio_util::sync::CancellationToken;

use crate::{
    args::BenchArgs,
    client::{connect, first_model, resolve},
    comparison::{self, Comparison},
    difference::Difference,
    error::BenchError,
    plan::Plan,
    point::{Session, measure},
    report::{BenchReport, Report},
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
        BenchReport::Comparison(comparison) => table::comparison(comparison),
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
    let few_and_many = match args.difference.as_slice() {
        [] => None,
        [few, many] if 0 < *few && few < many => Some((*few, *many)),
        _ => {
            let why = "give two numbers of tokens, the smaller first, as in 64,512";
            return Err(BenchError::flag("--difference", why));
        }
    };
    let mut first = Side::find(args, "--server-pid").await?;
    let Some(url) = &args.versus else {
        let Some(tokens) = few_and_many else {
            let report = measure(&mut first.session, args, "measuring", stop).await?;
            return Ok(BenchReport::Point(Box::new(report)));
        };
        for round in 0..args.rounds {
            first.round(round, few_and_many, stop).await?;
        }
        return Ok(BenchReport::Difference(Box::new(Difference::of(tokens, first.points))));
    };
    let (url, server_pids) = (url.clone(), args.versus_pids.clone());
    let mut second = Side::find(&BenchArgs { url, server_pids, ..args.clone() }, "--versus-pid").await?;
    for round in 0..args.rounds {
        first.round(round, few_and_many, stop).await?;
        second.round(round, few_and_many, stop).await?;
    }
    let (first, second) = (first.finish(few_and_many), second.finish(few_and_many));
    Ok(BenchReport::Comparison(Box::new(Comparison::of(first, second))))
}

/// A server under test, and its points so far.
struct Side {
    session: Session,
    args: BenchArgs,
    points: Vec<Report>,
}

impl Side {
    /// Checks all flags before anything is sent, then finds the server.
    async fn find(args: &BenchArgs, pid_flag: &'static str) -> Result<Self, BenchError> {
        let plan = Plan::new(args)?;
        let watch = Watch::new(pid_flag, &args.server_pids)?;
        let address = resolve(&plan.target).await?;
        let model = match &args.model {
            Some(model) => {
                connect(&plan.target, address).await?;
                model.clone()
            }
            None => first_model(&plan.target, address, &args.headers).await?,
        };
        Ok(Self { session: Session { address, model, watch }, args: args.clone(), points: Vec::new() })
    }

    /// One point, or one with few and one with many tokens.
    async fn round(
        &mut self,
        round: u32,
        few_and_many: Option<(u32, u32)>,
        stop: &CancellationToken,
    ) -> Result<(), BenchError> {
        let asked =
            few_and_many.map_or(vec![self.args.output_tokens], |(few, many)| vec![Some(few), Some(many)]);
        for output_tokens in asked {
            if stop.is_cancelled() {
                break;
            }
            // Other texts in every run, or the server's caches would make the later ones cheaper.
            let seed = self.args.seed + self.points.len() as u64;
            let args = BenchArgs { output_tokens, seed, ..self.args.clone() };
            let tokens = output_tokens.map_or(String::new(), |tokens| format!(", {tokens} tokens"));
            let what = format!("{} round {}/{}{tokens}", args.url, round + 1, args.rounds);
            self.points.push(measure(&mut self.session, &args, &what, stop).await?);
        }
        Ok(())
    }

    fn finish(self, few_and_many: Option<(u32, u32)>) -> comparison::Side {
        comparison::Side::of(self.args.url, self.session.model, few_and_many, self.points)
    }
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
