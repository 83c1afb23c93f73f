use dynamo_kv_router::{
    AffinityConfig, AffinityMode, KvRouterConfig, QueueConfig, RankLimits, RouterOverrides,
};
use dynamo_runtime::Metrics;
use dynamo_tokens::HashSeed;

use super::*;

/// A router that counts for itself.
pub(crate) fn router_for_tests(config: RouterConfig, block_size: BlockSize) -> Arc<Router> {
    let metrics = RouterMetrics::register(&Metrics::new(), 1, &config.kv.queue).unwrap();
    let meters = metrics.of_router("m", WorkerType::Decode);
    let source = source(&config);
    Arc::new(Router::new(config, block_size, 1, source, meters).unwrap())
}

pub(super) fn source(config: &RouterConfig) -> MatchSource {
    MatchSource::new(config, || unreachable!("no index elsewhere"))
}

const FOUR: BlockSize = BlockSize::new(4).unwrap();

pub(super) const WORKER: RoutedWorker = RoutedWorker {
    worker_id: 7,
    epoch: 1,
    first_rank: 0,
    ranks: 1,
    limits: RankLimits { total_kv_blocks: None, max_num_batched_tokens: Some(100), max_num_seqs: None },
    draining: false,
    taints: Vec::new(),
    adapters: Vec::new(),
};

fn with_workers(config: RouterConfig, workers: &[u64]) -> Arc<Router> {
    let router = router_for_tests(config, FOUR);
    for &worker_id in workers {
        assert!(router.set_worker(&RoutedWorker { worker_id, ..WORKER }));
    }
    router
}

/// Routes a request that need not wait.
pub(super) fn route(router: &Arc<Router>, request: &RouteRequest<'_>) -> Result<Booking, GenerateError> {
    futures_now(router.route(request))
}

pub(super) fn futures_now<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    match future.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
        std::task::Poll::Ready(result) => result,
        std::task::Poll::Pending => panic!("it waits"),
    }
}

fn router(mode: RouterMode) -> Arc<Router> {
    with_workers(RouterConfig::of(mode), &[7, 8, 9])
}

pub(super) fn request<'a>(tokens: &'a [u32], excluded: &'a [u64]) -> RouteRequest<'a> {
    RouteRequest {
        tokens,
        seed: HashSeed::PLAIN,
        adapter: None,
        pinned_worker: None,
        pinned_rank: None,
        expected_output_tokens: None,
        allowed: None,
        excluded,
        session: None,
        priority_jump: 0.0,
        strict_priority: 0,
        policy_class: None,
        deadline: None,
        required_taints: &[],
        preferred_taints: &[],
        overrides: RouterOverrides::default(),
    }
}

fn busy(router: &Router) -> u32 {
    router.loads().iter().map(|(_, load)| load.requests).sum()
}

#[test]
fn round_robin_takes_turns_and_skips_who_refused() {
    let router = router(RouterMode::RoundRobin);
    let tokens = [1; 10];
    let chosen: Vec<u64> =
        (0..6).map(|_| route(&router, &request(&tokens, &[])).unwrap().worker().0).collect();
    assert_eq!(chosen, [7, 8, 9, 7, 8, 9]);
    let chosen: Vec<u64> =
        (0..4).map(|_| route(&router, &request(&tokens, &[8])).unwrap().worker().0).collect();
    assert!(!chosen.contains(&8), "{chosen:?}");
    assert!(matches!(route(&router, &request(&tokens, &[7, 8, 9])), Err(GenerateError::NoWorkers)));
}

#[test]
fn direct_needs_a_worker() {
    let router = router(RouterMode::Direct);
    let tokens = [1; 10];
    assert!(matches!(route(&router, &request(&tokens, &[])), Err(GenerateError::Invalid { .. })));
    let pinned = RouteRequest { pinned_worker: Some(9), ..request(&tokens, &[]) };
    assert_eq!(route(&router, &pinned).unwrap().worker(), (9, 0));
    let unknown = RouteRequest { pinned_worker: Some(10), ..request(&tokens, &[]) };
    assert!(matches!(route(&router, &unknown), Err(GenerateError::NoWorkers)));
}

#[test]
fn taints_that_a_request_needs_bind_it_in_every_mode() {
    use RouterMode::{Kv, LeastLoaded, PowerOfTwo, Random, RoundRobin};
    let taint = |name: &str| vec![name.to_owned()];
    for mode in [RoundRobin, Random, Kv, LeastLoaded, PowerOfTwo] {
        let router = router(mode);
        router.set_worker(&RoutedWorker { worker_id: 8, taints: taint("zone=b"), ..WORKER });
        let tokens = [1; 10];
        let zone = taint("zone=b");
        let wanted = RouteRequest { required_taints: &zone, ..request(&tokens, &[]) };
        let bookings: Vec<Booking> = (0..6).map(|_| route(&router, &wanted).unwrap()).collect();
        assert!(bookings.iter().all(|booking| booking.worker().0 == 8), "{mode}");
        let nowhere = taint("zone=c");
        let nowhere = RouteRequest { required_taints: &nowhere, ..request(&tokens, &[]) };
        assert!(matches!(route(&router, &nowhere), Err(GenerateError::NoWorkers)), "{mode}");
    }
    let router = router(Kv);
    router.set_worker(&RoutedWorker { worker_id: 9, taints: taint("fast"), ..WORKER });
    let preferred = [("fast".to_owned(), 1.0)];
    let tokens = [1; 40];
    let wanted = RouteRequest { preferred_taints: &preferred, ..request(&tokens, &[]) };
    assert!((0..6).all(|_| route(&router, &wanted).unwrap().worker().0 == 9));
}

#[test]
fn a_request_goes_to_those_that_are_allowed_and_by_its_own_settings() {
    let router = router(RouterMode::Kv);
    let tokens: Vec<u32> = (0..40).collect();
    let only = RouteRequest { allowed: Some(&[8, 10]), ..request(&tokens, &[]) };
    assert!((0..6).all(|_| route(&router, &only).unwrap().worker().0 == 8));
    let nobody = RouteRequest { allowed: Some(&[10]), ..request(&tokens, &[]) };
    assert!(matches!(route(&router, &nobody), Err(GenerateError::NoWorkers)));
    let uncounted = RouterOverrides { track_prefill_tokens: Some(false), ..RouterOverrides::default() };
    let uncounted = RouteRequest { overrides: uncounted, ..request(&tokens, &[]) };
    let _booking = route(&router, &uncounted).unwrap();
    assert!(router.loads().iter().all(|(_, load)| load.prefill_tokens == 0));
    assert_eq!(busy(&router), 1);
}

#[tokio::test]
async fn who_waits_for_an_allowed_worker_holds_up_nobody_else() {
    let router = with_workers(queueing(0.3), &[7, 8]);
    let tokens: Vec<u32> = (0..40).collect();
    let on = |worker: u64| RouteRequest { pinned_worker: Some(worker), ..request(&tokens, &[]) };
    let _seven = route(&router, &on(7)).unwrap();
    let eight = route(&router, &on(8)).unwrap();
    let only = RouteRequest { allowed: Some(&[7]), ..request(&tokens, &[]) };
    let anyone = request(&tokens, &[]);
    let mut only = Box::pin(router.route(&only));
    let mut anyone = Box::pin(router.route(&anyone));
    assert!(futures_poll(&mut only).is_none() && futures_poll(&mut anyone).is_none());
    drop(eight);
    assert!(futures_poll(&mut only).is_none());
    assert_eq!(futures_poll(&mut anyone).expect("8 has room").unwrap().worker().0, 8);
}

#[test]
fn the_modes_by_load_take_whoever_runs_less() {
    let tokens = [1; 10];
    let least = router(RouterMode::LeastLoaded);
    let held: Vec<Booking> = (0..9).map(|_| route(&least, &request(&tokens, &[])).unwrap()).collect();
    let count = |held: &[Booking], worker| held.iter().filter(|booking| booking.worker().0 == worker).count();
    assert_eq!([7, 8, 9].map(|worker| count(&held, worker)), [3; 3]);
    let two = router(RouterMode::PowerOfTwo);
    // Whoever runs the most is only taken against itself, and two different ones are drawn.
    let on_seven: Vec<Booking> = (0..20)
        .map(|_| route(&two, &RouteRequest { pinned_worker: Some(7), ..request(&tokens, &[]) }).unwrap())
        .collect();
    let held: Vec<Booking> = (0..20).map(|_| route(&two, &request(&tokens, &[])).unwrap()).collect();
    assert_eq!((on_seven.len(), count(&held, 7)), (20, 0));
    assert!(count(&held, 8) > 0 && count(&held, 9) > 0);
    let alone = request(&tokens, &[7, 8]);
    assert_eq!(route(&two, &alone).unwrap().worker().0, 9);
}

#[test]
fn a_booking_counts_until_it_is_dropped() {
    let router = router(RouterMode::Kv);
    let tokens: Vec<u32> = (0..40).collect();
    let mut booking = route(&router, &request(&tokens, &[])).unwrap();
    assert_eq!(busy(&router), 1);
    let load = |router: &Router| router.loads().into_iter().map(|(_, load)| load.prefill_tokens).sum::<u64>();
    assert_eq!(load(&router), 40);
    booking.on_progress(1, Instant::now());
    assert_eq!((load(&router), busy(&router)), (0, 1));
    drop(booking);
    assert_eq!(busy(&router), 0);
}

#[test]
fn concurrent_requests_spread_while_nothing_is_cached() {
    let router = router(RouterMode::Kv);
    let prompts: Vec<Vec<u32>> = (0..3).map(|prompt| (prompt * 100..prompt * 100 + 40).collect()).collect();
    let bookings: Vec<Booking> =
        prompts.iter().map(|tokens| route(&router, &request(tokens, &[])).unwrap()).collect();
    let mut workers: Vec<u64> = bookings.iter().map(|booking| booking.worker().0).collect();
    workers.sort_unstable();
    assert_eq!(workers, [7, 8, 9]);
}
#[test]
fn an_answer_that_is_slow_goes_on_counting() {
    let router = router(RouterMode::Kv);
    let tokens: Vec<u32> = (0..40).collect();
    let mut slow = route(&router, &request(&tokens, &[])).unwrap();
    let silent = route(&router, &request(&tokens, &[])).unwrap();
    let expiry = KvRouterConfig::REFERENCE.active_request_expiry;
    let start = Instant::now();
    slow.on_progress(1, start);
    slow.on_progress(1, start + expiry / 2);
    let expired = router.scheduler.lock().expire(start + expiry + Duration::from_secs(1));
    assert_eq!((expired, busy(&router)), (1, 1));
    drop((slow, silent));
    assert_eq!(busy(&router), 0);
}

#[test]
fn output_blocks_are_of_tokens_however_they_come() {
    let kv = KvRouterConfig { track_output_blocks: true, ..KvRouterConfig::REFERENCE };
    let router = with_workers(RouterConfig { kv, ..RouterConfig::of(RouterMode::Kv) }, &[7]);
    let tokens: Vec<u32> = (0..8).collect();
    let mut booking = route(&router, &request(&tokens, &[])).unwrap();
    let blocks = |router: &Router| router.loads()[0].1.decode_blocks;
    let before = blocks(&router);
    for tokens in [3, 0, 9, 3, 1] {
        booking.on_progress(tokens, Instant::now());
    }
    assert_eq!(blocks(&router) - before, 4.0);
}

#[test]
fn a_worker_that_cannot_be_taken_on_is_said_to_be() {
    let router = router(RouterMode::Kv);
    let worker = || RoutedWorker { worker_id: 10, ranks: 1 << 20, ..WORKER };
    assert!(!router.set_worker(&worker()));
    assert!(!router.set_worker(&RoutedWorker { worker_id: 7, epoch: 0, ranks: 1, ..worker() }));
    assert!(router.set_worker(&RoutedWorker { ranks: 1, ..worker() }));
}

fn queueing(threshold: f64) -> RouterConfig {
    let queue = QueueConfig { threshold: Some(threshold), ..QueueConfig::OFF };
    RouterConfig {
        kv: KvRouterConfig { queue, ..KvRouterConfig::REFERENCE },
        ..RouterConfig::of(RouterMode::Kv)
    }
}

/// Lets all tasks run until none can go on.
pub(super) async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_request_waits_until_a_worker_has_room_and_goes_in_order() {
    let router = with_workers(queueing(0.3), &[7]);
    let tokens: Vec<u32> = (0..40).collect();
    let mut first = route(&router, &request(&tokens, &[])).unwrap();
    let (done, mut order) = tokio::sync::mpsc::channel(8);
    let mut waiting = tokio::task::JoinSet::new();
    for (number, strict_priority) in [(1, 0), (2, 0), (3, 5)] {
        let (router, tokens, done) = (router.clone(), tokens.clone(), done.clone());
        waiting.spawn(async move {
            let wanted = RouteRequest { strict_priority, ..request(&tokens, &[]) };
            let booking = router.route(&wanted).await.unwrap();
            done.send((number, booking)).await.unwrap();
        });
        settle().await;
    }
    let depth = router.queue_depth();
    assert_eq!((depth.requests, depth.isl_tokens), (3, 120));
    first.on_progress(1, Instant::now());
    let (number, mut urgent) = order.recv().await.unwrap();
    assert_eq!((number, router.queue_depth().requests), (3, 2), "the others wait for it now");
    settle().await;
    assert!(order.try_recv().is_err());
    urgent.on_progress(1, Instant::now());
    let (number, next) = order.recv().await.unwrap();
    assert_eq!(number, 1);
    drop(next);
    assert_eq!(order.recv().await.unwrap().0, 2);
    assert!(!router.line.is_occupied());
}

#[tokio::test]
async fn who_gives_up_leaves_the_line_and_holds_up_nobody() {
    let router = with_workers(queueing(0.3), &[7]);
    let tokens: Vec<u32> = (0..40).collect();
    let mut first = route(&router, &request(&tokens, &[])).unwrap();
    let short = Instant::now() + Duration::from_millis(50);
    let hasty = RouteRequest { deadline: Some(short), ..request(&tokens, &[]) };
    assert!(matches!(router.route(&hasty).await, Err(GenerateError::QueueTimeout)));
    assert_eq!(router.queue_depth(), QueueDepth::default());
    // Two wait; the first is called and dropped before it can go on.
    let wanted = request(&tokens, &[]);
    let mut called = Box::pin(router.route(&wanted));
    let mut next = Box::pin(router.route(&wanted));
    assert!(futures_poll(&mut called).is_none() && futures_poll(&mut next).is_none());
    first.on_progress(1, Instant::now());
    drop(called);
    assert!(futures_poll(&mut next).expect("it is its turn").is_ok());
    assert!(!router.line.is_occupied());
}

fn futures_poll<F: Future>(future: &mut std::pin::Pin<Box<F>>) -> Option<F::Output> {
    match future.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
        std::task::Poll::Ready(result) => Some(result),
        std::task::Poll::Pending => None,
    }
}

#[tokio::test]
async fn a_worker_that_comes_or_goes_calls_those_who_wait() {
    let router = with_workers(queueing(0.3), &[7]);
    let tokens: Vec<u32> = (0..40).collect();
    let _first = route(&router, &request(&tokens, &[])).unwrap();
    let (anyone, pinned) =
        (request(&tokens, &[]), RouteRequest { pinned_worker: Some(7), ..request(&tokens, &[]) });
    let mut anyone = Box::pin(router.route(&anyone));
    let mut pinned = Box::pin(router.route(&pinned));
    assert!(futures_poll(&mut anyone).is_none() && futures_poll(&mut pinned).is_none());
    router.set_worker(&RoutedWorker { worker_id: 8, ..WORKER });
    assert_eq!(futures_poll(&mut anyone).expect("there is room").unwrap().worker().0, 8);
    assert!(futures_poll(&mut pinned).is_none());
    router.remove_worker(7);
    assert!(matches!(futures_poll(&mut pinned), Some(Err(GenerateError::NoWorkers))));
}

#[test]
fn a_line_that_is_full_refuses() {
    let mut config = queueing(0.0);
    config.kv.queue.max_requests = 1;
    let router = with_workers(config, &[7]);
    let tokens: Vec<u32> = (0..40).collect();
    let _first = route(&router, &request(&tokens, &[])).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let _context = runtime.enter();
    let wanted = request(&tokens, &[]);
    let mut waits = Box::pin(router.route(&wanted));
    assert!(futures_poll(&mut waits).is_none());
    assert!(matches!(route(&router, &wanted), Err(GenerateError::Overloaded)));
    drop(waits);
    assert!(!router.line.is_occupied());
}

#[test]
fn a_busy_worker_is_passed_over_in_all_modes() {
    for mode in [RouterMode::Kv, RouterMode::RoundRobin, RouterMode::Random] {
        let router = with_workers(RouterConfig::of(mode), &[7, 8]);
        let given = BusyThresholds { active_prefill_tokens: Some(30), ..BusyThresholds::NONE };
        assert_eq!(router.merge_busy_thresholds(given).unwrap(), given);
        let tokens: Vec<u32> = (0..40).collect();
        let first = route(&router, &request(&tokens, &[])).unwrap();
        let second = route(&router, &request(&tokens, &[])).unwrap();
        assert_ne!(first.worker(), second.worker(), "{mode}");
        assert!(matches!(route(&router, &request(&tokens, &[])), Err(GenerateError::Overloaded)), "{mode}");
    }
}

fn session(id: &str, parent: Option<&str>) -> Session {
    Session { id: id.into(), parent: parent.map(Into::into), is_final: false }
}

#[test]
fn a_session_stays_with_its_worker_and_a_final_request_ends_it() {
    let affinity = AffinityConfig { ttl: Duration::from_secs(60), mode: AffinityMode::Hard };
    let config = RouterConfig { affinity: Some(affinity), ..RouterConfig::of(RouterMode::RoundRobin) };
    let router = with_workers(config, &[7, 8, 9]);
    let tokens = [1; 10];
    let send = |session: &Session| {
        let wanted = RouteRequest { session: Some(session), ..request(&tokens, &[]) };
        route(&router, &wanted).unwrap().worker().0
    };
    let (a, child) = (session("a", None), session("b", Some("a")));
    assert_eq!([send(&a), send(&session("c", None)), send(&a), send(&child)], [7, 8, 7, 7]);
    router.set_worker(&RoutedWorker { draining: true, ..WORKER });
    assert_eq!([send(&a), send(&a)], [9, 9], "its worker leaves, and it has another");
    assert_eq!(send(&Session { is_final: true, ..a.clone() }), 9);
    assert_eq!(send(&a), 8, "a new one under the old name");
}

#[test]
fn a_soft_session_goes_elsewhere_when_its_worker_is_busy_and_a_hard_one_does_not() {
    for mode in [AffinityMode::Soft, AffinityMode::Hard] {
        let affinity = Some(AffinityConfig { ttl: Duration::from_secs(60), mode });
        let router = with_workers(RouterConfig { affinity, ..RouterConfig::of(RouterMode::Kv) }, &[7, 8]);
        let given = BusyThresholds { active_prefill_tokens: Some(30), ..BusyThresholds::NONE };
        router.merge_busy_thresholds(given).unwrap();
        let tokens: Vec<u32> = (0..40).collect();
        let session = session("a", None);
        let wanted = RouteRequest { session: Some(&session), ..request(&tokens, &[]) };
        let first = route(&router, &wanted).unwrap();
        let second = route(&router, &wanted);
        match mode {
            AffinityMode::Soft => assert_ne!(second.unwrap().worker(), first.worker()),
            AffinityMode::Hard => assert!(matches!(second, Err(GenerateError::Overloaded))),
        }
    }
}

#[test]
fn advice_books_nothing() {
    let router = router(RouterMode::Kv);
    let tokens: Vec<u32> = (0..40).collect();
    let pinned = RouteRequest { pinned_worker: Some(9), ..request(&tokens, &[]) };
    let advised = futures_now(router.advise(&pinned)).unwrap();
    assert_eq!((advised.worker_id, busy(&router)), (9, 0));
}
