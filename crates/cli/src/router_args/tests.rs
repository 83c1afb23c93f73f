use clap::Parser;
use dynamo_kv_router::{ApproximateConfig, CachePolicy, CacheSource, QueuePolicy};
use dynamo_llm::IndexPlace;
use dynamo_runtime::config::Env;

use super::*;

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    router: RouterArgs,
}

fn resolve(args: &[&str], env: &[(&'static str, &str)]) -> anyhow::Result<RouterConfig> {
    let args = Command::try_parse_from(["test"].iter().chain(args))?;
    let env = Env::default().with(env.iter().copied());
    args.router.resolve(&mut Layers::new(&env, None), RouterMode::RoundRobin)
}

#[test]
fn nothing_given_is_the_default() {
    assert_eq!(resolve(&[], &[]).unwrap().kv, KvRouterConfig::DEFAULT);
}

#[test]
fn the_older_weight_is_what_the_newer_settings_start_from() {
    let weight = [("DYN_ROUTER_KV_OVERLAP_SCORE_WEIGHT", "0")];
    let kv = resolve(&[], &weight).unwrap().kv;
    assert_eq!((kv.prefill_load_scale, kv.overlap_score_credit), (0.0, 0.0));
    let kv = resolve(&["--router-prefill-load-scale", "2"], &weight).unwrap().kv;
    assert_eq!((kv.prefill_load_scale, kv.overlap_score_credit), (2.0, 0.0));
}

#[test]
fn flags_go_over_variables_and_reach_the_router() {
    let env = [
        ("DYN_ROUTER_QUEUE_THRESHOLD", "4"),
        ("DYN_ROUTER_QUEUE_POLICY", "wspt"),
        ("DYN_ROUTER_REPLICA_SYNC", "true"),
        ("DYN_ROUTER_ACTIVE_REQUEST_EXPIRY_SECS", "60"),
        ("DYN_ROUTER_TRACK_PREFILL_TOKENS", "true"),
        ("DYN_ROUTER_ROOM_WEIGHT", "0.25"),
    ];
    let args = [
        "--router-queue-policy=lcfs",
        "--active-decode-blocks-threshold=0.9",
        "--router-session-affinity-ttl-secs=5",
        "--router-session-affinity-mode=soft",
        "--router-max-imbalance=0",
    ];
    let config = resolve(&args, &env).unwrap();
    let kv = config.kv;
    assert_eq!((kv.queue.threshold, kv.queue.policy), (Some(4.0), QueuePolicy::Lcfs));
    assert_eq!((kv.busy.active_decode_blocks, kv.max_imbalance), (Some(0.9), None));
    assert_eq!((kv.active_request_expiry, kv.room_weight), (Duration::from_secs(60), 0.25));
    assert!(config.replica_sync);
    let affinity = AffinityConfig { ttl: Duration::from_secs(5), mode: AffinityMode::Soft };
    assert_eq!(config.affinity, Some(affinity));
}

#[test]
fn one_thread_for_events_is_the_plain_tree_unless_an_index_is_named() {
    let index = |args: &[&str], env: &[(&'static str, &'static str)]| {
        let config = resolve(args, env).unwrap();
        (config.indexer, config.event_threads.get())
    };
    assert_eq!(index(&[], &[]), (IndexerKind::Run, 4));
    assert_eq!(index(&[], &[("DYN_ROUTER_EVENT_THREADS", "1")]), (IndexerKind::Radix, 1));
    assert_eq!(index(&["--router-event-threads=1", "--router-indexer=run"], &[]), (IndexerKind::Run, 1));
    let error = format!("{:#}", resolve(&[], &[("DYN_ROUTER_INDEXER", "flat")]).unwrap_err());
    assert!(error.contains("positional"), "{error}");
}

#[test]
fn caches_are_known_by_events_by_what_was_sent_or_by_both() {
    let caches = |args: &[&str], env: &[(&'static str, &'static str)]| resolve(args, env).unwrap().kv.caches;
    let memory = ApproximateConfig::REFERENCE;
    let off = [("DYN_ROUTER_USE_KV_EVENTS", "false"), ("DYN_ROUTER_TTL_SECS", "5")];
    let short = ApproximateConfig { ttl: Duration::from_secs(5), ..memory };
    assert_eq!(caches(&["--no-router-kv-events"], &[]), CacheSource::Sent(memory));
    assert_eq!(caches(&["--no-kv-events"], &[]), CacheSource::Sent(memory));
    assert_eq!(caches(&[], &off), CacheSource::Sent(short));
    assert_eq!(caches(&[], &[("DYN_USE_KV_EVENTS", "false")]), CacheSource::Sent(memory));
    assert_eq!(caches(&["--router-kv-events"], &off), CacheSource::Events);
    let full = [
        "--no-router-kv-events",
        "--router-approximate-cache-policy=lru",
        "--router-max-tree-size=1000",
        "--router-prune-target-ratio=0.5",
    ];
    let policy = CachePolicy::Lru;
    let lru = ApproximateConfig { policy, max_blocks: 1000, prune_target_ratio: 0.5, ..memory };
    assert_eq!(caches(&full, &[]), CacheSource::Sent(lru));
    let predicted = caches(&["--router-predicted-ttl-secs=5"], &[]);
    assert_eq!(predicted, CacheSource::EventsAndSent(short));
}

#[test]
fn a_shared_cache_counts_half_unless_something_else_is_said() {
    let multiplier = |args: &[&str], env: &[(&'static str, &'static str)]| {
        resolve(args, env).map(|config| config.kv.shared_cache_multiplier)
    };
    let env = [("DYN_SHARED_CACHE_TYPE", "hicache"), ("DYN_SHARED_CACHE_MULTIPLIER", "0.25")];
    assert_eq!(multiplier(&[], &[]).unwrap(), 0.0);
    assert_eq!(multiplier(&["--shared-cache-type=hicache"], &[]).unwrap(), 0.5);
    assert_eq!(multiplier(&[], &env[..1]).unwrap(), 0.5);
    assert_eq!(multiplier(&[], &env).unwrap(), 0.25);
    assert_eq!(multiplier(&["--shared-cache-multiplier=1"], &env).unwrap(), 1.0);
    let error = |args: &[&str], env: &[(&'static str, &'static str)]| {
        format!("{:#}", multiplier(args, env).unwrap_err())
    };
    for alone in [error(&[], &env[1..]), error(&["--shared-cache-type=none"], &env)] {
        assert!(alone.contains("give --shared-cache-type hicache"), "{alone}");
    }
    let unknown = error(&[], &[("DYN_SHARED_CACHE_TYPE", "lmcache")]);
    assert!(unknown.contains("none or hicache"), "{unknown}");
}

#[test]
fn classes_are_read_from_a_file_and_what_is_wrong_with_it_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = |text: &str| {
        let path = folder.path().join("classes.yaml");
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let path = file("classes: {batch: {weight: 3, threshold: 0.5}}");
    let queue = resolve(&["--router-policy-config", &path], &[]).unwrap().kv.queue;
    assert_eq!(queue.class_names().map(|(_, name)| name).collect::<Vec<_>>(), ["default", "batch"]);
    assert_eq!((queue.threshold, queue.is_used()), (None, true));
    let env = [("DYN_ROUTER_POLICY_CONFIG", &*path), ("DYN_ROUTER_QUEUE_THRESHOLD", "2")];
    assert_eq!(resolve(&[], &env).unwrap().kv.queue.class_count(), 2);
    let error = |args: &[&str]| format!("{:#}", resolve(args, &[]).err().unwrap());
    let path = file("classes: {batch: {weight: 3}}");
    let idle = error(&["--router-policy-config", &path]);
    assert!(idle.contains("set queue_threshold"), "{idle}");
    let path = file("classes:\n  batch:\n    wieght: 3\n");
    let wrong = error(&["--router-policy-config", &path, "--router-queue-threshold=1"]);
    assert!(wrong.contains("classes.yaml") && wrong.contains("line 3"), "{wrong}");
    let none = error(&["--router-policy-config", "no/such/file"]);
    assert!(none.contains("--router-policy-config no/such/file"), "{none}");
}

#[test]
fn an_index_is_this_processs_own_served_or_elsewhere() {
    let place = |args: &[&str], env: &[(&'static str, &'static str)]| {
        let args = [&["--router-mode=kv"], args].concat();
        resolve(&args, env).map(|config| config.index_place).map_err(|error| format!("{error:#}"))
    };
    assert_eq!(place(&[], &[]), Ok(IndexPlace::Own));
    assert_eq!(place(&["--serve-indexer"], &[]), Ok(IndexPlace::Served));
    assert_eq!(place(&["--use-remote-indexer"], &[]), Ok(IndexPlace::Elsewhere));
    let (serve, ask) = (("DYN_SERVE_INDEXER", "true"), ("DYN_USE_REMOTE_INDEXER", "1"));
    assert_eq!(place(&[], &[serve]), Ok(IndexPlace::Served));
    assert_eq!(place(&[], &[ask]), Ok(IndexPlace::Elsewhere));
    let error = place(&["--serve-indexer"], &[ask]).unwrap_err();
    assert!(error.contains("--serve-indexer and --use-remote-indexer exclude each other"), "{error}");
    let error = place(&["--use-remote-indexer", "--no-router-kv-events"], &[]).unwrap_err();
    assert!(error.contains("--use-remote-indexer needs KV events"), "{error}");
    let error = format!("{:#}", resolve(&["--serve-indexer"], &[]).unwrap_err());
    assert!(error.contains("give --router-mode kv"), "{error}");
}

#[test]
fn so_many_workers_are_waited_for() {
    let workers = |args: &[&str], env: &[(&'static str, &'static str)]| {
        resolve(args, env).map(|config| config.min_initial_workers)
    };
    let variable = [("DYN_ROUTER_MIN_INITIAL_WORKERS", "3")];
    assert_eq!((workers(&[], &[]).unwrap(), workers(&[], &variable).unwrap()), (0, 3));
    assert_eq!(workers(&["--router-min-initial-workers=2"], &variable).unwrap(), 2);
    assert!(workers(&[], &[("DYN_ROUTER_MIN_INITIAL_WORKERS", "-1")]).is_err());
}

#[test]
fn what_cannot_be_used_is_named() {
    for (args, words) in [
        (&["--router-queue-policy=sjf"][..], "fcfs"),
        (&["--active-decode-blocks-threshold=2"], "active_decode_blocks_threshold"),
        (&["--router-max-imbalance=0.5"], "max_imbalance"),
        (&["--router-session-affinity-ttl-secs=0.5"], "at least 1"),
        (&["--router-session-affinity-mode=firm"], "hard or soft"),
        (&["--router-queue-threshold=1", "--no-router-track-prefill-tokens"], "track_prefill_tokens"),
        (&["--router-approximate-cache-policy=lru"], "--no-router-kv-events"),
        (&["--router-approximate-cache-policy=fifo"], "ttl or lru"),
        (&["--no-router-kv-events", "--router-predicted-ttl-secs=1"], "--router-ttl-secs"),
        (&["--no-router-kv-events", "--router-ttl-secs=0"], "router-ttl-secs"),
        (&["--shared-cache-type=hicache", "--shared-cache-multiplier=2"], "between 0 and 1"),
        (&["--shared-cache-multiplier=0.5"], "--shared-cache-type hicache"),
        (&["--shared-cache-type=lmcache"], "none or hicache"),
        (&["--shared-cache-type=hicache", "--no-router-kv-events"], "needs KV events"),
        (&["--router-predicted-ttl-secs=-1"], "--router-predicted-ttl-secs"),
    ] {
        let error = format!("{:#}", resolve(args, &[]).unwrap_err());
        assert!(error.contains(words), "{error}");
    }
    let odd = resolve(&[], &[("DYN_ROUTER_ACTIVE_REQUEST_EXPIRY_SECS", "0")]).unwrap();
    assert_eq!(odd.kv.active_request_expiry, KvRouterConfig::DEFAULT.active_request_expiry);
}

#[test]
fn prompts_count_less_while_they_are_computed_where_a_model_says_so() {
    let model = |args: &[&str], env: &[(&'static str, &'static str)]| {
        resolve(args, env).map(|config| config.kv.prefill_load_model).map_err(|error| format!("{error:#}"))
    };
    let variable = |value| [("DYN_ROUTER_PREFILL_LOAD_MODEL", value)];
    assert_eq!(model(&[], &[]), Ok(PrefillLoadModel::None));
    assert_eq!(model(&[], &variable("measured")), Ok(PrefillLoadModel::Measured));
    let none = ["--router-prefill-load-model=none"];
    assert_eq!(model(&none, &variable("measured")), Ok(PrefillLoadModel::None));
    for foreign in ["ais", "aic"] {
        let flag = format!("--router-prefill-load-model={foreign}");
        for error in [model(&[&flag], &[]), model(&[], &variable(foreign))] {
            let error = error.unwrap_err();
            assert!(error.contains(foreign) && error.contains("use measured"), "{error}");
        }
    }
    let error = model(&["--no-router-track-prefill-tokens"], &variable("measured")).unwrap_err();
    assert!(error.contains("measured needs track_prefill_tokens"), "{error}");
}
