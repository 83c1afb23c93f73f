use std::time::Duration;

use dynamo_kv_router::{
    ApproximateConfig, BusyThresholds, CachePolicy, CacheSource, KvRouterConfig, PrefillLoadModel,
    QueueConfig, QueuePolicy,
};
use dynamo_mocker::MockerConfig;
use dynamo_trace::TraceRequest;

use super::*;

/// Conversations of several turns, every so many milliseconds: a turn's prompt begins with the one before.
fn conversations(count: u64, turns: u64, every_ms: f64) -> Vec<TraceRequest> {
    let mut trace: Vec<TraceRequest> = (0..count * turns)
        .map(|number| {
            let (turn, conversation) = (number / count, number % count);
            let ids = |turn: u64| (0..6).map(move |block| 1000 * conversation + 10 * turn + block);
            TraceRequest {
                timestamp: Some(number as f64 * every_ms),
                input_length: 64 * 6 * (turn as u32 + 1),
                output_length: 20,
                hash_ids: (0..=turn).flat_map(ids).collect(),
                ..TraceRequest::default()
            }
        })
        .collect();
    trace.sort_by(|a, b| a.timestamp.unwrap().total_cmp(&b.timestamp.unwrap()));
    trace
}

fn setting(mode: Mode) -> Setting {
    Setting {
        workers: 4,
        engine: MockerConfig { num_gpu_blocks: 2048, block_size: 64, ..MockerConfig::default() },
        mode,
        kv: KvRouterConfig::REFERENCE,
        event_delay: Duration::from_millis(1),
        speedup: 1.0,
        trace_block_tokens: 64,
        exact_lengths: false,
        template_tokens: 0,
        shrink: 1,
        output_tokens: None,
        seed: 1,
    }
}

fn json(outcome: &Outcome) -> String {
    serde_json::to_string(outcome).unwrap()
}

#[test]
fn equal_seeds_are_equal_results() {
    let trace = conversations(40, 4, 50.0);
    for mode in [Mode::Kv, Mode::RoundRobin, Mode::Random] {
        let once = simulate(&trace, &setting(mode)).unwrap();
        assert_eq!(json(&once), json(&simulate(&trace, &setting(mode)).unwrap()));
    }
    let random = |seed| json(&simulate(&trace, &Setting { seed, ..setting(Mode::Random) }).unwrap());
    assert_ne!(random(1), random(2));
}

#[test]
fn kv_routing_finds_what_round_robin_does_not() {
    // 41 conversations over 4 workers: in turn, no turn goes where the one before went.
    let trace = conversations(41, 4, 100.0);
    let kv = simulate(&trace, &setting(Mode::Kv)).unwrap();
    let turns = simulate(&trace, &setting(Mode::RoundRobin)).unwrap();
    assert_eq!((kv.answered, turns.answered), (164, 164));
    // Of 6 + 12 + 18 + 24 blocks, 6 + 12 + 18 were there before; the last token is always computed.
    assert!((kv.cached_share - 36.0 / 60.0).abs() < 0.02, "{}", kv.cached_share);
    assert!((kv.cached_share_limit - 36.0 / 60.0).abs() < 1e-9);
    assert!(turns.cached_share < kv.cached_share / 2.0, "{}", turns.cached_share);
    assert!(kv.first_token.mean_ms < turns.first_token.mean_ms);
    assert!(kv.balance.min_over_mean > 0.5 && kv.balance.max_over_mean < 1.5, "{:?}", kv.balance);
    assert_eq!(turns.balance.requests, [41; 4]);
}

#[test]
fn no_worker_starves_while_others_have_the_block_that_all_prompts_begin_with() {
    // Requests come one after the other, so that no worker is ever busy.
    let mut trace = conversations(150, 4, 2000.0);
    for request in &mut trace {
        request.hash_ids.insert(0, 1 << 40);
        request.input_length += 64;
    }
    let with = |room_weight| {
        let kv = KvRouterConfig { room_weight, ..KvRouterConfig::DEFAULT };
        simulate(&trace, &Setting { workers: 16, kv, ..setting(Mode::Kv) }).unwrap()
    };
    let (even, starving) = (with(KvRouterConfig::DEFAULT.room_weight), with(0.0));
    assert_eq!(starving.balance.min_over_mean, 0.0);
    assert!(even.balance.min_over_mean > 0.5, "{:?}", even.balance);
    assert!(even.cached_share > starving.cached_share - 0.02, "{}", even.cached_share);
}

#[test]
fn ranks_of_a_worker_are_served_like_workers() {
    let trace = conversations(41, 4, 100.0);
    let engine = MockerConfig { data_parallel_size: 2, ..setting(Mode::Kv).engine };
    for mode in [Mode::Kv, Mode::RoundRobin] {
        let ranks = Setting { workers: 2, engine: engine.clone(), ..setting(mode) };
        let (ranks, workers) = (simulate(&trace, &ranks).unwrap(), simulate(&trace, &setting(mode)).unwrap());
        assert_eq!((ranks.answered, ranks.balance.requests.len()), (164, 4));
        assert!((ranks.cached_share - workers.cached_share).abs() < 0.03, "{}", ranks.cached_share);
        assert_eq!(ranks.cached_share_limit, workers.cached_share_limit);
    }
}

#[test]
fn more_ranks_than_fit_into_memory_are_refused() {
    let with = |workers, data_parallel_size| {
        let engine = MockerConfig { data_parallel_size, ..setting(Mode::Kv).engine };
        simulate(&conversations(1, 1, 1.0), &Setting { workers, engine, ..setting(Mode::Kv) })
    };
    assert!(with(0, 1).unwrap_err().to_string().contains("--workers"));
    assert!(with(4, 0).unwrap_err().to_string().contains("--workers"));
    assert!(with(100_000, 4096).unwrap_err().to_string().contains("--data-parallel-size"));
}

#[test]
fn with_measured_speeds_more_is_found_in_caches_under_load_and_nothing_changes_without() {
    let with = |trace: &[TraceRequest], prefill_load_model| {
        let kv = KvRouterConfig { prefill_load_model, ..KvRouterConfig::DEFAULT };
        simulate(trace, &Setting { kv, ..setting(Mode::Kv) }).unwrap()
    };
    let both = |trace: &[TraceRequest]| PrefillLoadModel::ALL.map(|model| with(trace, model));
    let [none, measured] = both(&conversations(201, 4, 5.0));
    assert_eq!((none.answered, measured.answered), (804, 804));
    // A turn goes back to where its conversation is, although that worker computes something.
    assert!(
        measured.cached_share > none.cached_share + 0.05,
        "{}, {}",
        measured.cached_share,
        none.cached_share
    );
    let [none, measured] = both(&conversations(41, 4, 2000.0));
    assert_eq!(json(&none), json(&measured));
}

/// Far more than four workers can do at once.
fn rush() -> Vec<TraceRequest> {
    conversations(300, 1, 0.1)
}

#[test]
fn who_must_wait_for_a_worker_is_served_later_and_in_the_order_of_the_policy() {
    let with = |threshold, policy| {
        let queue = QueueConfig { threshold, policy, ..QueueConfig::OFF };
        let setting =
            Setting { kv: KvRouterConfig { queue, ..KvRouterConfig::DEFAULT }, ..setting(Mode::Kv) };
        simulate(&rush(), &setting).unwrap()
    };
    let (queued, free) = (with(Some(0.5), QueuePolicy::Fcfs), with(None, QueuePolicy::Fcfs));
    assert_eq!((queued.answered, free.answered), (300, 300));
    assert!(queued.queue.max > 100, "{:?}", queued.queue);
    let last_first = with(Some(0.5), QueuePolicy::Lcfs);
    assert_eq!(last_first.answered, 300);
    assert_ne!(json(&last_first), json(&queued));
    assert_eq!(json(&queued), json(&with(Some(0.5), QueuePolicy::Fcfs)));
    let impatient =
        QueueConfig { threshold: Some(0.0), max_wait: Duration::from_millis(50), ..QueueConfig::OFF };
    let kv = KvRouterConfig { queue: impatient, ..KvRouterConfig::DEFAULT };
    let impatient = simulate(&rush(), &Setting { kv, ..setting(Mode::Kv) }).unwrap();
    let late = impatient.refused["waited for a worker for too long"];
    assert!(late > 0 && impatient.answered + late == 300, "{:?}", impatient.refused);
}

#[test]
fn classes_share_the_queue_by_weight() {
    // Half of the prompts are long.
    let mut requests = rush();
    for request in requests.iter_mut().step_by(2) {
        let first = request.hash_ids[0];
        request.hash_ids.extend((0..20).map(|block| first + 100 + block));
        request.input_length += 20 * 64;
    }
    let with = |weight: u32| {
        let file = format!(
            "{{classes: {{long: {{weight: {weight}}}}}, rules: [{{class: long, isl_tokens: {{min: 1000}}}}]}}"
        );
        let classes = dynamo_kv_router::PolicyClasses::from_yaml(&file).unwrap();
        let queue = QueueConfig {
            threshold: Some(0.5),
            classes: Some(std::sync::Arc::new(classes)),
            ..QueueConfig::OFF
        };
        let kv = KvRouterConfig { queue, ..KvRouterConfig::DEFAULT };
        simulate(&requests, &Setting { kv, ..setting(Mode::Kv) }).unwrap()
    };
    let (light, heavy) = (with(1), with(50));
    for outcome in [&light, &heavy] {
        let counts: Vec<(&str, u64)> =
            outcome.classes.iter().map(|class| (&*class.name, class.requests)).collect();
        assert_eq!((outcome.answered, counts), (300, vec![("default", 150), ("long", 150)]));
    }
    let p50 = |outcome: &Outcome, class: usize| outcome.classes[class].first_token.p50_ms;
    assert!(p50(&heavy, 1) < 0.7 * p50(&light, 1), "{:?} {:?}", heavy.classes, light.classes);
    assert!(p50(&heavy, 0) > p50(&light, 0), "{:?} {:?}", heavy.classes, light.classes);
}

#[test]
fn busy_workers_refuse_and_are_counted() {
    let busy = BusyThresholds { active_prefill_tokens: Some(2000), ..BusyThresholds::NONE };
    let kv = KvRouterConfig { busy, ..KvRouterConfig::DEFAULT };
    let outcome = simulate(&rush(), &Setting { kv, ..setting(Mode::Kv) }).unwrap();
    let refused = outcome.refused["all workers that may serve the request are overloaded"];
    assert!(refused > 0 && outcome.answered + refused == 300, "{:?}", outcome.refused);
}

#[test]
fn one_request_takes_what_the_timing_model_says() {
    let request = TraceRequest {
        timestamp: Some(7.0),
        input_length: 640,
        output_length: 3,
        hash_ids: (0..10).collect(),
        ..TraceRequest::default()
    };
    let outcome = simulate(&[request], &setting(Mode::Kv)).unwrap();
    let timing = dynamo_mocker::TimingModel::new(1.0);
    let share = 10.0 / 2048.0;
    let first = timing.step(640, true, share).as_secs_f64() * 1e3;
    assert!((outcome.first_token.p50_ms - first).abs() < 0.1, "{} {first}", outcome.first_token.p50_ms);
    let between = timing.step(0, true, share).as_secs_f64() * 1e3;
    assert_eq!(outcome.between_tokens.count, 2);
    assert!((outcome.between_tokens.p50_ms - between).abs() < 0.1);
    assert!((outcome.seconds * 1e3 - first - 2.0 * between).abs() < 0.2);
}

#[test]
fn late_events_hide_what_is_cached() {
    let trace = conversations(10, 2, 20.0);
    let late = Setting { event_delay: Duration::from_secs(3600), ..setting(Mode::Kv) };
    let (late, soon) = (simulate(&trace, &late).unwrap(), simulate(&trace, &setting(Mode::Kv)).unwrap());
    assert!(late.cached_share < soon.cached_share, "{} {}", late.cached_share, soon.cached_share);
}

#[test]
fn too_much_load_is_told() {
    let trace = conversations(300, 1, 10.0);
    let small = MockerConfig { num_gpu_blocks: 64, ..setting(Mode::Kv).engine };
    let calm = Setting { speedup: 0.05, engine: small.clone(), ..setting(Mode::Kv) };
    let calm = simulate(&trace, &calm).unwrap();
    assert!(!calm.saturated && calm.queue.max < 10, "{} {:?}", calm.served_share, calm.queue);
    let busy = simulate(&trace, &Setting { speedup: 20.0, engine: small, ..setting(Mode::Kv) }).unwrap();
    assert!(busy.saturated && busy.queue.max > 50, "{} {:?}", busy.served_share, busy.queue);
    assert_eq!(busy.answered, 300);
    assert!(busy.samples.iter().any(|sample| sample.waiting > 0));
    // The mean over time and workers, by the samples and by what each request took.
    let sampled: f64 =
        calm.samples.iter().flat_map(|sample| &sample.live).sum::<f64>() / calm.samples.len() as f64;
    let taken = calm.whole.mean_ms / 1e3 * 300.0 / calm.seconds;
    assert!((sampled / taken - 1.0).abs() < 0.05, "{sampled} {taken}");
}

#[test]
fn the_turns_of_a_session_wait_for_one_another() {
    let turn = |delay, time| TraceRequest {
        timestamp: time,
        delay,
        session_id: Some("s".into()),
        input_length: 64,
        output_length: 10,
        hash_ids: vec![1],
    };
    let trace = [turn(None, Some(0.0)), turn(Some(5000.0), None), turn(Some(5000.0), None)];
    let outcome = simulate(&trace, &setting(Mode::RoundRobin)).unwrap();
    assert_eq!(outcome.answered, 3);
    let answers = outcome.whole.mean_ms * 3.0 / 1e3;
    assert!((outcome.seconds - 10.0 - answers).abs() < 0.05, "{} {answers}", outcome.seconds);
}

#[test]
fn prompts_that_fit_nowhere_are_refused_and_counted() {
    let mut trace = conversations(3, 1, 10.0);
    trace[1].hash_ids = (0..5000).collect();
    let outcome = simulate(&trace, &setting(Mode::Kv)).unwrap();
    assert_eq!((outcome.requests, outcome.answered), (3, 2));
    assert_eq!(outcome.refused.values().sum::<u64>(), 1);
    assert!(outcome.refused.keys().next().unwrap().contains("does not fit"));
}

#[test]
fn the_command_runs_each_router_at_each_load_and_draws_them() {
    use std::io::Write;

    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        args: SimulateArgs,
    }
    let mut file = tempfile::NamedTempFile::new().unwrap();
    for request in conversations(20, 3, 30.0) {
        let TraceRequest { timestamp, input_length, output_length, hash_ids, .. } = request;
        let time = timestamp.unwrap();
        writeln!(
            file,
            "{{\"timestamp\": {time}, \"input_length\": {input_length}, \"output_length\": {output_length}, \"hash_ids\": {hash_ids:?}}}"
        )
        .unwrap();
    }
    let html = tempfile::NamedTempFile::new().unwrap();
    let line = format!(
        "simulate --trace {} --html {} --workers 3 --blocks 512 --trace-block-tokens 64 --load 1,4 --compare kv,round_robin",
        file.path().display(),
        html.path().display()
    );
    let args = |line: &str| Cli::try_parse_from(line.split_whitespace()).unwrap().args;
    let report = run(args(&line)).unwrap();
    let runs: Vec<(Mode, f64)> = report.outcomes.iter().map(|outcome| (outcome.mode, outcome.load)).collect();
    assert_eq!(runs, [(Mode::Kv, 1.0), (Mode::RoundRobin, 1.0), (Mode::Kv, 4.0), (Mode::RoundRobin, 4.0)]);
    assert!(
        (report.outcomes[2].offered_per_second / report.outcomes[0].offered_per_second - 4.0).abs() < 0.01
    );
    let page = std::fs::read_to_string(html.path()).unwrap();
    assert_eq!(page.matches("<svg").count(), 4 + 4 + 2 * 4);
    for outside in ["http", "<script", "NaN", "inf"] {
        assert!(!page.contains(outside), "{outside}");
    }
    // One worker with little room cannot keep up for long, whoever routes.
    let few = line.replace("--workers 3", "--workers 1").replace("--load 1,4", "--until-saturated");
    let report = simulate_all(&args(&few)).unwrap();
    assert!(report.outcomes.len() > 2);
    assert_eq!(report.outcomes.iter().filter(|outcome| outcome.saturated).count(), 2);
    for (wrong, told) in [
        ("--load 0", "--load: 0 is not"),
        ("--event-delay-ms=-1", "--event-delay-ms"),
        ("--speedup 0", "--speedup"),
    ] {
        let error =
            simulate_all(&args(&format!("simulate --trace {} {wrong}", file.path().display()))).unwrap_err();
        assert!(error.to_string().contains(told), "{error}");
    }
}

/// Beside the live stack in the same setting, where `MOONCAKE_TRACE` names the conversation trace.
#[test]
#[ignore = "needs the conversation trace, which MOONCAKE_TRACE names"]
fn cached_shares_are_near_those_of_the_live_stack() {
    let path = std::env::var_os("MOONCAKE_TRACE").expect("MOONCAKE_TRACE names the conversation trace");
    let trace = dynamo_trace::read_trace(path.as_ref()).unwrap();
    for (mode, workers, blocks, live) in [
        (Mode::Kv, 8, 2048, 0.2198),
        (Mode::RoundRobin, 8, 2048, 0.0747),
        (Mode::Kv, 4, 2048, 0.1463),
        (Mode::Kv, 8, 512, 0.0791),
        (Mode::Kv, 8, 8192, 0.3075),
    ] {
        let engine = MockerConfig { num_gpu_blocks: blocks, speedup_ratio: 40.0, ..setting(mode).engine };
        let live_setting =
            Setting { workers, engine, speedup: 40.0, shrink: 8, template_tokens: 17, ..setting(mode) };
        let outcome = simulate(&trace, &live_setting).unwrap();
        assert_eq!((outcome.answered, outcome.saturated), (12_031, false));
        let share = outcome.cached_share;
        assert!((share / live - 1.0).abs() < 0.08, "{mode}, {workers} × {blocks}: {share} and {live}");
    }
}

#[test]
fn what_was_sent_tells_nearly_as_much_as_events() {
    let trace = conversations(40, 4, 50.0);
    let share = |caches| {
        let kv = KvRouterConfig { caches, ..KvRouterConfig::REFERENCE };
        simulate(&trace, &Setting { kv, ..setting(Mode::Kv) }).unwrap().cached_share
    };
    let memory = ApproximateConfig::REFERENCE;
    let (events, sent) = (share(CacheSource::Events), share(CacheSource::Sent(memory)));
    assert!(sent > 0.9 * events && events > 0.3, "{sent} beside {events}");
    let lru = share(CacheSource::Sent(ApproximateConfig { policy: CachePolicy::Lru, ..memory }));
    assert!(lru > 0.9 * events, "{lru} beside {events}");
    // A turn comes two seconds after the one before.
    let short = share(CacheSource::Sent(ApproximateConfig { ttl: Duration::from_millis(500), ..memory }));
    assert!(short < 0.85 * events, "{short} beside {events}");
    let both = share(CacheSource::EventsAndSent(memory));
    assert!(both > 0.9 * events, "{both} beside {events}");
}
