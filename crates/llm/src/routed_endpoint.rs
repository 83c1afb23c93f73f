//! One endpoint's router in step with its workers: discovery, cards, KV events and their recovery. No text.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use dynamo_kv_router::ACTIVE_SEQUENCES_TOPIC;
use dynamo_runtime::{
    Client, DistributedRuntime, EndpointId, EventScope, TaskScope, events::EventPlaneError,
    metrics::MetricsError,
};
use dynamo_tokens::BlockSize;
use tokio::sync::{mpsc, watch};

use crate::{
    IndexPlace, KV_EVENTS_TOPIC, KV_INDEX_ENDPOINT, KV_QUERY_ENDPOINT, RouterConfig,
    index_servers::IndexServers,
    kv_events::{Follower, WORKER_NEWS_CAPACITY, WorkerNews},
    router::{MatchSource, RemoteIndex, Router, RouterMetrics, StartRouterError, WorkerType},
    warmup::Warmup,
    worker_count::WorkerCount,
    worker_sync::{WorkerCards, WorkerSync},
};

/// Why an endpoint could not be followed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FollowError {
    #[error(transparent)]
    Router(#[from] StartRouterError),
    #[error(transparent)]
    Events(#[from] EventPlaneError),
}

/// What the routers of a process have in common.
pub(crate) struct RoutingContext {
    pub(crate) runtime: DistributedRuntime,
    pub(crate) config: RouterConfig,
    pub(crate) metrics: RouterMetrics,
    /// What the routers' workers do.
    worker_type: WorkerType,
    /// Answers others with the routers' indexes, where it is to.
    index_servers: Arc<IndexServers>,
}

impl RoutingContext {
    pub(crate) fn new(runtime: &DistributedRuntime, config: RouterConfig) -> Result<Self, MetricsError> {
        let router_id = runtime.incarnation().worker_id.get();
        let metrics = RouterMetrics::register(runtime.metrics(), router_id, &config.kv.queue)?;
        let index_servers = Arc::new(IndexServers::new(runtime.clone(), metrics.served_queries()));
        let worker_type = WorkerType::Decode;
        Ok(Self { runtime: runtime.clone(), config, metrics, worker_type, index_servers })
    }

    /// The same for prefill workers: what a prompt leaves behind does not count there, and nobody waits for more of them.
    pub(crate) fn of_prefill(&self) -> Self {
        let mut config = self.config.clone();
        config.kv.track_active_blocks = false;
        config.kv.track_output_blocks = false;
        config.min_initial_workers = 0;
        Self {
            runtime: self.runtime.clone(),
            config,
            metrics: self.metrics.clone(),
            worker_type: WorkerType::Prefill,
            index_servers: self.index_servers.clone(),
        }
    }
}

/// The router of one endpoint, with the tasks that keep it up to date.
pub(crate) struct RoutedEndpoint {
    pub(crate) router: Arc<Router>,
    pub(crate) client: Client,
    cards: watch::Sender<WorkerCards>,
    routed: Arc<WorkerCount>,
    warmup: Arc<Warmup>,
    scope: TaskScope,
}

impl RoutedEndpoint {
    /// Begins to follow the workers of `endpoint`, which serve `model`, once it is told which they are. A worker's dump is
    /// waited for as long as `patience`.
    pub(crate) async fn start(
        context: &Arc<RoutingContext>,
        endpoint: &EndpointId,
        model: &str,
        block_size: BlockSize,
        patience: Duration,
        scope: TaskScope,
    ) -> Result<Self, FollowError> {
        let RoutingContext { runtime, config, metrics, .. } = &**context;
        let router_id = runtime.incarnation().worker_id.get();
        let routed = Arc::new(WorkerCount::new(config.min_initial_workers));
        let index_endpoint = EndpointId { endpoint: KV_INDEX_ENDPOINT.to_owned(), ..endpoint.clone() };
        let source = MatchSource::new(config, || {
            let client = runtime.client(index_endpoint.clone());
            RemoteIndex::new(client, block_size, metrics.remote_queries())
        });
        let meters = metrics.of_router(model, context.worker_type);
        let router = Arc::new(Router::new(config.clone(), block_size, router_id, source, meters)?);
        sync_replicas(runtime, &router, endpoint, &scope).await?;
        let client = runtime.client(endpoint.clone());
        let warmup = Arc::new(Warmup::new(patience));
        let news = follow_events(runtime, &router, &warmup, endpoint, &scope).await?;
        let (cards, changes) = watch::channel(WorkerCards::default());
        let sync = WorkerSync::new(router.clone(), news, routed.clone());
        scope.spawn("workers", sync.run(client.clone(), changes, scope.clone()));
        if router.forgets_sent() {
            scope.spawn("sent-prompts", router.clone().forget_sent(scope.clone()));
        }
        let is_served = config.index_place == IndexPlace::Served && router.wants_events();
        let this = Self { router, client, cards, routed, warmup, scope };
        if is_served {
            this.serve_index(context.clone(), index_endpoint);
        }
        Ok(this)
    }

    /// Lets others ask the index once it knows what the workers hold.
    fn serve_index(&self, context: Arc<RoutingContext>, endpoint: EndpointId) {
        let (router, warmup, routed) = (self.router.clone(), self.warmup.clone(), self.routed.clone());
        let scope = self.scope.clone();
        self.scope.spawn("serve-index", async move {
            let is_settled = || warmup.is_settled() && routed.has_begun();
            context.index_servers.serve(endpoint, &router, is_settled, &scope).await;
        });
    }

    /// Whether requests go to somebody, also if only to workers in doubt.
    pub(crate) fn has_workers(&self) -> bool {
        self.routed.now() > 0
    }

    /// Whether as many workers have been there as requests are to wait for.
    pub(crate) fn has_begun(&self) -> bool {
        self.routed.has_begun()
    }

    /// Whether there are workers enough, and what each one holds is known or was not to be had in time.
    pub(crate) fn is_settled(&self) -> bool {
        let is_known = if self.router.wants_events() { self.warmup.is_settled() } else { self.has_workers() };
        is_known && self.has_begun()
    }

    pub(crate) fn warmup(&self) -> &Warmup {
        &self.warmup
    }

    /// Says which workers have registered, with what card.
    pub(crate) fn set_workers(&self, cards: WorkerCards) {
        self.warmup.expect(&cards.own.keys().copied().collect(), Instant::now());
        self.cards.send_if_modified(|known| {
            let changed = *known != cards;
            *known = cards;
            changed
        });
    }

    /// Ends its tasks. Requests that run go on to their end.
    pub(crate) fn close(&self) {
        self.scope.cancel();
    }
}

/// Lets the router speak with others of the same workers, if it is to.
async fn sync_replicas(
    runtime: &DistributedRuntime,
    router: &Arc<Router>,
    endpoint: &EndpointId,
    scope: &TaskScope,
) -> Result<(), EventPlaneError> {
    if !router.syncs_replicas() {
        return Ok(());
    }
    let events = EventScope::component(endpoint.namespace.clone(), endpoint.component.clone());
    let plane = runtime.event_plane();
    let subscriber = plane.subscribe(events.clone(), ACTIVE_SEQUENCES_TOPIC).await?;
    let publisher = plane.publisher(events, ACTIVE_SEQUENCES_TOPIC).await?;
    scope.spawn("replicas", router.clone().sync_replicas(publisher, subscriber, scope.clone()));
    Ok(())
}

/// Subscribes to KV events where they matter, and starts the follower.
async fn follow_events(
    runtime: &DistributedRuntime,
    router: &Arc<Router>,
    warmup: &Arc<Warmup>,
    endpoint: &EndpointId,
    scope: &TaskScope,
) -> Result<Option<mpsc::Sender<WorkerNews>>, EventPlaneError> {
    if !router.wants_events() {
        return Ok(None);
    }
    let events = EventScope::component(endpoint.namespace.clone(), endpoint.component.clone());
    let subscriber = runtime.event_plane().subscribe(events, KV_EVENTS_TOPIC).await?;
    let queries = EndpointId { endpoint: KV_QUERY_ENDPOINT.to_owned(), ..endpoint.clone() };
    let queries = runtime.client(queries);
    let (news, received) = mpsc::channel(WORKER_NEWS_CAPACITY);
    let follower = Follower::new(router.clone(), queries, warmup.clone(), scope.clone());
    scope.spawn("kv-events", follower.run(subscriber, received));
    Ok(Some(news))
}
