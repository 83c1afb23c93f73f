//! The report as a page of plots.

use dynamo_trace::{Chart, Distribution, Page, Series, Shape};

use crate::{Outcome, Report, table};

/// Workers that get a line each; of more, the least, the mean and the most are drawn.
const DRAWN_WORKERS: usize = 8;
/// Samples over which the hit rate is averaged: single ones are noise.
const SMOOTHED: usize = 5;

/// As HTML that needs nothing else.
pub(crate) fn page(report: &Report) -> String {
    let args = &report.parameters;
    let mut page = Page::new(&format!("Simulation of {}", args.trace.display()));
    page.preformatted(&format!(
        "{} workers of {} blocks of {} tokens, seed {}, KV events {} ms late",
        args.workers, args.blocks, args.block_size, args.seed, args.event_delay_ms
    ));
    let mut head = vec![""];
    let names: Vec<String> = report.outcomes.iter().map(|outcome| name(report, outcome)).collect();
    head.extend(names.iter().map(String::as_str));
    let rows: Vec<Vec<String>> = table::rows()
        .into_iter()
        .map(|(name, value)| {
            std::iter::once(name.trim().to_owned()).chain(report.outcomes.iter().map(value)).collect()
        })
        .collect();
    page.table(&head, &rows);
    comparison(&mut page, report, &names);
    if several_loads(report) {
        levels(&mut page, report);
    }
    for (outcome, name) in report.outcomes.iter().zip(&names) {
        page.heading(&format!("Workers: {name}"));
        workers(&mut page, outcome);
    }
    page.finish()
}

fn several_loads(report: &Report) -> bool {
    report.outcomes.windows(2).any(|pair| pair[0].load != pair[1].load)
}

/// A run's name beside the others.
fn name(report: &Report, outcome: &Outcome) -> String {
    if several_loads(report) {
        format!("{}, load {}", outcome.mode, outcome.load)
    } else {
        outcome.mode.to_string()
    }
}

fn comparison(page: &mut Page, report: &Report, names: &[String]) {
    let chart = |chart: Chart, points: &dyn Fn(&Outcome) -> Vec<(f64, f64)>| {
        report.outcomes.iter().zip(names).fold(chart, |chart, (outcome, name)| {
            chart.series(Series::new(name, Shape::Line, points(outcome)))
        })
    };
    let first = Chart::new("Time to the first token", "ms", "share of requests").log_x();
    page.chart(&chart(first, &|outcome| cumulative(&outcome.first_token)));
    let between = Chart::new("Time between tokens", "ms", "share of tokens").log_x();
    page.chart(&chart(between, &|outcome| cumulative(&outcome.between_tokens)));
    // By the trace's own time, runs of several loads lie over one another.
    let time = if several_loads(report) { "s times load" } else { "s" };
    let hits = Chart::new("Cached share over time", time, "share of the prompt tokens");
    page.chart(&chart(hits, &hit_rate));
    let queue = Chart::new("Queue over time", time, "requests that wait, all workers");
    page.chart(&chart(queue, &|outcome| {
        outcome.samples.iter().map(|sample| (sample.seconds * outcome.load, sample.waiting as f64)).collect()
    }));
}

fn cumulative(distribution: &Distribution) -> Vec<(f64, f64)> {
    let mut sum = 0;
    let count = distribution.count.max(1) as f64;
    let bucket = |&(end, here): &(f64, u64)| {
        sum += here;
        (end, sum as f64 / count)
    };
    distribution.buckets.iter().map(bucket).collect()
}

fn hit_rate(outcome: &Outcome) -> Vec<(f64, f64)> {
    let known: Vec<(f64, f64)> = outcome
        .samples
        .iter()
        .filter_map(|sample| Some((sample.seconds * outcome.load, sample.cached_share?)))
        .collect();
    let mean = |window: &[(f64, f64)]| window.iter().map(|point| point.1).sum::<f64>() / window.len() as f64;
    known
        .windows(SMOOTHED.min(known.len().max(1)))
        .map(|window| (window[window.len() - 1].0, mean(window)))
        .collect()
}

/// How each router does as the load grows.
fn levels(page: &mut Page, report: &Report) {
    let mut modes: Vec<_> = report.outcomes.iter().map(|outcome| outcome.mode).collect();
    let first = report.outcomes[0].load;
    modes.truncate(report.outcomes.iter().take_while(|outcome| outcome.load == first).count());
    type Pick = fn(&Outcome) -> f64;
    let charts: [(&str, &str, Pick); 4] = [
        ("Time to the first token, p99, by load", "ms", |o| o.first_token.p99_ms),
        ("Answered requests by load", "requests/s", |o| o.requests_per_second),
        ("Cached share by load", "share of the prompt tokens", |o| o.cached_share),
        ("Longest queue by load", "requests", |o| o.queue.max as f64),
    ];
    for (title, unit, pick) in charts {
        let chart = modes.iter().fold(Chart::new(title, "times the trace's rate", unit), |chart, mode| {
            let of_mode = report.outcomes.iter().filter(|outcome| outcome.mode == *mode);
            let mut points: Vec<(f64, f64)> = of_mode.map(|outcome| (outcome.load, pick(outcome))).collect();
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            chart.series(Series::new(&mode.to_string(), Shape::Line, points))
        });
        page.chart(&chart);
    }
}

fn workers(page: &mut Page, outcome: &Outcome) {
    let count = outcome.balance.requests.len();
    let mut load = Chart::new("Load of workers over time", "s", "requests on a worker");
    let line = |pick: &dyn Fn(&[f64]) -> f64| {
        outcome.samples.iter().map(|sample| (sample.seconds, pick(&sample.live))).collect::<Vec<_>>()
    };
    if count <= DRAWN_WORKERS {
        for worker in 0..count {
            let points = line(&|live| live[worker]);
            load = load.series(Series::new(&format!("worker {worker}"), Shape::Line, points));
        }
    } else {
        type Pick = fn(&[f64]) -> f64;
        let picks: [(&str, Pick); 3] = [
            ("most", |live| live.iter().copied().fold(0.0, f64::max)),
            ("mean", |live| live.iter().sum::<f64>() / live.len() as f64),
            ("least", |live| live.iter().copied().fold(f64::INFINITY, f64::min)),
        ];
        for (name, pick) in picks {
            load = load.series(Series::new(name, Shape::Line, line(&pick)));
        }
    }
    page.chart(&load);
    let requests = outcome.balance.requests.iter().enumerate();
    let bars = requests.map(|(worker, requests)| ((worker + 1) as f64, *requests as f64)).collect();
    page.chart(&Chart::new("Requests of each worker", "worker", "requests").series(Series::new(
        "requests",
        Shape::Bars,
        bars,
    )));
}
