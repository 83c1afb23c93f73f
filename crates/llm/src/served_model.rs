//! One model made ready, and the task that keeps its router in step with its workers.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use dynamo_runtime::{
    Client, EndpointId, EventScope, Instance, InstanceState, TaskScope,
    events::EventPlaneError,
    request_plane::{OutgoingRequest, StreamError},
};
use dynamo_tokens::BlockSize;
use tokio::sync::{mpsc, watch};

use crate::{
    KV_EVENTS_TOPIC, KV_QUERY_ENDPOINT, MODEL_FILES_ENDPOINT, ModelCard, ModelFile, ModelInfo,
    RuntimeConfigCard,
    catalog::{Builder, Registered, unix_seconds},
    files::MAX_FILE_BYTES,
    kv_events::{Follower, WORKER_NEWS_CAPACITY, WorkerNews},
    model::RoutedModel,
    preprocess::{LoadError, ModelFiles, Preprocessor},
    router::{RoutedWorker, Router},
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

/// What a card says of a worker's size.
#[derive(Clone, Debug, PartialEq, Eq)]
struct WorkerCard {
    epoch: u64,
    runtime_config: RuntimeConfigCard,
}

type WorkerCards = BTreeMap<u64, WorkerCard>;

/// A model that can be asked.
pub(crate) struct ServedModel {
    model: Arc<RoutedModel>,
    endpoint: EndpointId,
    checksum: String,
    cards: watch::Sender<WorkerCards>,
    scope: TaskScope,
}

impl ServedModel {
    /// Gets the files, reads them, and begins to follow the workers.
    pub(crate) async fn build(
        builder: &Builder,
        first: Registered,
        scope: TaskScope,
    ) -> Result<Self, BuildError> {
        let Registered { record, card, checksum } = first;
        let endpoint = record.endpoint.clone();
        let block_size = BlockSize::new(card.kv_cache_block_size).ok_or(BuildError::NoBlockSize)?;
        let files = collect_files(builder, &card, &endpoint).await?;
        let loading = card.clone();
        let preprocessor = tokio::task::spawn_blocking(move || Preprocessor::load(&loading, &files))
            .await
            .map_err(|error| BuildError::Internal(error.to_string()))??;
        let router = Arc::new(Router::new(builder.router.clone(), block_size)?);
        let client = builder.runtime.client(endpoint.clone());
        let news = follow_events(builder, &router, &endpoint, &scope).await?;
        let (cards, changes) = watch::channel(WorkerCards::new());
        let sync = Sync { router: router.clone(), news, routed: BTreeMap::new() };
        scope.spawn("workers", sync.run(client.clone(), changes, scope.clone()));
        let model = RoutedModel {
            info: info_of(&card),
            preprocessor: Arc::new(preprocessor),
            router,
            client,
            tokenizing: builder.tokenizing.clone(),
        };
        Ok(Self { model: Arc::new(model), endpoint, checksum, cards, scope })
    }

    pub(crate) fn name(&self) -> &str {
        &self.model.info.id
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
        registered.checksum == self.checksum && registered.record.endpoint == self.endpoint
    }

    /// Says which workers have registered it.
    pub(crate) fn set_workers(&self, workers: impl Iterator<Item = Registered>) {
        let cards: WorkerCards = workers
            .map(|Registered { record, card, .. }| {
                let epoch = record.incarnation.epoch.get();
                (
                    record.incarnation.worker_id.get(),
                    WorkerCard { epoch, runtime_config: card.runtime_config.clone() },
                )
            })
            .collect();
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

/// Every file of the card: from this host, or from a worker.
async fn collect_files(
    builder: &Builder,
    card: &Arc<ModelCard>,
    endpoint: &EndpointId,
) -> Result<ModelFiles, BuildError> {
    let mut files = ModelFiles::new();
    for (kind, file) in card.files() {
        let (cache, wanted) = (builder.cache.clone(), file.clone());
        let found = tokio::task::spawn_blocking(move || cache.find(&wanted))
            .await
            .map_err(|error| BuildError::Internal(error.to_string()))?;
        let bytes = match found {
            Some(bytes) => bytes,
            None => {
                let bytes = fetch(builder, endpoint, kind.file_name(), file).await?;
                if let Err(error) = builder.cache.keep(file, &bytes) {
                    tracing::warn!(%error, "a model file could not be cached on this host");
                }
                bytes
            }
        };
        files.push((kind, bytes));
    }
    Ok(files)
}

async fn fetch(
    builder: &Builder,
    endpoint: &EndpointId,
    name: &'static str,
    file: &ModelFile,
) -> Result<Vec<u8>, BuildError> {
    if file.size > MAX_FILE_BYTES {
        return Err(BuildError::TooLarge { file: name, size: file.size });
    }
    let fault = |error: &dyn std::fmt::Display| BuildError::Fetch { file: name, error: error.to_string() };
    let source = EndpointId { endpoint: MODEL_FILES_ENDPOINT.to_owned(), ..endpoint.clone() };
    let client = builder.runtime.client(source);
    let patience = std::time::Duration::from_secs(10);
    client.wait_for_instances(patience).await.map_err(|error| fault(&error))?;
    let request = OutgoingRequest {
        id: "model-file".into(),
        payload: file.checksum.clone().into_bytes().into(),
        time_left: Some(std::time::Duration::from_secs(300)),
        metadata: Vec::new(),
    };
    let mut stream = client.round_robin(request).await.map_err(|error| fault(&error))?.stream;
    let mut bytes = Vec::with_capacity(usize::try_from(file.size).unwrap_or(0));
    while let Some(piece) = stream.next().await {
        let piece = piece.map_err(|error: StreamError| fault(&error))?;
        if (bytes.len() + piece.len()) as u64 > file.size {
            return Err(fault(&"it sends more bytes than the card says"));
        }
        bytes.extend_from_slice(&piece);
    }
    tracing::info!(file = name, bytes = bytes.len(), "model file fetched from a worker");
    file.check(bytes).map_err(|error| fault(&error))
}

/// Keeps the router's workers equal to those that are both instances of the endpoint and registered with the card.
struct Sync {
    router: Arc<Router>,
    news: Option<mpsc::Sender<WorkerNews>>,
    routed: BTreeMap<u64, RoutedWorker>,
}

impl Sync {
    async fn run(mut self, client: Client, mut cards: watch::Receiver<WorkerCards>, scope: TaskScope) {
        let mut instances = client.watch();
        loop {
            let wanted = wanted(&instances.borrow_and_update(), &cards.borrow_and_update());
            self.apply(wanted).await;
            tokio::select! {
                () = scope.cancelled() => return,
                changed = instances.changed() => if changed.is_err() { return },
                changed = cards.changed() => if changed.is_err() { return },
            }
        }
    }

    async fn apply(&mut self, wanted: BTreeMap<u64, RoutedWorker>) {
        let known: BTreeSet<u64> = self.routed.keys().chain(wanted.keys()).copied().collect();
        for worker_id in known {
            let (old, new) = (self.routed.get(&worker_id), wanted.get(&worker_id));
            if old == new {
                continue;
            }
            let Some(new) = new else {
                tracing::info!(worker_id, "worker is gone");
                self.router.remove_worker(worker_id);
                self.tell(WorkerNews::Removed { worker_id }).await;
                continue;
            };
            self.router.set_worker(new);
            if old.is_none_or(|old| old.epoch != new.epoch) {
                tracing::info!(worker_id, epoch = new.epoch, ranks = new.ranks, "worker is routed to");
                let ranks = new.first_rank..new.first_rank + new.ranks;
                self.tell(WorkerNews::Added { worker_id, epoch: new.epoch, ranks }).await;
            } else {
                tracing::info!(worker_id, draining = new.draining, "worker changed");
            }
        }
        self.routed = wanted;
    }

    async fn tell(&self, news: WorkerNews) {
        if let Some(sender) = &self.news {
            // A follower that is gone ended with this task's own scope.
            let _ = sender.send(news).await;
        }
    }
}

fn wanted(instances: &[Instance], cards: &WorkerCards) -> BTreeMap<u64, RoutedWorker> {
    let any_ready = instances.iter().any(|instance| instance.state() == InstanceState::Ready);
    let routed = |instance: &Instance| {
        let worker_id = instance.worker_id().get();
        let epoch = instance.incarnation().epoch.get();
        let card = cards.get(&worker_id).filter(|card| card.epoch == epoch)?;
        let draining = match instance.state() {
            InstanceState::Ready => false,
            InstanceState::Draining => true,
            // Its record vanished without a word: it is asked when nobody else is there.
            InstanceState::InDoubt => any_ready,
        };
        let runtime = &card.runtime_config;
        Some((
            worker_id,
            RoutedWorker {
                worker_id,
                epoch,
                first_rank: runtime.data_parallel_start_rank,
                ranks: runtime.data_parallel_size.max(1),
                blocks_per_rank: runtime.total_kv_blocks.and_then(|blocks| u32::try_from(blocks).ok()),
                draining,
            },
        ))
    };
    instances.iter().filter_map(routed).collect()
}
