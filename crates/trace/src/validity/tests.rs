use std::collections::BTreeMap;

use clap::Parser;

use super::*;
use crate::{
    args::BenchArgs,
    distribution::Distribution,
    report::{CacheUse, Events, GeneratorUse, Requests, Tokens, WorkerSpread},
    watch::ServerUse,
};

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    args: BenchArgs,
}

/// A point of 1000 requests in ten seconds with nothing wrong.
fn good(loop_kind: LoopKind) -> Report {
    Report {
        version: "0",
        started_at: 0,
        valid: true,
        reasons: Vec::new(),
        notes: Vec::new(),
        parameters: Command::parse_from(["bench"]).args,
        model: "m".into(),
        loop_kind,
        wall_seconds: 10.0,
        requests: Requests {
            offered: 1000,
            sent: 1000,
            ok: 1000,
            failed: 0,
            served_share: 1.0,
            offered_per_second: None,
            per_second: 100.0,
            connections: 1,
            reconnects: 0,
        },
        tokens: Tokens {
            prompt: 10_000,
            completion: 64_000,
            asked: 64_000,
            per_second: 6400.0,
            prompt_per_trace_block: None,
        },
        events: Events { total: 66_000, with_text: 64_000, per_second: 6600.0, answers_without_text: 0 },
        first_token: Distribution::default(),
        between_tokens: Distribution::default(),
        whole: Distribution::default(),
        failures: Vec::new(),
        cache: CacheUse {
            cached_tokens: 0,
            share: 0.0,
            limit: None,
            unbounded_limit: None,
            share_of_limit: None,
        },
        workers: WorkerSpread::of(&BTreeMap::new(), None),
        servers: vec![ServerUse { name: "frontend".into(), ..ServerUse::default() }],
        generator: GeneratorUse {
            user_seconds: 1.0,
            system_seconds: 1.0,
            us_per_token: None,
            threads: 1,
            cpu_share: 0.2,
            lateness: Distribution { p99_ms: 2.0, ..Distribution::default() },
            timer_lag: Distribution::default(),
        },
        open_streams: None,
    }
}

fn judge(report: &Report) -> Vec<String> {
    reasons(report, 10.0, true)
}

#[test]
fn a_good_point_counts() {
    assert!(judge(&good(LoopKind::Closed)).is_empty());
    assert!(judge(&good(LoopKind::Poisson)).is_empty());
}

#[test]
fn ninety_eight_of_a_hundred_are_needed() {
    let mut report = good(LoopKind::Poisson);
    report.requests.served_share = 0.981;
    assert!(judge(&report).is_empty());
    report.requests.served_share = 0.979;
    assert!(judge(&report)[0].contains("97.9 %"));
}

#[test]
fn a_busy_generator_is_the_limit_unless_the_run_was_short() {
    let mut report = good(LoopKind::Closed);
    report.generator.cpu_share = 0.95;
    assert!(judge(&report)[0].contains("the generator was the limit"));
    report.wall_seconds = 0.01;
    assert!(judge(&report).is_empty());
}

#[test]
fn lateness_counts_in_open_loop() {
    for (kind, count) in [(LoopKind::Closed, 0), (LoopKind::Poisson, 1), (LoopKind::Schedule, 1)] {
        let mut report = good(kind);
        report.generator.lateness.p99_ms = 10.5;
        assert_eq!(judge(&report).len(), count, "{kind:?}");
    }
}

#[test]
fn a_server_that_went_away_makes_it_invalid() {
    let mut report = good(LoopKind::Closed);
    report.servers[0].gone = true;
    assert!(judge(&report)[0].contains("frontend"));
}

#[test]
fn missing_tokens_count_unless_the_model_may_stop() {
    let mut report = good(LoopKind::Closed);
    report.tokens.completion = 60_000;
    assert_eq!(judge(&report).len(), 1);
    assert!(reasons(&report, 10.0, false).is_empty());
}
