use std::time::Duration;

use dynamo_kv_router::{ApproximateConfig, CacheSource, KvRouterConfig, SlotLoad};
use dynamo_runtime::{
    Epoch, EventHub, EventPlane, EventScope, Incarnation, Metrics, WorkerId,
    events::{EventMetrics, EventPlaneConfig, EventPlaneKind},
};
use dynamo_tokens::BlockSize;

use super::*;
use crate::router::{
    Booking, RoutedWorker, RouterConfig, RouterMetrics, RouterMode,
    tests::{WORKER, request, source},
};

/// No test waits longer for anything.
const PATIENCE: Duration = Duration::from_secs(20);

struct Replica {
    router: Arc<Router>,
    scope: TaskScope,
}

impl Replica {
    async fn start(id: u64, hub: &EventHub, root: &TaskScope) -> Self {
        Self::start_with(RouterConfig::of(RouterMode::Kv), id, hub, root).await
    }

    async fn start_with(config: RouterConfig, id: u64, hub: &EventHub, root: &TaskScope) -> Self {
        let metrics = Metrics::new();
        let meters = RouterMetrics::register(&metrics, id, &dynamo_kv_router::QueueConfig::OFF)
            .unwrap()
            .of_router("m", crate::router::WorkerType::Decode);
        let config = RouterConfig { replica_sync: true, ..config };
        let (four, source) = (BlockSize::new(4).unwrap(), source(&config));
        let router = Arc::new(Router::new(config, four, id, source, meters).unwrap());
        for worker_id in [7, 8] {
            router.set_worker(&RoutedWorker { worker_id, ..WORKER });
        }
        let incarnation = Incarnation { worker_id: WorkerId::from_bits(id), epoch: Epoch::from_unix_ms(1) };
        let events = EventMetrics::new(&metrics).unwrap();
        let config = EventPlaneConfig::loopback(EventPlaneKind::InProcess);
        let plane = EventPlane::in_process(hub.clone(), incarnation, &config, events);
        let topic = dynamo_kv_router::ACTIVE_SEQUENCES_TOPIC;
        let about = || EventScope::component("ns", "backend");
        let subscriber = plane.subscribe(about(), topic).await.unwrap();
        let publisher = plane.publisher(about(), topic).await.unwrap();
        let scope = root.child("replica");
        scope.spawn("replicas", router.clone().sync_replicas(publisher, subscriber, scope.clone()));
        Self { router, scope }
    }

    async fn send(&self, tokens: &[u32]) -> Booking {
        self.router.route(&request(tokens, &[])).await.unwrap()
    }

    fn total(&self) -> SlotLoad {
        let mut total = SlotLoad::default();
        for (_, load) in self.router.loads() {
            total.requests += load.requests;
            total.prefill_tokens += load.prefill_tokens;
            total.decode_blocks += load.decode_blocks;
        }
        total
    }

    async fn until(&self, expected: SlotLoad) {
        let reached = async {
            while self.total() != expected {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, reached).await;
        assert!(waited.is_ok(), "{:?} instead of {expected:?}", self.total());
    }
}

#[tokio::test]
async fn routers_count_each_others_requests_until_they_are_over_or_their_router_is_gone() {
    let (hub, root) = (EventHub::new(), TaskScope::root(tokio::runtime::Handle::current()));
    let one = Replica::start(1, &hub, &root).await;
    let two = Replica::start(2, &hub, &root).await;
    let tokens: Vec<u32> = (0..40).collect();
    let mut first = one.send(&tokens).await;
    let running = SlotLoad { prefill_tokens: 40, decode_blocks: 10.0, requests: 1 };
    two.until(running).await;
    let second = two.send(&[9; 40]).await;
    assert_ne!(first.worker(), second.worker(), "it knew of the other's");
    one.until(SlotLoad { prefill_tokens: 80, decode_blocks: 20.0, requests: 2 }).await;
    first.on_progress(1, Instant::now());
    two.until(SlotLoad { prefill_tokens: 40, decode_blocks: 20.0, requests: 2 }).await;
    drop(first);
    two.until(running).await;
    // The second router dies without a word.
    two.scope.cancel();
    one.until(SlotLoad::default()).await;
    drop(second);
}

#[tokio::test]
async fn without_events_routers_know_what_the_others_sent() {
    let (hub, root) = (EventHub::new(), TaskScope::root(tokio::runtime::Handle::current()));
    let caches = CacheSource::Sent(ApproximateConfig::REFERENCE);
    let kv = KvRouterConfig { caches, ..KvRouterConfig::REFERENCE };
    let config = RouterConfig { kv, ..RouterConfig::of(RouterMode::Kv) };
    let one = Replica::start_with(config.clone(), 1, &hub, &root).await;
    let two = Replica::start_with(config, 2, &hub, &root).await;
    let tokens: Vec<u32> = (0..40).collect();
    let first = one.send(&tokens).await;
    let told = async {
        while two.router.sent_counts().blocks < 10 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, told).await.expect("it is told");
    let worker = first.worker();
    drop(first);
    two.until(SlotLoad::default()).await;
    let again = two.send(&tokens).await;
    assert_eq!((again.worker(), again.overlap_blocks()), (worker, 10));
    two.scope.cancel();
}
