//! The report for people.

use std::fmt::Write;

use crate::{Outcome, Report};

/// As text: one column a run.
pub(crate) fn table(report: &Report) -> String {
    let mut out = String::new();
    let args = &report.parameters;
    let _ = writeln!(
        out,
        "{}: {} workers of {}{} blocks of {} tokens, seed {}\n",
        args.trace.display(),
        args.workers,
        if args.data_parallel_size > 1 {
            format!("{} ranks of ", args.data_parallel_size)
        } else {
            String::new()
        },
        args.blocks,
        args.block_size,
        args.seed
    );
    for (name, value) in rows() {
        let _ = write!(out, "{name:<30}");
        for outcome in &report.outcomes {
            let _ = write!(out, "{:>16}", value(outcome));
        }
        out.push('\n');
    }
    for outcome in &report.outcomes {
        for class in &outcome.classes {
            let _ = writeln!(
                out,
                "class {} ({}, load {}): {} requests, {} refused, first token p50 {:.2} ms, p99 {:.2} ms",
                class.name,
                outcome.mode,
                outcome.load,
                class.requests,
                class.refused,
                class.first_token.p50_ms,
                class.first_token.p99_ms
            );
        }
    }
    for outcome in report.outcomes.iter().filter(|outcome| !outcome.refused.is_empty()) {
        for (why, count) in &outcome.refused {
            let _ = writeln!(out, "refused ({}, load {}): {count}: {why}", outcome.mode, outcome.load);
        }
    }
    out
}

type Value = fn(&Outcome) -> String;

/// What is told of each run.
pub(crate) fn rows() -> Vec<(&'static str, Value)> {
    vec![
        ("router", |o| o.mode.to_string()),
        ("load", |o| o.load.to_string()),
        ("requests", |o| o.requests.to_string()),
        ("answered", |o| o.answered.to_string()),
        ("seconds", |o| format!("{:.2}", o.seconds)),
        ("offered requests/s", |o| format!("{:.2}", o.offered_per_second)),
        ("answered requests/s", |o| format!("{:.2}", o.requests_per_second)),
        ("tokens/s", |o| format!("{:.0}", o.tokens_per_second)),
        ("served in time", |o| {
            format!("{:.1} %{}", o.served_share * 100.0, if o.saturated { " !" } else { "" })
        }),
        ("cached share", |o| format!("{:.4}", o.cached_share)),
        ("limit of one large cache", |o| format!("{:.4}", o.cached_share_limit)),
        ("first token p50 ms", |o| format!("{:.2}", o.first_token.p50_ms)),
        ("first token p90 ms", |o| format!("{:.2}", o.first_token.p90_ms)),
        ("first token p99 ms", |o| format!("{:.2}", o.first_token.p99_ms)),
        ("between tokens p50 ms", |o| format!("{:.2}", o.between_tokens.p50_ms)),
        ("between tokens p99 ms", |o| format!("{:.2}", o.between_tokens.p99_ms)),
        ("whole p50 ms", |o| format!("{:.2}", o.whole.p50_ms)),
        ("whole p99 ms", |o| format!("{:.2}", o.whole.p99_ms)),
        ("requests a worker, mean", |o| format!("{:.1}", o.balance.mean)),
        ("  least over mean", |o| format!("{:.3}", o.balance.min_over_mean)),
        ("  most over mean", |o| format!("{:.3}", o.balance.max_over_mean)),
        ("queue, mean", |o| format!("{:.2}", o.queue.mean)),
        ("queue, most", |o| o.queue.max.to_string()),
        ("preemptions", |o| o.preemptions.to_string()),
    ]
}
