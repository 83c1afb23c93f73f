//! From the pools' first card to the endpoints that are served.

use std::sync::Arc;

use dynamo_engine_api::LatencyTargets;
use dynamo_llm::{KV_QUERY_ENDPOINT, MODEL_FILES_ENDPOINT, ModelCard, RuntimeConfigCard};
use dynamo_runtime::{
    Announcement, Change, DistributedRuntime, EndpointId, ModelRecord, Query, Record, ServeError,
    ServedEndpoint, TaskScope, metrics::MetricsError, request_plane::Handler,
};

use super::{
    config::{GlobalConfig, PoolGrid, Pools},
    handler::{ForwardHandler, NoCacheHandler, PoolHandler, Side},
    metrics::GlobalMetrics,
    pool::PoolSet,
};

/// What a global router needs to know.
#[derive(Clone, Debug)]
pub struct GlobalRouterConfig {
    /// Pools and grids.
    pub pools: GlobalConfig,
    /// The model of the pools.
    pub model_name: String,
    /// Where it serves.
    pub namespace: String,
    /// Where it serves.
    pub component: String,
    /// For requests that name no target.
    pub default_targets: LatencyTargets,
}

/// Why a global router did not start.
#[derive(Debug, thiserror::Error)]
pub enum GlobalRouterError {
    /// A metric is taken.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// It cannot be registered.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// The model card does not serialize.
    #[error("the model card does not serialize: {0}")]
    Card(#[from] serde_json::Error),
    /// It would send requests to itself.
    #[error("the namespace {0} is that of a pool: give the global router one of its own")]
    OwnNamespace(String),
    /// The process goes.
    #[error("told to shut down before a pool's model was known")]
    ShuttingDown,
}

/// A router over pools; it is served from [`GlobalRouter::serve`] on.
pub struct GlobalRouter {
    runtime: DistributedRuntime,
    config: GlobalRouterConfig,
    /// The endpoint's name with what serves it; the first one is registered with the card.
    handlers: Vec<(&'static str, Arc<dyn Handler>)>,
    scope: TaskScope,
}

/// What is served, for as long as this is held.
#[must_use = "dropping it ends the serving"]
pub struct ServedGlobalRouter {
    /// Left first, so that nobody is sent here while the rest goes.
    _model: Announcement,
    _endpoints: Vec<ServedEndpoint>,
}

impl GlobalRouter {
    /// Begins to follow the pools' routers.
    pub fn start(
        runtime: &DistributedRuntime,
        config: GlobalRouterConfig,
    ) -> Result<Self, GlobalRouterError> {
        let scope = runtime.scope().child("global-router");
        let metrics = GlobalMetrics::new(runtime.metrics())?;
        let handler = |kind: &'static str, pools: &PoolGrid, sides: &'static [Side]| -> Arc<dyn Handler> {
            Arc::new(PoolHandler {
                pools: Arc::new(PoolSet::new(runtime, pools, |namespace| metrics.pool(kind, namespace))),
                sides,
                defaults: config.default_targets,
                failed: metrics.failed.clone(),
                worker_id: runtime.incarnation().worker_id.get(),
                scope: scope.clone(),
            })
        };
        let handlers = match &config.pools.pools {
            Pools::Aggregated { pools, by_length: true } => {
                vec![("generate", handler("agg", pools, &[Side::Length, Side::Ttft, Side::Itl]))]
            }
            Pools::Aggregated { pools, by_length: false } => {
                vec![("generate", handler("agg", pools, &[Side::Ttft, Side::Itl]))]
            }
            Pools::Disaggregated { prefill, decode } => vec![
                ("generate", handler("decode", decode, &[Side::Length, Side::Itl])),
                ("prefill_generate", handler("prefill", prefill, &[Side::Length, Side::Ttft])),
            ],
        };
        if namespaces(&config).any(|namespace| *namespace == config.namespace) {
            return Err(GlobalRouterError::OwnNamespace(config.namespace));
        }
        Ok(Self { runtime: runtime.clone(), config, handlers, scope })
    }

    /// Where it serves.
    pub fn endpoint(&self) -> EndpointId {
        EndpointId::new(self.config.namespace.clone(), self.config.component.clone(), "generate")
    }

    /// Waits for the model's card from one of the pools, and serves as a worker of that model from then on.
    pub async fn serve(&self) -> Result<ServedGlobalRouter, GlobalRouterError> {
        let (source, mut card) = tokio::select! {
            found = self.first_card() => found.ok_or(GlobalRouterError::ShuttingDown)?,
            () = self.runtime.runtime().shutting_down() => return Err(GlobalRouterError::ShuttingDown),
        };
        // Limits are the pools' own, and nothing is cached here.
        card.runtime_config = RuntimeConfigCard { data_parallel_size: 1, ..RuntimeConfigCard::default() };
        let beside = |name: &str| EndpointId { endpoint: name.to_owned(), ..self.endpoint() };
        let files = ForwardHandler {
            client: self.runtime.client(EndpointId { endpoint: MODEL_FILES_ENDPOINT.to_owned(), ..source }),
            scope: self.scope.clone(),
        };
        let mut endpoints = vec![
            self.runtime.serve_endpoint(beside(MODEL_FILES_ENDPOINT), Arc::new(files)).await?,
            self.runtime.serve_endpoint(beside(KV_QUERY_ENDPOINT), Arc::new(NoCacheHandler)).await?,
        ];
        for (name, handler) in self.handlers.iter().rev() {
            endpoints.push(self.runtime.serve_endpoint(beside(name), handler.clone()).await?);
        }
        let record = ModelRecord {
            endpoint: self.endpoint(),
            incarnation: self.runtime.incarnation(),
            card: serde_json::to_value(&card)?,
            suffix: None,
        };
        let model = self.runtime.announce(Record::Model(record)).await?;
        Ok(ServedGlobalRouter { _model: model, _endpoints: endpoints })
    }

    async fn first_card(&self) -> Option<(EndpointId, ModelCard)> {
        let mut watch = self.runtime.discovery().watch(Query::AllModels);
        loop {
            let records = match watch.next().await? {
                Change::Snapshot(records) => records,
                Change::Put(record) => vec![record],
                Change::Removed(_) => continue,
            };
            if let Some(found) = records.into_iter().find_map(|record| self.card_of(record)) {
                return Some(found);
            }
        }
    }

    fn card_of(&self, record: Record) -> Option<(EndpointId, ModelCard)> {
        let Record::Model(record) = record else { return None };
        if !namespaces(&self.config).any(|namespace| *namespace == record.endpoint.namespace) {
            return None;
        }
        let card: ModelCard = serde_json::from_value(record.card).ok()?;
        // Adapters are their workers' own: who has which is not known here.
        let is_wanted = card.lora.is_none() && card.display_name == self.config.model_name;
        is_wanted.then_some((record.endpoint, card))
    }
}

fn namespaces(config: &GlobalRouterConfig) -> impl Iterator<Item = &String> {
    let (first, second) = match &config.pools.pools {
        Pools::Aggregated { pools, .. } => (pools, None),
        Pools::Disaggregated { prefill, decode } => (prefill, Some(decode)),
    };
    first.namespaces.iter().chain(second.into_iter().flat_map(|pools| &pools.namespaces))
}
