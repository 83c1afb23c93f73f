//! Which engines there are, of which model, and the index of each model.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use dynamo_engine_api::DpRank;
use dynamo_kv_router::{AddWorkerError, StartLanesError, WorkerId, WorkerRank};
use dynamo_runtime::TaskScope;
use dynamo_tokens::BlockSize;
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

use super::{
    index_choice::IndexChoice,
    lanes::{LaneCounters, LaneShared, Lanes},
    progress::Progress,
    refill::Refill,
    shared_index::SharedKvIndex,
    source::{Deliveries, EndpointError, EventSource, ListenTo, ListenerStatus, StatusCell, check_endpoint},
};

/// Models and routing groups at most; each has an index and tasks of its own.
const MAX_MODELS: usize = 1024;
/// Longer names of models and groups are refused: they come back in answers and logs.
const MAX_NAME: usize = 512;

/// What has an index of its own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ModelKey {
    /// The model's public name.
    pub model_name: String,
    /// Engines of different groups do not share.
    pub routing_group: String,
}

impl std::fmt::Display for ModelKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "model={} routing_group={}", self.model_name, self.routing_group)
    }
}

/// An engine's rank, as somebody registers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// Which index.
    pub key: ModelKey,
    /// Tokens per block; the same for all of one index.
    pub block_size: u32,
    /// Whose events.
    pub rank: WorkerRank,
    /// Where it publishes them.
    pub endpoint: String,
    /// Where it gives again what was lost.
    pub replay_endpoint: Option<String>,
}

/// Why an engine was not registered.
#[derive(Debug, thiserror::Error)]
pub enum RegisterError {
    /// It is.
    #[error("instance {} dp_rank {} already registered", .0.worker_id, .0.dp_rank)]
    AlreadyRegistered(WorkerRank),
    /// The index has blocks of another size.
    #[error("block_size mismatch for {key}: existing={existing}, requested={requested}")]
    BlockSizeMismatch {
        /// Which index.
        key: ModelKey,
        /// Its blocks.
        existing: u32,
        /// The engine's.
        requested: u32,
    },
    /// A block has tokens.
    #[error("block_size must be at least 1")]
    NoBlockSize,
    /// No address.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// No address to ask for what was lost.
    #[error("invalid replay endpoint `{}`: {_0}", .0.endpoint)]
    ReplayEndpoint(EndpointError),
    /// A name that nobody should have to read.
    #[error("model_name and routing_group must have 1 to {MAX_NAME} bytes")]
    Name,
    /// Too many models.
    #[error("this indexer has {MAX_MODELS} models: unregister some, or start another indexer")]
    TooManyModels,
    /// The index does not take the worker on.
    #[error(transparent)]
    Worker(#[from] AddWorkerError),
    /// It is the first one of its model, and there are no threads for an index.
    #[error(transparent)]
    Index(#[from] StartLanesError),
}

/// Why an engine was not unregistered.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnregisterError {
    /// It is not registered.
    #[error("instance {0} not found")]
    UnknownInstance(WorkerId),
    /// The instance is, and the rank is not.
    #[error("instance {} dp_rank {} not found", .0.worker_id, .0.dp_rank)]
    UnknownRank(WorkerRank),
}

/// A rank that is listened to.
pub(super) struct Listening {
    pub(super) endpoint: String,
    pub(super) replay_endpoint: Option<String>,
    pub(super) generation: u64,
    pub(super) progress: Arc<Progress>,
    status: StatusCell,
    scope: TaskScope,
}

/// The engines of one index: by instance and rank.
pub(super) type Engines = BTreeMap<WorkerId, BTreeMap<DpRank, Listening>>;

/// The index of one model and routing group, with its engines.
pub(super) struct ModelIndex {
    pub(super) block_size: BlockSize,
    pub(super) index: SharedKvIndex,
    pub(super) engines: RwLock<Engines>,
}

/// All indexes and engines of the service.
pub struct Registry {
    source: Arc<dyn EventSource>,
    index: IndexChoice,
    scope: TaskScope,
    models: RwLock<BTreeMap<ModelKey, Arc<ModelIndex>>>,
    /// The lanes of each model; and who changes what is registered takes turns here.
    lanes: Mutex<BTreeMap<ModelKey, Lanes>>,
    generations: AtomicU64,
    /// Whether what comes is applied; not while a recovery runs.
    open: watch::Sender<bool>,
    counters: LaneCounters,
    /// Where lanes get what a rank lacks, once that is known.
    refill: Arc<OnceLock<Refill>>,
}

impl Registry {
    /// Nothing is registered. Each model will have an index of the kind `index`. What listeners deliver waits until
    /// [`Self::resume`].
    pub fn new(source: Arc<dyn EventSource>, index: IndexChoice, scope: TaskScope) -> Self {
        Self {
            source,
            index,
            scope,
            models: RwLock::default(),
            lanes: Mutex::default(),
            generations: AtomicU64::new(0),
            open: watch::Sender::new(false),
            counters: LaneCounters::default(),
            refill: Arc::default(),
        }
    }

    /// Applies what has been and will be delivered.
    pub fn resume(&self) {
        self.open.send_replace(true);
    }

    /// Whether deliveries are applied.
    pub fn is_open(&self) -> bool {
        *self.open.borrow()
    }

    /// Lets lanes ask peers for what a rank lacks. The first one counts.
    pub(super) fn set_refill(&self, refill: Refill) {
        // There is one recovery.
        let _ = self.refill.set(refill);
    }

    pub(super) fn counters(&self) -> &LaneCounters {
        &self.counters
    }

    /// Takes an engine's rank on, and begins to listen to it.
    pub fn register(&self, registration: Registration) -> Result<(), RegisterError> {
        let Registration { key, block_size, rank, endpoint, replay_endpoint } = registration;
        let named = |name: &str| (1..=MAX_NAME).contains(&name.len());
        if !named(&key.model_name) || !named(&key.routing_group) {
            return Err(RegisterError::Name);
        }
        check_endpoint(&endpoint)?;
        if let Some(replay) = &replay_endpoint {
            check_endpoint(replay).map_err(RegisterError::ReplayEndpoint)?;
        }
        let size = BlockSize::new(block_size).ok_or(RegisterError::NoBlockSize)?;
        let mut all_lanes = self.lanes.lock();
        let known = self.models.read().get(&key).cloned();
        let is_new = known.is_none();
        if is_new && all_lanes.len() >= MAX_MODELS {
            return Err(RegisterError::TooManyModels);
        }
        let model = match known {
            Some(model) => model,
            None => Arc::new(ModelIndex::start(size, self.index, self.scope.clone())?),
        };
        if model.block_size != size {
            let existing = model.block_size.get() as u32;
            return Err(RegisterError::BlockSizeMismatch { key, existing, requested: block_size });
        }
        let generation = self.generations.fetch_add(1, Ordering::Relaxed);
        let scope = self.scope.child("listener");
        let (status, progress) = (StatusCell::default(), Arc::new(Progress::new()));
        {
            let mut engines = model.engines.write();
            let ranks = engines.get(&rank.worker_id);
            if ranks.is_some_and(|ranks| ranks.contains_key(&rank.dp_rank)) {
                return Err(RegisterError::AlreadyRegistered(rank));
            }
            let first = ranks.and_then(|ranks| ranks.keys().next().copied());
            let last = ranks.and_then(|ranks| ranks.keys().next_back().copied());
            let from = first.map_or(rank.dp_rank, |first| first.min(rank.dp_rank));
            let to = last.map_or(rank.dp_rank, |last| last.max(rank.dp_rank));
            model.index.set_worker(rank.worker_id, from..to.saturating_add(1))?;
            let listening = Listening {
                endpoint: endpoint.clone(),
                replay_endpoint: replay_endpoint.clone(),
                generation,
                progress: progress.clone(),
                status: status.clone(),
                scope: scope.clone(),
            };
            engines.entry(rank.worker_id).or_default().insert(rank.dp_rank, listening);
        }
        if is_new {
            self.models.write().insert(key.clone(), model.clone());
        }
        let lanes = all_lanes.entry(key.clone()).or_insert_with(|| {
            let scope = self.scope.child("lanes");
            let shared = LaneShared { model: model.clone(), key, refill: self.refill.clone() };
            Lanes::start(shared, self.index.lanes().get(), self.open.subscribe(), &self.counters, scope)
        });
        let deliveries = Deliveries::new(rank, generation, lanes.of(rank), progress);
        let to = ListenTo { rank, endpoint, replay_endpoint, block_size: size };
        self.source.listen(to, deliveries, status, scope);
        Ok(())
    }

    /// Stops listening to a rank, or to all ranks of an instance, and forgets what they hold. The last engine takes its
    /// index with it.
    pub fn unregister(
        &self,
        key: &ModelKey,
        worker_id: WorkerId,
        dp_rank: Option<DpRank>,
    ) -> Result<(), UnregisterError> {
        let unknown = UnregisterError::UnknownInstance(worker_id);
        let mut all_lanes = self.lanes.lock();
        let Some(model) = self.models.read().get(key).cloned() else { return Err(unknown) };
        let mut engines = model.engines.write();
        let Some(ranks) = engines.get_mut(&worker_id) else { return Err(unknown) };
        let gone: Vec<DpRank> = match dp_rank {
            Some(dp_rank) if !ranks.contains_key(&dp_rank) => {
                return Err(UnregisterError::UnknownRank(WorkerRank { worker_id, dp_rank }));
            }
            Some(dp_rank) => vec![dp_rank],
            None => ranks.keys().copied().collect(),
        };
        for dp_rank in gone {
            if let Some(listening) = ranks.remove(&dp_rank) {
                listening.scope.cancel();
            }
            model.index.clear_rank(WorkerRank { worker_id, dp_rank });
        }
        match (ranks.keys().next(), ranks.keys().next_back()) {
            (Some(&first), Some(&last)) => {
                // Fewer ranks of a worker that is known always find room.
                let _ = model.index.set_worker(worker_id, first..last.saturating_add(1));
            }
            _ => {
                engines.remove(&worker_id);
                model.index.remove_worker(worker_id);
            }
        }
        if engines.is_empty() {
            self.models.write().remove(key);
            all_lanes.remove(key);
        }
        Ok(())
    }

    pub(super) fn model(&self, key: &ModelKey) -> Option<Arc<ModelIndex>> {
        self.models.read().get(key).cloned()
    }

    pub(super) fn models(&self) -> Vec<(ModelKey, Arc<ModelIndex>)> {
        self.models.read().iter().map(|(key, model)| (key.clone(), model.clone())).collect()
    }

    /// Waits until all indexes have applied what they were brought before.
    pub(super) async fn caught_up(&self) {
        for (_, model) in self.models() {
            model.index.caught_up().await;
        }
    }

    /// Messages of engines that wait for a lane of a model.
    pub(super) fn waiting_messages(&self, key: &ModelKey) -> usize {
        self.lanes.lock().get(key).map_or(0, Lanes::waiting)
    }

    /// Whose index broke, if one did.
    pub(super) fn broken(&self) -> Option<ModelKey> {
        self.models.read().iter().find(|(_, model)| model.index.is_broken()).map(|(key, _)| key.clone())
    }

    /// What a listener is doing, as it is shown.
    pub(super) fn status(&self, listening: &Listening) -> ListenerStatus {
        match listening.status.get() {
            ListenerStatus::Active if !self.is_open() => ListenerStatus::Paused,
            status => status,
        }
    }
}

impl ModelIndex {
    fn start(block_size: BlockSize, choice: IndexChoice, scope: TaskScope) -> Result<Self, StartLanesError> {
        let index = SharedKvIndex::start(choice, scope)?;
        Ok(Self { block_size, index, engines: RwLock::default() })
    }

    /// How far a rank's batches have come, if it is listened to.
    pub(super) fn progress(&self, rank: WorkerRank) -> Option<Arc<Progress>> {
        let engines = self.engines.read();
        Some(engines.get(&rank.worker_id)?.get(&rank.dp_rank)?.progress.clone())
    }

    /// All ranks that are listened to.
    pub(super) fn ranks(&self) -> Vec<WorkerRank> {
        let engines = self.engines.read();
        let ranks = engines.iter().flat_map(|(&worker_id, ranks)| {
            ranks.keys().map(move |&dp_rank| WorkerRank { worker_id, dp_rank })
        });
        ranks.collect()
    }
}

#[cfg(test)]
mod tests;
