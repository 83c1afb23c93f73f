use std::{sync::Arc, time::Instant};

use dynamo_kv_router::{KvRouterConfig, PolicyClasses, QueueConfig};
use dynamo_runtime::Metrics;
use dynamo_tokens::BlockSize;

use super::super::{
    Booking, Router, RouterConfig, RouterMetrics, RouterMode,
    tests::{WORKER, request, route, settle, source},
    *,
};
use crate::GenerateError;

/// A router with one worker, whose steps have 100 tokens; requests wait while it has more than 30 outstanding.
fn router(classes: &str) -> (Metrics, RouterMetrics, Arc<Router>) {
    let classes = PolicyClasses::from_yaml(classes).unwrap();
    let queue = QueueConfig { threshold: Some(0.3), classes: Some(Arc::new(classes)), ..QueueConfig::OFF };
    let metrics = Metrics::new();
    let families = RouterMetrics::register(&metrics, 1, &queue).unwrap();
    let config = RouterConfig {
        kv: KvRouterConfig { queue, ..KvRouterConfig::REFERENCE },
        ..RouterConfig::of(RouterMode::Kv)
    };
    let (four, source) = (BlockSize::new(4).unwrap(), source(&config));
    let router =
        Arc::new(Router::new(config, four, 1, source, families.of_router("m", WorkerType::Decode)).unwrap());
    assert!(router.set_worker(&WORKER));
    (metrics, families, router)
}

/// The value of a series of a class, if it is there.
fn series(metrics: &Metrics, family: &str, class: &str, more: &str) -> Option<u64> {
    let mut text = String::new();
    metrics.encode_text(&mut text);
    let name = format!("dynamo_frontend_router_{family}{{");
    let label = format!("policy_class=\"{class}\"");
    let is_it = |line: &&str| line.starts_with(&name) && line.contains(&label) && line.contains(more);
    text.lines().find(is_it)?.rsplit(' ').next()?.parse().ok()
}

const SHARES: &str = "{quantum: 40, classes: {chat: {weight: 3}, batch: {}}}";

#[tokio::test]
async fn two_classes_share_a_busy_worker_by_weight() {
    let (metrics, families, router) = router(SHARES);
    let prompt = |number: u32| (number * 100..number * 100 + 40).collect::<Vec<u32>>();
    let mut running = route(&router, &request(&prompt(0), &[])).unwrap();
    let (done, mut order) = tokio::sync::mpsc::channel::<(&str, Booking)>(32);
    let mut waiting = tokio::task::JoinSet::new();
    for number in 1..=24 {
        let class = if number <= 12 { "batch" } else { "chat" };
        let (router, done, tokens) = (router.clone(), done.clone(), prompt(number));
        waiting.spawn(async move {
            let wanted = RouteRequest { policy_class: Some(class), ..request(&tokens, &[]) };
            let booking = router.route(&wanted).await.unwrap();
            done.send((class, booking)).await.unwrap();
        });
        settle().await;
    }
    let requests = |name, depth: dynamo_kv_router::QueueDepth| (name, depth.requests, depth.isl_tokens);
    let depths: Vec<_> =
        router.queue_depths().into_iter().map(|(name, depth)| requests(name, depth)).collect();
    assert_eq!(depths, [("default", 0, 0), ("batch", 12, 480), ("chat", 12, 480)]);
    let mut classes = Vec::new();
    for _ in 0..24 {
        running.on_progress(1, Instant::now());
        let (class, next) = order.recv().await.unwrap();
        classes.push(class);
        running = next;
    }
    let chats = |classes: &[&str]| classes.iter().filter(|class| **class == "chat").count();
    for turn in 1..4 {
        assert_eq!(chats(&classes[..turn * 4]), turn * 3, "{classes:?}");
    }
    assert_eq!(chats(&classes[16..]), 0, "batch has the worker for itself");
    assert!(!router.line.is_occupied());
    let received = |class| series(&metrics, "admission_received_total", class, "model=\"m\"");
    assert_eq!(["default", "batch", "chat"].map(received), [Some(1), Some(12), Some(12)]);
    families.forget("m");
    assert_eq!(received("chat"), None);
}

#[tokio::test]
async fn a_class_has_limits_a_wait_and_a_threshold_of_its_own() {
    let (metrics, _, router) = router(
        "
classes:
  none: {request_limit: 0}
  short: {raw_isl_token_limit: 39}
  hasty: {max_wait_secs: 0.02}
  eager: {threshold: 1}
rules: [{class: none, models: [m], isl_tokens: {min: 41}}]
",
    );
    let tokens: Vec<u32> = (0..40).collect();
    let _running = route(&router, &request(&tokens, &[])).unwrap();
    let of = |class| RouteRequest { policy_class: Some(class), ..request(&tokens, &[]) };
    assert!(matches!(route(&router, &of("none")), Err(GenerateError::Overloaded)));
    assert!(matches!(route(&router, &of("short")), Err(GenerateError::Overloaded)));
    let longer: Vec<u32> = (0..41).collect();
    assert!(matches!(route(&router, &request(&longer, &[])), Err(GenerateError::Overloaded)), "by a rule");
    assert!(matches!(router.route(&of("hasty")).await, Err(GenerateError::QueueTimeout)));
    let why = |class, reason: &str| {
        let reason = format!("reason=\"{reason}\"");
        series(&metrics, "queue_backpressure_total", class, &reason)
    };
    assert_eq!(why("none", "request_limit"), Some(2));
    assert_eq!(why("short", "raw_isl_token_limit"), Some(1));
    assert_eq!(why("hasty", "deadline_exceeded"), Some(1));
    assert_eq!(series(&metrics, "admission_rejected_total", "none", ""), Some(2));
    // Somebody waits, and there is room all the same by the threshold of its class.
    let anyone = request(&tokens, &[]);
    let mut waits = Box::pin(router.route(&anyone));
    tokio::select! {
        biased;
        _ = &mut waits => panic!("there is no room"),
        () = settle() => {}
    }
    drop(route(&router, &of("eager")).unwrap());
    assert_eq!(router.queue_depth().requests, 1);
}

#[test]
fn a_class_that_there_is_not_is_the_default_one_and_counted() {
    let (metrics, _, router) = router(SHARES);
    let tokens: Vec<u32> = (0..10).collect();
    for name in ["Chat", "none"] {
        route(&router, &RouteRequest { policy_class: Some(name), ..request(&tokens, &[]) }).unwrap();
    }
    assert_eq!(router.meters.unknown_classes.get(), 2);
    assert_eq!(series(&metrics, "admission_received_total", "default", ""), Some(2));
}
