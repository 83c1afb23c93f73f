//! One measured point: warm up, load, count, judge.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use tokio_util::sync::CancellationToken;

use crate::{
    args::BenchArgs,
    arrival::Arrivals,
    cache_limit::cached_share,
    client::Client,
    distribution::Distribution,
    error::BenchError,
    load::{Limit, Load, closed_loop, open_loop, watch_timer},
    meter::Meter,
    plan::{Plan, Shape},
    population::{OpenStreams, Population},
    process::own_cpu,
    progress::{PERIOD, Progress},
    report::{CacheUse, Events, FailureCount, GeneratorUse, Report, Requests, Tokens, WorkerSpread},
    request::{RequestOptions, RequestTemplate},
    validity,
    watch::{ServerUse, Watch},
    workload::Workload,
};

/// What the server still does after its last answer (events, logs) belongs to the load: its CPU time is read this much later.
const SETTLE: Duration = Duration::from_millis(100);
/// How often the server's memory is sampled.
const SAMPLE_PERIOD: Duration = Duration::from_secs(1);

/// The server, found and asked.
pub(crate) struct Session {
    pub(crate) address: SocketAddr,
    pub(crate) model: String,
    pub(crate) watch: Watch,
}

/// What was seen besides the meter's counts.
struct Seen {
    offered: Option<u64>,
    own: (Duration, Duration),
    /// The generator's time, which ends with the last answer.
    elapsed: Duration,
    servers: Vec<ServerUse>,
    open: Option<OpenStreams>,
    interrupted: bool,
}

/// Measures one point. `what` names it in the progress bar.
pub(crate) async fn measure(
    session: &mut Session,
    args: &BenchArgs,
    what: &str,
    stop: &CancellationToken,
) -> Result<Report, BenchError> {
    let plan = Plan::new(args)?;
    let options = RequestOptions {
        model: &session.model,
        headers: &args.headers,
        extra_body: args.extra_body.as_deref(),
        ignore_eos: !args.stop_at_eos,
        worker_ids: args.worker_ids,
    };
    let template = RequestTemplate::new(&plan.target, &options)?;
    let keep = !args.new_connections;
    let client = Arc::new(Client::new(session.address, template, plan.timeout, keep, args.worker_ids));
    session.watch.restart();

    let population = match args.open_streams {
        0 => None,
        streams => {
            let held = Plan::held(args);
            Some(Population::open(&client, held, streams, args.open_rate, plan.timeout, stop).await?)
        }
    };
    warm_up(&plan, args, &client, stop).await?;
    session.watch.restart_cpu();

    let started_at = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let own = own_cpu();
    let meter = Arc::new(Meter::new(Instant::now(), plan.window()));
    let load =
        Load { client, workload: Arc::new(plan.workload.clone()), meter: meter.clone(), stop: stop.clone() };
    let progress = Progress::new(args.progress, what.to_owned(), plan.request_count(), plan.window());
    let offered = tokio::select! {
        offered = drive(&plan, args, &load) => offered?,
        never = watch_timer(&meter) => never,
        never = monitor(&progress, &meter, &mut session.watch) => never,
    };
    drop(progress);
    let own_end = own_cpu();
    let elapsed = meter.start.elapsed();
    tokio::time::sleep(SETTLE).await;
    let (tokens, requests) = meter.with(|counts| (counts.completion_tokens, counts.ok));
    let mut servers = session.watch.finish(tokens, requests);
    let open = population.as_ref().map(Population::look);
    if let Some(open) = open.as_ref().filter(|open| open.open_at_end > 0) {
        for server in &mut servers {
            let grown = server.rss_end_bytes as f64 - server.rss_start_bytes as f64;
            server.rss_per_open_stream_bytes = Some(grown / open.open_at_end as f64);
        }
    }
    if let Some(population) = population {
        population.close().await;
    }
    // Idle connections close with the client.
    drop(load);
    if !plan.after.is_zero() {
        tokio::select! {
            () = tokio::time::sleep(plan.after) => {}
            () = stop.cancelled() => {}
        }
        session.watch.look_again(&mut servers);
    }
    let own = (own_end.0.saturating_sub(own.0), own_end.1.saturating_sub(own.1));
    let seen = Seen { offered, own, elapsed, servers, open, interrupted: stop.is_cancelled() };
    Ok(report(&plan, args, session, started_at, &meter, seen))
}

async fn warm_up(
    plan: &Plan,
    args: &BenchArgs,
    client: &Arc<Client>,
    stop: &CancellationToken,
) -> Result<(), BenchError> {
    if args.warmup == 0 {
        return Ok(());
    }
    let (workload, concurrency) = plan.warmup(args);
    let meter = Arc::new(Meter::new(Instant::now(), None));
    let load = Load { client: client.clone(), workload: Arc::new(workload), meter, stop: stop.clone() };
    closed_loop(&load, concurrency, Limit { requests: Some(args.warmup), duration: None }).await
}

/// Makes the load; in open loop, returns how many requests were due.
async fn drive(plan: &Plan, args: &BenchArgs, load: &Load) -> Result<Option<u64>, BenchError> {
    let arrivals = match plan.shape {
        Shape::Closed { concurrency } => {
            closed_loop(load, concurrency, plan.limit).await?;
            return Ok(None);
        }
        Shape::Poisson { rate } => Arrivals::poisson(args.seed, rate),
        Shape::Schedule => Arrivals::schedule(&load.workload),
    };
    open_loop(load, arrivals, args.max_in_flight, plan.limit).await.map(Some)
}

/// Draws the bar and samples the server's memory, until dropped.
async fn monitor(progress: &Progress, meter: &Meter, watch: &mut Watch) -> ! {
    let mut sampled = Instant::now();
    loop {
        tokio::time::sleep(PERIOD).await;
        progress.draw(meter);
        if sampled.elapsed() >= SAMPLE_PERIOD {
            sampled = Instant::now();
            watch.sample();
        }
    }
}

fn report(
    plan: &Plan,
    args: &BenchArgs,
    session: &Session,
    started_at: u64,
    meter: &Meter,
    seen: Seen,
) -> Report {
    let failures = FailureCount::list(meter);
    meter.with(|counts| {
        let wall = counts.last_end.map_or(Duration::ZERO, |end| end - meter.start);
        let per_second = |n: u64| n as f64 / wall.as_secs_f64().max(1e-6);
        let offered = seen.offered.unwrap_or(counts.sent);
        let window = meter.window.filter(|window| !window.is_zero());
        let in_time = match meter.window {
            // The usual time of an answer is the median before a queue can have grown.
            Some(window) => {
                let usual = Duration::from_micros(counts.early.value_at_quantile(0.5));
                counts.ended_within(window + usual)
            }
            None => counts.ok,
        };
        let own = seen.own.0 + seen.own.1;
        let threads = tokio::runtime::Handle::current().metrics().num_workers().max(1);
        let mut report = Report {
            version: env!("CARGO_PKG_VERSION"),
            started_at,
            valid: true,
            reasons: Vec::new(),
            notes: Vec::new(),
            parameters: args.clone(),
            model: session.model.clone(),
            loop_kind: plan.loop_kind(),
            wall_seconds: wall.as_secs_f64(),
            requests: Requests {
                offered,
                sent: counts.sent,
                ok: counts.ok,
                failed: counts.failed(),
                served_share: if offered == 0 { 0.0 } else { in_time as f64 / offered as f64 },
                offered_per_second: window.map(|window| offered as f64 / window.as_secs_f64()),
                per_second: per_second(counts.ok),
                connections: counts.connections,
                reconnects: counts.reconnects,
            },
            tokens: Tokens {
                prompt: counts.prompt_tokens,
                completion: counts.completion_tokens,
                asked: counts.asked_tokens,
                per_second: per_second(counts.completion_tokens),
                prompt_per_trace_block: tokens_per_block(
                    &plan.workload,
                    counts.sent,
                    counts.ok,
                    counts.prompt_tokens,
                ),
            },
            events: Events {
                total: counts.events,
                with_text: counts.content_events,
                per_second: per_second(counts.events),
                answers_without_text: counts.without_content,
            },
            first_token: Distribution::of(&counts.first),
            between_tokens: Distribution::of(&counts.between),
            whole: Distribution::of(&counts.whole),
            failures,
            cache: cache_use(args, &plan.workload, offered, counts.cached_tokens, counts.prompt_tokens),
            workers: WorkerSpread::of(&counts.workers, args.workers),
            servers: seen.servers,
            generator: GeneratorUse {
                user_seconds: seen.own.0.as_secs_f64(),
                system_seconds: seen.own.1.as_secs_f64(),
                us_per_token: (counts.completion_tokens > 0)
                    .then(|| own.as_secs_f64() * 1e6 / counts.completion_tokens as f64),
                threads,
                cpu_share: own.as_secs_f64() / seen.elapsed.as_secs_f64().max(1e-6) / threads as f64,
                lateness: Distribution::of(&counts.lateness),
                timer_lag: Distribution::of(&counts.timer_lag),
            },
            open_streams: seen.open,
        };
        report.reasons = validity::reasons(&report, args.max_lateness_ms, !args.stop_at_eos);
        if seen.interrupted {
            report.reasons.push("the run was interrupted".into());
        }
        report.valid = report.reasons.is_empty();
        report.notes = notes(args, &report);
        report
    })
}

fn notes(args: &BenchArgs, report: &Report) -> Vec<String> {
    let mut notes = Vec::new();
    if report.requests.reconnects > 0 {
        notes.push(format!(
            "the server closed {} idle connections, which were opened anew",
            report.requests.reconnects
        ));
    }
    if report.events.answers_without_text > 0 {
        notes.push(format!("{} answers had no text, and no first token", report.events.answers_without_text));
    }
    if report.wall_seconds < validity::JUDGED_SECONDS {
        notes.push("too short to tell whether the generator was the limit: ask for more requests".into());
    }
    let lag = report.generator.timer_lag.p99_ms;
    if lag > args.max_lateness_ms {
        notes.push(format!(
            "timers here fired up to {lag:.1} ms late (99 of 100): times are no finer than that"
        ));
    }
    if args.worker_ids && report.workers.is_none() && report.requests.ok > 0 {
        notes.push("the server does not tell which worker answered".into());
    }
    notes
}

/// Prompt tokens over hash ids, when all that was sent was answered.
fn tokens_per_block(workload: &Workload, sent: u64, ok: u64, prompt_tokens: u64) -> Option<f64> {
    let Workload::Replay(replay) = workload else { return None };
    let blocks: usize =
        replay.requests.iter().take(sent as usize).map(|request| request.hash_ids.len()).sum();
    (sent == ok && blocks > 0).then(|| prompt_tokens as f64 / blocks as f64)
}

fn cache_use(
    args: &BenchArgs,
    workload: &Workload,
    offered: u64,
    cached_tokens: u64,
    prompt_tokens: u64,
) -> CacheUse {
    let share = if prompt_tokens == 0 { 0.0 } else { cached_tokens as f64 / prompt_tokens as f64 };
    let mut cache =
        CacheUse { cached_tokens, share, limit: None, unbounded_limit: None, share_of_limit: None };
    if let Workload::Replay(replay) = workload {
        let prompts =
            || replay.requests.iter().take(offered as usize).map(|request| request.hash_ids.as_slice());
        cache.unbounded_limit = Some(cached_share(prompts(), None));
        if let (Some(workers), Some(blocks)) = (args.workers, args.blocks_per_worker) {
            let limit = cached_share(prompts(), Some(workers as usize * blocks as usize));
            cache.limit = Some(limit);
            cache.share_of_limit = (limit > 0.0).then(|| share / limit);
        }
    }
    cache
}
