//! The models that discovery names, each made ready once and kept in step with its workers.

use std::{
    collections::{BTreeMap, HashSet},
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwap;
use dynamo_runtime::{
    Change, DistributedRuntime, EndpointId, ModelRecord, Query, Record, RecordKey, TaskScope,
};
use tokio::sync::{Semaphore, mpsc};

use crate::{
    ChatModel, FileCache, InstanceInfo, ModelCard, ModelCatalog, ModelInfo, RouterConfig,
    catalog_metrics::CatalogMetrics,
    served_model::{BuildError, ServedModel},
};

/// A model whose last worker went is kept this long: its requests are told that no worker is there at the moment, not
/// that there is no such model, and a worker that comes back finds it ready.
const KEEP_WITHOUT_WORKERS: Duration = Duration::from_secs(60);
/// Before a model that could not be made ready is tried again.
const BUILD_PAUSE: Duration = Duration::from_secs(5);
/// How often the two times above, and bookings that expire, are looked at.
const TICK: Duration = Duration::from_secs(1);
/// Models that become ready at the same instant; more wait for their turn.
const BUILT_CAPACITY: usize = 16;

/// What a catalogue needs to know.
#[derive(Clone, Debug)]
pub struct CatalogConfig {
    /// How requests are routed.
    pub router: RouterConfig,
    /// Only models of this namespace; absent: of all.
    pub namespace: Option<String>,
    /// Where files that came from workers are kept.
    pub file_cache: PathBuf,
    /// Long prompts that are tokenized at once.
    pub tokenizing: usize,
}

/// The models of a deployment.
pub struct Catalog {
    shared: Arc<Shared>,
}

pub(crate) type Models = BTreeMap<String, Arc<ServedModel>>;

pub(crate) struct Shared {
    pub(crate) models: ArcSwap<Models>,
    instances: ArcSwap<Vec<InstanceInfo>>,
}

impl Catalog {
    /// Follows discovery until the runtime shuts down.
    pub fn start(
        runtime: &DistributedRuntime,
        config: CatalogConfig,
    ) -> Result<Self, dynamo_runtime::metrics::MetricsError> {
        let shared = Arc::new(Shared {
            models: ArcSwap::from_pointee(Models::new()),
            instances: ArcSwap::from_pointee(Vec::new()),
        });
        CatalogMetrics::register(runtime.metrics(), &shared)?;
        let scope = runtime.scope().child("catalog");
        let (built, arrivals) = mpsc::channel(BUILT_CAPACITY);
        let keeper = Keeper {
            builder: Arc::new(Builder {
                runtime: runtime.clone(),
                cache: FileCache::new(config.file_cache.clone()),
                tokenizing: Arc::new(Semaphore::new(config.tokenizing.max(1))),
                router: config.router.clone(),
            }),
            namespace: config.namespace,
            shared: shared.clone(),
            scope: scope.clone(),
            records: BTreeMap::new(),
            building: HashSet::new(),
            failed: BTreeMap::new(),
            absent: BTreeMap::new(),
            told: HashSet::new(),
            built,
        };
        scope.spawn("models", keeper.run(arrivals));
        scope.spawn("instances", follow_instances(runtime.clone(), shared.clone(), scope.clone()));
        Ok(Self { shared })
    }
}

impl ModelCatalog for Catalog {
    fn get(&self, name: &str) -> Option<Arc<dyn ChatModel>> {
        self.shared.models.load().get(name).map(|served| served.model() as Arc<dyn ChatModel>)
    }

    fn list(&self) -> Vec<ModelInfo> {
        self.shared.models.load().values().map(|served| served.model().info().clone()).collect()
    }

    fn instances(&self) -> Vec<InstanceInfo> {
        self.shared.instances.load().to_vec()
    }
}

/// What is needed to make a model ready.
pub(crate) struct Builder {
    pub(crate) runtime: DistributedRuntime,
    pub(crate) cache: FileCache,
    pub(crate) tokenizing: Arc<Semaphore>,
    pub(crate) router: RouterConfig,
}

/// A worker's record with its card.
#[derive(Clone)]
pub(crate) struct Registered {
    pub(crate) record: ModelRecord,
    pub(crate) card: Arc<ModelCard>,
    pub(crate) checksum: String,
}

type Built = (String, Result<ServedModel, BuildError>);

/// The task that keeps the models.
struct Keeper {
    builder: Arc<Builder>,
    namespace: Option<String>,
    shared: Arc<Shared>,
    scope: TaskScope,
    records: BTreeMap<RecordKey, Registered>,
    building: HashSet<String>,
    failed: BTreeMap<String, Instant>,
    /// Since when a model has had no worker.
    absent: BTreeMap<String, Instant>,
    /// Records that were refused, each said once.
    told: HashSet<RecordKey>,
    built: mpsc::Sender<Built>,
}

impl Keeper {
    async fn run(mut self, mut arrivals: mpsc::Receiver<Built>) {
        let mut watch = self.builder.runtime.discovery().watch(Query::AllModels);
        let mut tick = tokio::time::interval(TICK);
        let scope = self.scope.clone();
        loop {
            tokio::select! {
                () = scope.cancelled() => return,
                change = watch.next() => match change {
                    Some(change) => self.on_change(change),
                    None => return,
                },
                Some((name, result)) = arrivals.recv() => self.on_built(name, result),
                _ = tick.tick() => self.on_tick(),
            }
            self.reconcile();
        }
    }

    fn on_change(&mut self, change: Change) {
        match change {
            Change::Snapshot(records) => {
                self.records.clear();
                for record in records {
                    self.put(record);
                }
            }
            Change::Put(record) => self.put(record),
            Change::Removed(key) => {
                self.records.remove(&key);
                self.told.remove(&key);
            }
        }
    }

    fn put(&mut self, record: Record) {
        let key = record.key();
        let Record::Model(record) = record else { return };
        if self.namespace.as_ref().is_some_and(|namespace| *namespace != record.endpoint.namespace) {
            return;
        }
        match serde_json::from_value::<ModelCard>(record.card.clone()) {
            Ok(card) => {
                let checksum = card.checksum();
                self.records.insert(key, Registered { record, card: Arc::new(card), checksum });
            }
            Err(error) => {
                self.records.remove(&key);
                if self.told.insert(key) {
                    tracing::warn!(endpoint = %record.endpoint, %error, "a model card does not read: its worker is not used");
                }
            }
        }
    }

    fn on_built(&mut self, name: String, result: Result<ServedModel, BuildError>) {
        self.building.remove(&name);
        match result {
            Ok(served) => {
                tracing::info!(model = name, endpoint = %served.endpoint(), "model is ready");
                self.failed.remove(&name);
                self.change_models(|models| {
                    models.insert(name, Arc::new(served));
                });
            }
            Err(error) => {
                tracing::warn!(model = name, %error, "model could not be made ready; trying again");
                self.failed.insert(name, Instant::now());
            }
        }
    }

    fn on_tick(&mut self) {
        let now = Instant::now();
        self.failed.retain(|_, at| now < *at + BUILD_PAUSE);
        for served in self.shared.models.load().values() {
            let expired = served.router().expire();
            if expired > 0 {
                tracing::warn!(
                    model = served.name(),
                    expired,
                    "requests without a sign of life no longer count"
                );
            }
        }
        let over: Vec<String> = self
            .absent
            .iter()
            .filter(|(_, since)| now >= **since + KEEP_WITHOUT_WORKERS)
            .map(|(name, _)| name.clone())
            .collect();
        for name in over {
            tracing::info!(model = name, "model is gone: no worker for {KEEP_WITHOUT_WORKERS:?}");
            self.remove(&name);
        }
    }

    fn remove(&mut self, name: &str) {
        self.absent.remove(name);
        self.change_models(|models| {
            if let Some(served) = models.remove(name) {
                served.close();
            }
        });
    }

    fn change_models(&self, change: impl FnOnce(&mut Models)) {
        let mut models = Models::clone(&self.shared.models.load());
        change(&mut models);
        self.shared.models.store(Arc::new(models));
    }

    /// Brings models and records together: starts what is missing, tells each model which workers are its own.
    fn reconcile(&mut self) {
        let mut by_name: BTreeMap<String, Vec<(RecordKey, Registered)>> = BTreeMap::new();
        for (key, registered) in &self.records {
            let name = registered.card.display_name.clone();
            by_name.entry(name).or_default().push((key.clone(), registered.clone()));
        }
        let models = self.shared.models.load_full();
        for (name, served) in models.iter() {
            let records = by_name.remove(name).unwrap_or_default();
            let (own, foreign): (Vec<_>, Vec<_>) =
                records.into_iter().partition(|(_, registered)| served.accepts(registered));
            if own.is_empty() {
                self.absent.entry(name.clone()).or_insert_with(Instant::now);
                if !foreign.is_empty() {
                    // All workers of the earlier kind are gone and others are there: the model changed.
                    self.remove(name);
                    by_name.insert(name.clone(), foreign);
                    continue;
                }
            } else {
                self.absent.remove(name);
            }
            for (key, registered) in foreign {
                if self.told.insert(key) {
                    tracing::warn!(
                        model = name,
                        endpoint = %registered.record.endpoint,
                        worker_id = registered.record.incarnation.worker_id.get(),
                        "a worker registered this model with another endpoint, tokenizer or configuration than those before it: it is not used"
                    );
                }
            }
            served.set_workers(own.into_iter().map(|(_, registered)| registered));
        }
        for (name, records) in by_name {
            if self.building.contains(&name) || self.failed.contains_key(&name) {
                continue;
            }
            let Some((_, first)) = records.into_iter().next() else { continue };
            self.building.insert(name.clone());
            let (builder, built, scope) = (self.builder.clone(), self.built.clone(), self.scope.clone());
            self.scope.spawn("build-model", async move {
                tokio::select! {
                    () = scope.cancelled() => {}
                    result = ServedModel::build(&builder, first, scope.child("model")) => {
                        // A keeper that is gone needs no model.
                        let _ = built.send((name, result)).await;
                    }
                }
            });
        }
    }
}

/// Keeps the list of endpoint instances for `/health`.
async fn follow_instances(runtime: DistributedRuntime, shared: Arc<Shared>, scope: TaskScope) {
    let mut watch = runtime.discovery().watch(Query::AllEndpoints);
    let mut known: BTreeMap<RecordKey, InstanceInfo> = BTreeMap::new();
    loop {
        let change = tokio::select! {
            () = scope.cancelled() => return,
            change = watch.next() => change,
        };
        match change {
            None => return,
            Some(Change::Snapshot(records)) => {
                known = records
                    .into_iter()
                    .filter_map(|record| Some((record.key(), instance_of(record)?)))
                    .collect();
            }
            Some(Change::Put(record)) => {
                let key = record.key();
                if let Some(instance) = instance_of(record) {
                    known.insert(key, instance);
                }
            }
            Some(Change::Removed(key)) => {
                known.remove(&key);
            }
        }
        shared.instances.store(Arc::new(known.values().cloned().collect()));
    }
}

fn instance_of(record: Record) -> Option<InstanceInfo> {
    let Record::Endpoint(record) = record else { return None };
    let EndpointId { namespace, component, endpoint } = record.endpoint;
    let instance_id = record.incarnation.worker_id.get();
    Some(InstanceInfo { namespace, component, endpoint, instance_id, address: record.address })
}

/// Now, in Unix seconds.
pub(crate) fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
