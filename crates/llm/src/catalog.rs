//! The models of a deployment, as a frontend asks for them.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwap;
use dynamo_runtime::{Change, DistributedRuntime, EndpointId, Query, Record, RecordKey, TaskScope};
use tokio::sync::{Semaphore, mpsc};

use crate::{
    ChatModel, DisaggConfig, FileCache, InstanceInfo, ModelCatalog, ModelInfo, RouterConfig,
    adapter_models::AdapterModel, catalog_metrics::CatalogMetrics, keeper::Keeper,
    routed_endpoint::RoutingContext, served_model::ServedModel,
};

/// Models that become ready at the same instant; more wait for their turn.
const BUILT_CAPACITY: usize = 16;

/// What a catalogue needs to know.
#[derive(Clone, Debug)]
pub struct CatalogConfig {
    /// How requests are routed.
    pub router: RouterConfig,
    /// Who computes prompts where a model has prefill workers.
    pub disagg: DisaggConfig,
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

/// By name. Bounded by the records of discovery.
pub(crate) type Adapters = BTreeMap<String, Arc<AdapterModel>>;

pub(crate) struct Shared {
    pub(crate) models: ArcSwap<Models>,
    /// Views on those; a model's name goes before an adapter's.
    pub(crate) adapters: ArcSwap<Adapters>,
    /// The names that workers have registered; nothing before discovery has said what there is.
    pub(crate) names: ArcSwap<Option<BTreeSet<String>>>,
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
            adapters: ArcSwap::from_pointee(Adapters::new()),
            names: ArcSwap::from_pointee(None),
            instances: ArcSwap::from_pointee(Vec::new()),
        });
        CatalogMetrics::register(runtime.metrics(), &shared)?;
        let routing = Arc::new(RoutingContext::new(runtime, config.router.clone())?);
        let scope = runtime.scope().child("catalog");
        let (built, arrivals) = mpsc::channel(BUILT_CAPACITY);
        let builder = Arc::new(Builder {
            runtime: runtime.clone(),
            cache: FileCache::new(config.file_cache.clone()),
            tokenizing: Arc::new(Semaphore::new(config.tokenizing.max(1))),
            routing,
            disagg: config.disagg,
        });
        let keeper = Keeper::new(builder, config.namespace, shared.clone(), scope.clone(), built);
        scope.spawn("models", keeper.run(arrivals));
        scope.spawn("instances", follow_instances(runtime.clone(), shared.clone(), scope.clone()));
        Ok(Self { shared })
    }
}

impl ModelCatalog for Catalog {
    fn get(&self, name: &str) -> Option<Arc<dyn ChatModel>> {
        let models = self.shared.models.load();
        if let Some(served) = models.get(name) {
            return served.has_begun().then(|| served.model() as Arc<dyn ChatModel>);
        }
        let adapters = self.shared.adapters.load();
        Some(adapters.get(name)?.model()?.clone() as Arc<dyn ChatModel>)
    }

    fn is_known(&self, name: &str) -> bool {
        self.shared.models.load().contains_key(name)
            || self.shared.names.load().as_ref().as_ref().is_none_or(|names| names.contains(name))
    }

    fn list(&self) -> Vec<ModelInfo> {
        let models = self.shared.models.load();
        let begun = models.values().filter(|served| served.has_begun());
        let mut list: Vec<ModelInfo> = begun.map(|served| served.model().info().clone()).collect();
        let adapters = self.shared.adapters.load();
        let adapters = adapters.iter().filter(|(name, _)| !models.contains_key(*name));
        list.extend(adapters.filter_map(|(_, adapter)| Some(adapter.model()?.info().clone())));
        list.sort_by(|one, other| one.id.cmp(&other.id));
        list
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
    pub(crate) routing: Arc<RoutingContext>,
    pub(crate) disagg: DisaggConfig,
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
