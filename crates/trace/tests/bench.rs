//! The load generator against a server that answers well and badly.

// Helpers of tests may unwrap, as tests do.
#![allow(clippy::unwrap_used)]

mod support;

use std::{io::Write, net::SocketAddr, time::Duration};

use clap::Parser;
use dynamo_trace::{BenchArgs, BenchError, BenchReport, Difference, LoopKind, Report, measure_all};
use support::{Answer, serve};
use tokio_util::sync::CancellationToken;

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    args: BenchArgs,
}

fn args(address: SocketAddr, flags: &str) -> BenchArgs {
    let fixed = format!("bench --url http://{address} --progress never --warmup 0 {flags}");
    Command::try_parse_from(fixed.split_whitespace()).unwrap_or_else(|e| panic!("{e}")).args
}

async fn measure(args: &BenchArgs) -> Result<BenchReport, BenchError> {
    measure_all(args, &CancellationToken::new()).await
}

async fn point(address: SocketAddr, flags: &str) -> Report {
    match measure(&args(address, flags)).await.unwrap() {
        BenchReport::Point(report) => *report,
        other => panic!("not a point: {other:?}"),
    }
}

fn failed(report: &Report) -> Vec<(&str, u64)> {
    report.failures.iter().map(|failure| (failure.kind.as_str(), failure.count)).collect()
}

#[tokio::test]
async fn tokens_come_from_the_usage_and_events_are_counted_apart() {
    let (address, seen) = serve(|_| Answer::Good);
    let report =
        point(address, "--concurrency 3 --requests 30 --output-tokens 5 --words 12 --worker-ids").await;
    assert!(report.valid, "{:?}", report.reasons);
    assert_eq!((report.requests.ok, report.requests.failed, report.requests.connections), (30, 0, 3));
    assert_eq!((report.tokens.completion, report.tokens.prompt), (150, 3000));
    // The role, five tokens and the usage.
    assert_eq!((report.events.total, report.events.with_text), (30 * 7, 150));
    assert_eq!((report.first_token.count, report.between_tokens.count, report.whole.count), (30, 120, 30));
    assert_eq!((report.cache.cached_tokens, report.cache.share), (750, 0.25));
    assert_eq!(report.workers.unwrap().requests.get(&7), Some(&30));
    assert_eq!((report.loop_kind, report.model.as_str()), (LoopKind::Closed, "first"));
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 30);
    let mut prompts: Vec<&str> = seen.iter().map(|b| b["messages"][0]["content"].as_str().unwrap()).collect();
    assert!(prompts.iter().all(|prompt| prompt.split_whitespace().count() == 12));
    prompts.sort_unstable();
    prompts.dedup();
    assert_eq!(prompts.len(), 30);
    let body = &seen[0];
    assert_eq!((&body["stream"], &body["ignore_eos"]), (&true.into(), &true.into()));
    assert_eq!(body["stream_options"]["include_usage"], true);
}

#[tokio::test]
async fn any_cutting_of_the_answer_counts_the_same() {
    let cuts = [1, 2, 3, 5, 7, 11, 64, 1000];
    let (address, _) = serve(move |n| if n < 8 { Answer::Cut(cuts[n]) } else { Answer::AtOnce });
    let report = point(address, "--concurrency 1 --requests 9 --output-tokens 6").await;
    assert!(report.valid, "{:?}", report.reasons);
    assert_eq!((report.events.total, report.events.with_text, report.tokens.completion), (72, 54, 54));
    assert_eq!((report.first_token.count, report.between_tokens.count), (9, 45));
    assert_eq!(report.requests.connections, 1);
}

#[tokio::test]
async fn failures_are_counted_by_kind_with_their_messages() {
    let script = [
        Answer::Good,
        Answer::Status(503),
        Answer::Status(503),
        Answer::Status(400),
        Answer::Dropped,
        Answer::NoDone,
        Answer::ErrorEvent,
        Answer::NoUsage,
        Answer::OddUsage,
        Answer::Garbage,
        Answer::Stuck,
        Answer::Good,
    ];
    let (address, _) = serve(move |n| script[n]);
    let report = point(address, "--concurrency 1 --requests 12 --output-tokens 4 --timeout 0.3").await;
    let want = [
        ("http 400", 1),
        ("http 503", 2),
        ("cut", 2),
        ("protocol", 1),
        ("error event", 1),
        ("no usage", 2),
        ("timeout", 1),
    ];
    assert_eq!(failed(&report), want);
    assert_eq!((report.requests.ok, report.requests.failed), (2, 10));
    assert_eq!(report.failures[1].examples, [r#"{"error":"refused 1"}"#, r#"{"error":"refused 2"}"#]);
    assert!(report.failures[4].examples[0].contains("worker lost"));
    assert!(!report.valid && report.reasons[0].contains("16.7 %"), "{:?}", report.reasons);
}

#[tokio::test]
async fn too_few_tokens_make_a_point_invalid() {
    let (address, _) = serve(|_| Answer::Short);
    let report = point(address, "--concurrency 2 --requests 6 --output-tokens 10").await;
    assert_eq!((report.requests.ok, report.tokens.completion, report.tokens.asked), (6, 30, 60));
    assert!(!report.valid && report.reasons[0].contains("60 tokens were asked for and 30 came"));
    let report = point(address, "--concurrency 2 --requests 6 --output-tokens 10 --stop-at-eos").await;
    assert!(report.valid, "{:?}", report.reasons);
}

#[tokio::test]
async fn a_connection_closed_while_idle_is_opened_anew() {
    let (address, _) = serve(|_| Answer::ThenClosed);
    let report = point(address, "--concurrency 1 --requests 5 --output-tokens 2").await;
    assert!(report.valid, "{:?}", report.failures);
    assert_eq!((report.requests.ok, report.requests.connections, report.requests.reconnects), (5, 5, 4));
}

#[tokio::test]
async fn new_connections_are_made_when_asked_for() {
    let (address, _) = serve(|_| Answer::Good);
    let report = point(address, "--rate 200 --requests 20 --output-tokens 2 --new-connections").await;
    assert_eq!((report.requests.ok, report.requests.connections), (20, 20));
    assert_eq!(report.loop_kind, LoopKind::Poisson);
}

#[tokio::test]
async fn in_open_loop_a_slow_server_shows_in_the_latency_and_makes_the_point_invalid() {
    // One connection at a time: each answer takes 20 ms, and twice as many are due.
    let (address, _) = serve(|_| Answer::Slow(Duration::from_millis(20)));
    let flags = "--rate 100 --duration 0.6 --output-tokens 2 --max-in-flight 1";
    let report = point(address, flags).await;
    assert!(report.requests.offered > 35, "{}", report.requests.offered);
    assert_eq!(report.requests.ok, report.requests.offered, "nothing is dropped");
    assert!(report.requests.served_share < 0.9, "{}", report.requests.served_share);
    // The last ones waited for half the window, and their times count from when they were due.
    assert!(report.whole.max_ms > 150.0 && report.first_token.max_ms > 150.0, "{}", report.whole.max_ms);
    assert!(report.generator.lateness.p99_ms > 100.0);
    assert!(!report.valid && report.reasons.len() == 2, "{:?}", report.reasons);
}

#[tokio::test]
async fn a_trace_is_replayed_on_its_schedule_with_its_limit() {
    let (address, seen) = serve(|_| Answer::Good);
    let mut file = tempfile::NamedTempFile::new().unwrap();
    for (timestamp, ids) in [(0, "[0,1]"), (2000, "[0,1,2]"), (4000, "[5]")] {
        let line = r#"{"timestamp":TIME,"input_length":1024,"output_length":24,"hash_ids":IDS}"#;
        writeln!(file, "{}", line.replace("TIME", &timestamp.to_string()).replace("IDS", ids)).unwrap();
    }
    let path = file.path().display();
    let flags =
        format!("--trace {path} --shrink 8 --speedup 20 --workers 2 --blocks-per-worker 4 --worker-ids");
    let report = point(address, &flags).await;
    assert_eq!((report.loop_kind, report.requests.ok, report.tokens.completion), (LoopKind::Schedule, 3, 9));
    assert!(report.wall_seconds >= 0.2, "{}", report.wall_seconds);
    assert_eq!(report.cache.limit, Some(2.0 / 6.0));
    assert_eq!(report.cache.share_of_limit, Some(0.75));
    assert_eq!(report.tokens.prompt_per_trace_block, Some(50.0));
    let workers = report.workers.unwrap();
    assert_eq!((workers.workers, workers.max_over_mean, workers.min_over_mean), (2, 2.0, 0.0));
    {
        let seen = seen.lock().unwrap();
        let prompt = |at: usize| seen[at]["messages"][0]["content"].as_str().unwrap();
        assert!(prompt(1).starts_with(prompt(0)) && prompt(2).split_whitespace().count() == 18);
    }
    let closed = point(address, &format!("{flags} --concurrency 1")).await;
    assert_eq!((closed.loop_kind, closed.requests.ok), (LoopKind::Closed, 3));
}

#[tokio::test]
async fn the_turns_of_a_session_are_asked_one_after_the_other() {
    let (address, seen) = serve(|_| Answer::Good);
    let mut file = tempfile::NamedTempFile::new().unwrap();
    for (session, time, ids) in [
        ("a", r#""timestamp":0"#, "[0]"),
        ("b", r#""timestamp":500"#, "[9]"),
        ("a", r#""delay":2000"#, "[0,1]"),
        ("a", r#""delay":2000"#, "[0,1,2]"),
    ] {
        let line = format!(
            r#"{{"session_id":"{session}",{time},"input_length":64,"output_length":2,"hash_ids":{ids}}}"#
        );
        writeln!(file, "{line}").unwrap();
    }
    let lengths = |seen: &[serde_json::Value]| -> Vec<usize> {
        let words = |body: &serde_json::Value| {
            body["messages"][0]["content"].as_str().unwrap().split_whitespace().count() / 18
        };
        seen.iter().map(words).collect()
    };
    let flags = format!("--trace {} --trace-block-tokens 64 --speedup 20", file.path().display());
    let report = point(address, &flags).await;
    assert!(report.valid, "{:?}", report.reasons);
    assert_eq!((report.requests.offered, report.requests.ok), (4, 4));
    // Two delays of 2 s, at twenty times the speed, and the answers before them.
    assert!(report.wall_seconds >= 0.2, "{}", report.wall_seconds);
    assert_eq!(lengths(&seen.lock().unwrap()), [1, 1, 2, 3]);
    seen.lock().unwrap().clear();
    let closed = point(address, &format!("{flags} --concurrency 1 --requests 3")).await;
    assert_eq!(closed.requests.ok, 3);
    // One client finishes a session before it begins the next.
    assert_eq!(lengths(&seen.lock().unwrap()), [1, 2, 3]);
}

#[tokio::test]
async fn a_trace_without_times_needs_another_load() {
    let (address, _) = serve(|_| Answer::Good);
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, r#"{{"session_id":"a","input_length":64,"output_length":2,"hash_ids":[1]}}"#).unwrap();
    let flags = format!("--trace {}", file.path().display());
    let error = measure(&args(address, &flags)).await.unwrap_err();
    assert!(error.to_string().contains("no timestamps"), "{error}");
    let report = point(address, &format!("{flags} --concurrency 2")).await;
    assert_eq!(report.requests.ok, 1);
}

#[tokio::test]
async fn held_streams_stay_open_beside_the_load() {
    let (address, _) = serve(|n| match n {
        0..10 => Answer::Stuck,
        10 => Answer::Status(503),
        11 => Answer::Good,
        _ => Answer::AtOnce,
    });
    let flags =
        "--open-streams 12 --open-rate 20 --open-tokens 3 --concurrency 2 --requests 8 --output-tokens 2";
    let report = point(address, flags).await;
    let open = report.open_streams.unwrap();
    assert_eq!((open.asked, open.opened, open.open_at_end, open.ended_early), (12, 11, 10, 1));
    assert_eq!(open.failed.len(), 1);
    assert_eq!(report.requests.ok, 8);
    assert!(!report.valid && report.reasons[0].contains("10 were open at the end"), "{:?}", report.reasons);
}

#[tokio::test]
async fn the_cost_of_a_token_is_found_by_difference() {
    let (address, seen) = serve(|_| Answer::AtOnce);
    let pid = std::process::id();
    let flags = format!("--concurrency 2 --requests 20 --difference 4,64 --rounds 2 --server-pid all={pid}");
    let report = measure(&args(address, &flags)).await.unwrap();
    let BenchReport::Difference(difference) = report else { panic!("no difference") };
    let Difference { points, costs, output_tokens, .. } = *difference;
    assert_eq!(output_tokens, (4, 64));
    assert_eq!(points.iter().map(|p| p.tokens.completion).collect::<Vec<_>>(), [80, 1280, 80, 1280]);
    assert_eq!(costs.keys().collect::<Vec<_>>(), ["all", "generator"]);
    assert_eq!(costs["all"].us_per_token_rounds.len(), 2);
    assert!(costs["all"].rss_bytes > 0 && costs["all"].us_per_token.is_finite());
    let mut prompts: Vec<_> =
        seen.lock().unwrap().iter().map(|b| b["messages"][0]["content"].to_string()).collect();
    prompts.sort_unstable();
    prompts.dedup();
    assert_eq!(prompts.len(), 80, "no run repeats the prompts of another");
}

#[tokio::test]
async fn two_servers_are_measured_in_turn() {
    let (fast, fast_seen) = serve(|_| Answer::AtOnce);
    let (slow, slow_seen) = serve(|_| Answer::Slow(Duration::from_millis(10)));
    let pid = std::process::id();
    let flags = format!(
        "--concurrency 2 --requests 10 --rounds 3 --output-tokens 4 --versus http://{slow} --server-pid a={pid} \
         --versus-pid a={pid}"
    );
    let BenchReport::Comparison(report) = measure(&args(fast, &flags)).await.unwrap() else {
        panic!("no comparison")
    };
    assert!(report.valid, "{:?}", report.reasons);
    assert_eq!((report.first.points.len(), report.second.points.len()), (3, 3));
    assert_eq!((fast_seen.lock().unwrap().len(), slow_seen.lock().unwrap().len()), (30, 30));
    assert!(report.ratios["first token p50 ms"] < 0.9, "{:?}", report.ratios);
    assert!(report.ratios["tokens/s"] > 1.1 && report.ratios.contains_key("a core-ms/request"));

    let flags = format!("--concurrency 2 --requests 6 --rounds 1 --difference 2,9 --versus http://{slow}");
    let BenchReport::Comparison(report) = measure(&args(fast, &flags)).await.unwrap() else {
        panic!("no comparison")
    };
    assert!(report.ratios["tokens/s at 9"] > 1.1, "{:?}", report.ratios);
    assert_eq!(report.second.difference.unwrap().points.len(), 2);
}

#[tokio::test]
async fn a_stopped_run_reports_what_there_is() {
    let (address, _) = serve(|_| Answer::Slow(Duration::from_millis(20)));
    let stop = CancellationToken::new();
    let args = args(address, "--concurrency 2 --requests 1000 --output-tokens 2");
    let run = measure_all(&args, &stop);
    let (report, ()) = tokio::join!(run, async {
        tokio::time::sleep(Duration::from_millis(150)).await;
        stop.cancel();
    });
    let BenchReport::Point(report) = report.unwrap() else { panic!("no point") };
    assert!(report.requests.ok > 0 && report.requests.ok < 1000);
    assert!(report.reasons.contains(&"the run was interrupted".to_owned()), "{:?}", report.reasons);
    assert_eq!(BenchReport::Point(report).exit_code(), 1);
}

#[tokio::test]
async fn the_report_is_written_as_json_with_all_parameters() {
    let (address, _) = serve(|_| Answer::Good);
    let file = tempfile::NamedTempFile::new().unwrap();
    let flags = format!("--requests 4 --output-tokens 3 --header a:secret --json {}", file.path().display());
    let report = dynamo_trace::run(args(address, &flags)).await.unwrap();
    assert_eq!(report.exit_code(), 0);
    let text = std::fs::read_to_string(file.path()).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&json["kind"], &json["valid"]), (&"point".into(), &true.into()));
    assert_eq!(
        (&json["parameters"]["output_tokens"], &json["tokens"]["completion"]),
        (&3.into(), &12.into())
    );
    assert_eq!(
        json["whole"]["buckets"].as_array().unwrap().iter().map(|b| b[1].as_u64().unwrap()).sum::<u64>(),
        4
    );
    assert!(!text.contains("secret"), "headers may hold keys");
    let nowhere = args(address, "--requests 1 --output-tokens 1 --json /nowhere/report.json");
    let error = dynamo_trace::run(nowhere).await.unwrap_err();
    assert!(error.to_string().contains("/nowhere/report.json"), "{error}");
}

#[tokio::test]
async fn what_cannot_start_says_what_to_do() {
    let gone = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    for flags in ["", "--model x"] {
        let error = measure(&args(gone, flags)).await.unwrap_err();
        assert!(matches!(error, BenchError::Connect { .. }), "{error}");
        assert!(error.to_string().contains("--url") && error.exit_code() == 2, "{error}");
    }
    let (address, _) = serve(|_| Answer::Status(500));
    let error = measure(&args(address, "--open-streams 3")).await.unwrap_err();
    assert!(error.to_string().contains("http 500"), "{error}");
    let error = measure(&args(address, "--difference 9,9")).await.unwrap_err();
    assert!(error.to_string().contains("smaller first"), "{error}");
}

/// The limits of the mooncake conversation trace, where `MOONCAKE_TRACE` names the file.
#[test]
#[ignore = "needs the conversation trace, which MOONCAKE_TRACE names"]
fn the_limits_of_the_conversation_trace_are_the_published_ones() {
    let path = std::env::var_os("MOONCAKE_TRACE").expect("MOONCAKE_TRACE names the conversation trace");
    let trace = dynamo_trace::read_trace(path.as_ref()).unwrap();
    assert_eq!(trace.len(), 12_031);
    let share = |capacity| dynamo_trace::cached_share(trace.iter().map(|r| r.hash_ids.as_slice()), capacity);
    for (capacity, want) in [
        (Some(8 * 2048), 0.2656),
        (Some(4 * 2048), 0.1816),
        (Some(8 * 512), 0.0879),
        (Some(8 * 8192), 0.3594),
        (None, 0.3664),
    ] {
        let got = share(capacity);
        assert!((got - want).abs() < 5e-5, "{capacity:?}: {got}");
    }
}
