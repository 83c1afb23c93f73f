//! One model made ready.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use dynamo_kv_router::ACTIVE_SEQUENCES_TOPIC;
use dynamo_runtime::{EndpointId, EventScope, TaskScope, WorkerId, events::EventPlaneError};
use dynamo_tokens::BlockSize;
use tokio::sync::{mpsc, watch};

use crate::{
    KV_EVENTS_TOPIC, KV_QUERY_ENDPOINT, ModelCard, ModelInfo,
    catalog::{Builder, unix_seconds},
    files::MAX_FILE_BYTES,
    keeper::Registered,
    kv_events::{Follower, WORKER_NEWS_CAPACITY, WorkerNews},
    model::RoutedModel,
    model_fetch::collect_files,
    preprocess::{LoadError, Preprocessor},
    router::Router,
    worker_sync::{WorkerCard, WorkerCards, WorkerSync},
};

/// Why a model could not be made ready.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BuildError {
    #[error("{file} is not on this host, and the worker did not give it: {error}")]
    Fetch { file: &'static str, error: String },
    #[error("{file} has {size} bytes; model files of more than {MAX_FILE_BYTES} bytes are not taken")]
    TooLarge { file: &'static str, size: u64 },
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("kv_cache_block_size is 0")]
    NoBlockSize,
    #[error(transparent)]
    Router(#[from] dynamo_kv_router::ConfigError),
    #[error(transparent)]
    Events(#[from] EventPlaneError),
    #[error("{0}")]
    Internal(String),
}

/// A model that can be asked.
pub(crate) struct ServedModel {
    model: Arc<RoutedModel>,
    endpoint: EndpointId,
    checksum: String,
    cards: watch::Sender<WorkerCards>,
    routed: Arc<AtomicUsize>,
    scope: TaskScope,
}

impl ServedModel {
    /// Gets the files, from `sources` if they are not on this host, reads them, and begins to follow the workers.
    pub(crate) async fn build(
        builder: &Builder,
        first: &Registered,
        sources: &[WorkerId],
        scope: TaskScope,
    ) -> Result<Self, BuildError> {
        let Registered { endpoint, card, checksum, .. } = first;
        let block_size = BlockSize::new(card.kv_cache_block_size).ok_or(BuildError::NoBlockSize)?;
        let files = collect_files(builder, card, endpoint, sources).await?;
        let loading = card.clone();
        let preprocessor = tokio::task::spawn_blocking(move || Preprocessor::load(&loading, &files))
            .await
            .map_err(|error| BuildError::Internal(error.to_string()))??;
        let meters = builder.router_metrics.of_model(&card.display_name);
        let router_id = builder.runtime.incarnation().worker_id.get();
        let router = Arc::new(Router::new(builder.router.clone(), block_size, router_id, meters)?);
        sync_replicas(builder, &router, endpoint, &scope).await?;
        let client = builder.runtime.client(endpoint.clone());
        let news = follow_events(builder, &router, endpoint, &scope).await?;
        let (cards, changes) = watch::channel(WorkerCards::default());
        let routed = Arc::new(AtomicUsize::new(0));
        let sync = WorkerSync::new(router.clone(), news, routed.clone());
        scope.spawn("workers", sync.run(client.clone(), changes, scope.clone()));
        let model = RoutedModel {
            info: info_of(card),
            preprocessor: Arc::new(preprocessor),
            router,
            client,
            tokenizing: builder.tokenizing.clone(),
        };
        let (endpoint, checksum) = (endpoint.clone(), checksum.clone());
        Ok(Self { model: Arc::new(model), endpoint, checksum, cards, routed, scope })
    }

    pub(crate) fn model(&self) -> Arc<RoutedModel> {
        self.model.clone()
    }

    pub(crate) fn router(&self) -> &Arc<Router> {
        &self.model.router
    }

    pub(crate) fn endpoint(&self) -> &EndpointId {
        &self.endpoint
    }

    /// Whether a worker serves this very model: what was tokenized for one must fit the others.
    pub(crate) fn accepts(&self, registered: &Registered) -> bool {
        registered.checksum == self.checksum && registered.endpoint == self.endpoint
    }

    /// Whether requests go to somebody, also if only to workers in doubt.
    pub(crate) fn has_workers(&self) -> bool {
        self.routed.load(Ordering::Relaxed) > 0
    }

    /// Says which workers have registered it, and which have registered something else under its name.
    pub(crate) fn set_workers(&self, own: &[&Registered], foreign: &[&Registered]) {
        let of = |registered: &&Registered| {
            let card = WorkerCard {
                epoch: registered.incarnation.epoch.get(),
                runtime_config: registered.card.runtime_config.clone(),
            };
            (registered.incarnation.worker_id.get(), card)
        };
        let others = foreign.iter().filter(|registered| registered.endpoint == self.endpoint);
        let cards = WorkerCards {
            own: own.iter().map(of).collect(),
            others: others.map(|registered| registered.incarnation.worker_id.get()).collect(),
        };
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

fn info_of(card: &ModelCard) -> ModelInfo {
    let runtime = &card.runtime_config;
    ModelInfo {
        id: card.display_name.clone(),
        created: unix_seconds(),
        context_length: card.context_length,
        kv_block_size: card.kv_cache_block_size,
        total_kv_blocks: runtime.total_kv_blocks,
        max_num_seqs: runtime.max_num_seqs,
        max_num_batched_tokens: runtime.max_num_batched_tokens,
        migration_limit: card.migration_limit,
    }
}

/// Lets the router speak with others of the same workers, if it is to.
async fn sync_replicas(
    builder: &Builder,
    router: &Arc<Router>,
    endpoint: &EndpointId,
    scope: &TaskScope,
) -> Result<(), BuildError> {
    if !router.syncs_replicas() {
        return Ok(());
    }
    let events = EventScope::component(endpoint.namespace.clone(), endpoint.component.clone());
    let plane = builder.runtime.event_plane();
    let subscriber = plane.subscribe(events.clone(), ACTIVE_SEQUENCES_TOPIC).await?;
    let publisher = plane.publisher(events, ACTIVE_SEQUENCES_TOPIC).await?;
    scope.spawn("replicas", router.clone().sync_replicas(publisher, subscriber, scope.clone()));
    Ok(())
}

/// Subscribes to KV events where they matter, and starts the follower.
async fn follow_events(
    builder: &Builder,
    router: &Arc<Router>,
    endpoint: &EndpointId,
    scope: &TaskScope,
) -> Result<Option<mpsc::Sender<WorkerNews>>, BuildError> {
    if !router.wants_events() {
        return Ok(None);
    }
    let events = EventScope::component(endpoint.namespace.clone(), endpoint.component.clone());
    let subscriber = builder.runtime.event_plane().subscribe(events, KV_EVENTS_TOPIC).await?;
    let queries = EndpointId { endpoint: KV_QUERY_ENDPOINT.to_owned(), ..endpoint.clone() };
    let queries = builder.runtime.client(queries);
    let (news, received) = mpsc::channel(WORKER_NEWS_CAPACITY);
    let follower = Follower::new(router.clone(), queries, scope.clone());
    scope.spawn("kv-events", follower.run(subscriber, received));
    Ok(Some(news))
}
