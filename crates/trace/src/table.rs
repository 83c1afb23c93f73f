//! The report for people.

use std::{collections::BTreeSet, fmt::Write};

use crate::{
    comparison::Comparison,
    difference::Difference,
    distribution::Distribution,
    report::{LoopKind, Report},
    watch::ServerUse,
};

/// A point as text.
#[must_use]
pub(crate) fn point(report: &Report) -> String {
    let mut out = Out(String::new());
    let args = &report.parameters;
    let load = match (report.loop_kind, args.concurrency, args.rate) {
        (LoopKind::Closed, concurrency, _) => format!("closed loop, {} streams", concurrency.unwrap_or(8)),
        (LoopKind::Poisson, _, rate) => {
            format!("open loop, {} requests/s at random times", rate.unwrap_or_default())
        }
        (LoopKind::Schedule, ..) => format!("open loop, the trace's schedule at {}×", args.speedup),
    };
    out.line("load", &format!("{load}; model {}, {}", report.model, args.url));
    let requests = &report.requests;
    let offered = requests.offered_per_second.map_or(String::new(), |rate| format!(" ({rate:.1}/s)"));
    out.line(
        "requests",
        &format!(
            "{} offered{offered}, {} answered ({:.1}/s), {} failed, in {:.2} s; served {:.1} %",
            requests.offered,
            requests.ok,
            requests.per_second,
            requests.failed,
            report.wall_seconds,
            requests.served_share * 100.0,
        ),
    );
    let tokens = &report.tokens;
    out.line(
        "tokens",
        &format!("{} ({:.0}/s) for prompts of {}", tokens.completion, tokens.per_second, tokens.prompt),
    );
    let events = &report.events;
    out.line(
        "events",
        &format!("{} ({:.0}/s), {} with text", events.total, events.per_second, events.with_text),
    );
    if let Some(open) = &report.open_streams {
        let failed: u64 = open.failed.iter().map(|failure| failure.count).sum();
        let text = format!(
            "{} asked, {} opened, {} open at the end, {} ended early, {failed} failed, {} events",
            open.asked, open.opened, open.open_at_end, open.ended_early, open.events
        );
        out.line("held streams", &text);
    }
    cache_and_workers(&mut out, report);

    let _ = write!(out.0, "\n{:<16}", "times in ms");
    for column in ["count", "mean", "p50", "p90", "p99", "p99.9", "max"] {
        let _ = write!(out.0, "{column:>11}");
    }
    out.0.push('\n');
    out.times("first token", &report.first_token);
    out.times("between tokens", &report.between_tokens);
    out.times("whole", &report.whole);
    if report.loop_kind != LoopKind::Closed {
        out.times("lateness", &report.generator.lateness);
    }
    out.times("timer lag", &report.generator.timer_lag);

    let own = &report.generator;
    out.0.push('\n');
    if !report.servers.is_empty() {
        server_header(&mut out);
        report.servers.iter().for_each(|server| server_row(&mut out, server));
    }
    let total = own.user_seconds + own.system_seconds;
    let per_token = own.us_per_token.map_or(String::new(), |us| format!(", {us:.2} core-µs/token"));
    let text = format!(
        "{total:.2} core-s ({:.2} user, {:.2} system){per_token}, {:.0} % of {} thread(s)",
        own.user_seconds,
        own.system_seconds,
        own.cpu_share * 100.0,
        own.threads
    );
    out.line("generator", &text);
    failures(&mut out, report);
    report.notes.iter().for_each(|note| out.line("note", note));
    verdict(&mut out, report.valid, &report.reasons);
    out.0
}

/// Runs in turn as text.
#[must_use]
pub(crate) fn difference(difference: &Difference) -> String {
    let mut out = Out(String::new());
    let (few, many) = difference.output_tokens;
    let rounds = difference.points.len() / 2;
    let text = format!("{rounds} of {few} and of {many} output tokens in turn; medians");
    out.line("rounds", &text);
    let text = format!(
        "{:.0}/s at {few}, {:.0}/s at {many}",
        difference.few_tokens_per_second, difference.many_tokens_per_second
    );
    out.line("tokens", &text);
    let _ = writeln!(
        out.0,
        "\n{:<16}{:>16}{:>18}{:>12}   µs/token by round",
        "", "core-µs/token", "core-ms/request", "RSS MB"
    );
    for (name, cost) in &difference.costs {
        let rounds: Vec<String> = cost.us_per_token_rounds.iter().map(|us| format!("{us:.2}")).collect();
        let rss =
            if cost.rss_bytes == 0 { String::new() } else { format!("{:.1}", megabytes(cost.rss_bytes)) };
        let _ = writeln!(
            out.0,
            "{name:<16}{:>16.2}{:>18.3}{rss:>12}   {}",
            cost.us_per_token,
            cost.ms_per_request,
            rounds.join(" ")
        );
    }
    verdict(&mut out, difference.valid, &difference.reasons);
    out.0
}

/// Two servers as text.
#[must_use]
pub(crate) fn comparison(comparison: &Comparison) -> String {
    let mut out = Out(String::new());
    let Comparison { first, second, ratios, .. } = comparison;
    out.line("first", &format!("{}, model {}", first.url, first.model));
    out.line("second", &format!("{}, model {}", second.url, second.model));
    let _ = writeln!(out.0, "\n{:<32}{:>14}{:>14}{:>16}", "medians", "first", "second", "first / second");
    let names: BTreeSet<&String> = first.medians.keys().chain(second.medians.keys()).collect();
    for name in names {
        let number = |value: Option<&f64>| value.map_or("-".into(), |value| format!("{value:.3}"));
        let _ = writeln!(
            out.0,
            "{name:<32}{:>14}{:>14}{:>16}",
            number(first.medians.get(name)),
            number(second.medians.get(name)),
            number(ratios.get(name)),
        );
    }
    verdict(&mut out, comparison.valid, &comparison.reasons);
    out.0
}

struct Out(String);

impl Out {
    fn line(&mut self, name: &str, text: &str) {
        let _ = writeln!(self.0, "{name:<16}{text}");
    }

    fn times(&mut self, name: &str, d: &Distribution) {
        let _ = write!(self.0, "{name:<16}{:>11}", d.count);
        for value in [d.mean_ms, d.p50_ms, d.p90_ms, d.p99_ms, d.p999_ms, d.max_ms] {
            let _ = write!(self.0, "{value:>11.3}");
        }
        self.0.push('\n');
    }
}

fn cache_and_workers(out: &mut Out, report: &Report) {
    let cache = &report.cache;
    let mut text = format!("{:.4} of the prompt tokens", cache.share);
    if let (Some(limit), Some(share)) = (cache.limit, cache.share_of_limit) {
        let _ = write!(text, "; the limit is {limit:.4}, {:.1} % of it", share * 100.0);
    }
    if let Some(unbounded) = cache.unbounded_limit {
        let _ = write!(text, "; unbounded {unbounded:.4}");
    }
    if let Some(tokens) = report.tokens.prompt_per_trace_block {
        let _ = write!(text, "; {tokens:.1} tokens a block");
    }
    out.line("cached", &text);
    if let Some(workers) = &report.workers {
        let text = format!(
            "{} workers; requests over the mean: most {:.2}, least {:.2}",
            workers.workers, workers.max_over_mean, workers.min_over_mean
        );
        out.line("spread", &text);
    }
}

fn server_header(out: &mut Out) {
    let _ = writeln!(
        out.0,
        "{:<16}{:>9}{:>15}{:>17}{:>31}{:>16}{:>9}",
        "server",
        "core-s",
        "core-µs/token",
        "core-ms/request",
        "RSS MB start/end/highest/peak",
        "descriptors",
        "threads"
    );
}

fn server_row(out: &mut Out, server: &ServerUse) {
    let number = |value: Option<f64>| value.map_or("-".into(), |value| format!("{value:.3}"));
    let rss = [server.rss_start_bytes, server.rss_end_bytes, server.rss_highest_bytes, server.rss_peak_bytes];
    let rss = rss.map(|bytes| format!("{:.1}", megabytes(bytes))).join(" / ");
    let descriptors = format!("{} / {}", server.descriptors_start, server.descriptors_end);
    let _ = writeln!(
        out.0,
        "{:<16}{:>9.2}{:>15}{:>17}{rss:>31}{descriptors:>16}{:>9}",
        server.name,
        server.cpu_seconds,
        number(server.us_per_token),
        number(server.ms_per_request),
        server.threads
    );
    if let Some(bytes) = server.rss_per_open_stream_bytes {
        let _ = writeln!(out.0, "{:<16}{:.1} KB for each stream held open", "", bytes / 1e3);
    }
    if let (Some(rss), Some(descriptors)) = (server.rss_after_bytes, server.descriptors_after) {
        let _ = writeln!(out.0, "{:<16}afterwards: {:.1} MB, {descriptors} descriptors", "", megabytes(rss));
    }
}

fn failures(out: &mut Out, report: &Report) {
    let held =
        report.open_streams.iter().flat_map(|open| &open.failed).map(|failure| ("held stream", failure));
    for (name, failure) in report.failures.iter().map(|failure| ("failed", failure)).chain(held) {
        out.line(name, &format!("{} × {}", failure.count, failure.kind));
        for example in &failure.examples {
            out.line("", &format!("  {}", example.replace('\n', " ")));
        }
    }
}

fn verdict(out: &mut Out, valid: bool, reasons: &[String]) {
    if valid {
        out.line("\nvalid", " yes");
    } else {
        out.0.push('\n');
        reasons.iter().for_each(|reason| out.line("NOT VALID", reason));
    }
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::distribution::Distribution;

    #[test]
    fn columns_of_times_line_up() {
        let mut out = Out(String::new());
        out.times("first token", &Distribution { count: 3, p99_ms: 12.5, ..Distribution::default() });
        out.times("x", &Distribution::default());
        let lines: Vec<&str> = out.0.lines().collect();
        assert!(lines[0].starts_with("first token") && lines[0].contains(" 12.500"), "{}", lines[0]);
        assert_eq!(lines[0].len(), lines[1].len());
    }

    #[test]
    fn a_verdict_gives_its_reasons() {
        let mut out = Out(String::new());
        verdict(&mut out, false, &["too slow".into(), "too late".into()]);
        assert_eq!(out.0.matches("NOT VALID").count(), 2);
    }
}
