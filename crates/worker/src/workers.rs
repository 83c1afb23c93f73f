//! Starts the workers of this process.

use std::{
    net::IpAddr,
    path::PathBuf,
    sync::{Arc, Weak},
};

use dynamo_engine_api::{Engine, EngineObserver};
use dynamo_llm::{
    CardError, CardOptions, KV_EVENTS_TOPIC, KV_QUERY_ENDPOINT, MODEL_FILES_ENDPOINT, ModelCard,
    RuntimeConfigCard,
};
use dynamo_mocker::{DisaggregationMode, MockConfigError, MockEngine, MockerConfig};
use dynamo_runtime::{
    Announcement, DistributedRuntime, EndpointId, EventScope, RequestPlaneSource, Runtime, RuntimeConfig,
    ServeError, ServedEndpoint, StartError, SystemState, TaskScope, events::EventPlaneError,
    metrics::MetricsError,
};
use dynamo_tokens::BlockSize;

use crate::{
    EngineEventSource, EngineIntakeMetrics, EngineListener, EngineWire, EngineWireError, ListenerError,
    LoadedAdapters, MAX_ADAPTERS, WirePorts, WorkerAdapters,
    adapters::{self, AdapterError, announce_model, check_others},
    handler::GenerateHandler,
    kv_bytes::kv_bytes_per_token,
    kv_publisher::{KvPublisher, KvQueryHandler},
    load::LoadGauges,
    metrics::ComponentMetrics,
    model_check::{ModelCheckError, check_model},
    model_files::ModelFileHandler,
    vocabulary::ordinary_tokens,
};

/// What to start.
#[derive(Clone, Debug)]
pub struct WorkerConfig {
    /// A Hugging Face model directory.
    pub model_path: PathBuf,
    /// The public name; absent: the directory's.
    pub model_name: Option<String>,
    /// What to serve.
    pub endpoint: EndpointId,
    /// A template that goes before the model's own.
    pub custom_template: Option<PathBuf>,
    /// Another context than the model's files say.
    pub context_length: Option<u32>,
    /// How many.
    pub num_workers: u32,
    /// What each simulates. With the role of computing prompts alone, its card says so.
    pub engine: MockerConfig,
    /// For each worker the ports on which its engine publishes KV events as vLLM does; the worker then listens there,
    /// as to a real engine. Empty: engine and publisher share the process's memory.
    pub wire_ports: Vec<WirePorts>,
    /// Labels that requests may ask for, of all of them.
    pub taints: Vec<String>,
    /// LoRA adapters that all of them serve from the start.
    pub loras: Vec<String>,
}

/// Why workers did not start.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each variant is what its source says")]
pub enum WorkerError {
    #[error(transparent)]
    Model(#[from] CardError),
    #[error("{}: {error}", directory.display())]
    Unservable { directory: PathBuf, error: ModelCheckError },
    #[error("the model could not be read: {0}")]
    Check(tokio::task::JoinError),
    #[error(transparent)]
    Engine(#[from] MockConfigError),
    #[error(transparent)]
    Runtime(#[from] StartError),
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error(transparent)]
    Events(#[from] EventPlaneError),
    #[error(transparent)]
    Wire(#[from] EngineWireError),
    #[error(transparent)]
    Listener(#[from] ListenerError),
    #[error("{ports} pairs of KV event ports for {workers} workers: give one for each")]
    WirePorts { ports: usize, workers: u32 },
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    #[error(transparent)]
    Adapter(#[from] AdapterError),
    #[error("told to shut down before the engines were ready")]
    ShuttingDown,
}

/// The running workers of this process. Dropping it leaves discovery and ends the engines.
#[must_use = "dropping the workers ends them"]
pub struct Workers {
    workers: Vec<Worker>,
    card: ModelCard,
    /// Whether adapters may be loaded and unloaded by engine routes.
    lora_routes: bool,
}

struct Worker {
    runtime: DistributedRuntime,
    /// Left first, so that nobody is sent here while the rest goes.
    adapters: Arc<WorkerAdapters>,
    _model: Announcement,
    _endpoints: [ServedEndpoint; 3],
    _listeners: Vec<EngineListener>,
    engine: Arc<MockEngine>,
}

/// A worker whose engine has begun to start, and that nobody knows yet.
struct Starting {
    runtime: DistributedRuntime,
    observer: Arc<KvPublisher>,
    scope: TaskScope,
    listeners: Vec<EngineListener>,
    engine: Arc<MockEngine>,
    adapters: Arc<LoadedAdapters>,
}

impl Workers {
    /// Checks the model, starts all engines, waits until all are ready, and registers them. They share one request plane
    /// and one system server; each has an identity of its own. A shutdown meanwhile ends it.
    pub async fn start(
        runtime: &Runtime,
        config: WorkerConfig,
        runtime_config: RuntimeConfig,
    ) -> Result<Self, WorkerError> {
        let engine = &config.engine;
        if !config.wire_ports.is_empty() && config.wire_ports.len() != config.num_workers as usize {
            let ports = config.wire_ports.len();
            return Err(WorkerError::WirePorts { ports, workers: config.num_workers });
        }
        let card = ModelCard::from_directory(
            &config.model_path,
            CardOptions {
                name: config.model_name.clone(),
                kv_cache_block_size: engine.block_size,
                custom_template: config.custom_template.clone(),
                migration_limit: 0,
                context_length: config.context_length,
                is_prefill: engine.disaggregation_mode == DisaggregationMode::Prefill,
                runtime_config: RuntimeConfigCard {
                    total_kv_blocks: Some(u64::from(engine.num_gpu_blocks)),
                    max_num_seqs: Some(u64::from(engine.max_num_seqs)),
                    max_num_batched_tokens: Some(u64::from(engine.max_num_batched_tokens)),
                    data_parallel_size: engine.data_parallel_size,
                    data_parallel_start_rank: 0,
                    enable_local_indexer: true,
                    taints: config.taints.clone(),
                },
            },
        )?;
        let cards = cards_of(&card, &config.loras)?;
        let checked = card.clone();
        let (vocabulary, kv_bytes) = runtime
            .scope()
            .spawn_blocking("model-check", move || {
                let vocabulary = ordinary_tokens(&check_model(&checked)?);
                Ok((vocabulary, kv_bytes_per_token(&checked)))
            })
            .await
            .map_err(WorkerError::Check)?
            .map_err(|error| WorkerError::Unservable { directory: config.model_path.clone(), error })?;
        let engine = MockerConfig {
            vocabulary,
            max_model_len: Some(card.context_length),
            kv_bytes_per_token: config.engine.kv_bytes_per_token.or(kv_bytes),
            ..config.engine.clone()
        };

        let families = Families {
            component: ComponentMetrics::new(&runtime_config.metrics)?,
            load: LoadGauges::new(&runtime_config.metrics)?,
            intake: EngineIntakeMetrics::new(&runtime_config.metrics)?,
        };
        let mut starting: Vec<Starting> = Vec::new();
        let host = runtime_config.event_plane.host;
        for number in 0..config.num_workers as usize {
            let mut own = runtime_config.clone();
            if let Some(first) = starting.first() {
                own.request_plane = RequestPlaneSource::Shared(first.runtime.request_plane().clone());
                own.system.port = None;
            }
            let runtime = DistributedRuntime::new(runtime.clone(), own).await?;
            let wire = config.wire_ports.get(number).map(|&ports| (host, ports));
            starting.push(Starting::new(runtime, &config.endpoint, engine.clone(), wire, &families).await?);
        }
        let ready = async {
            for worker in &starting {
                worker.engine.ready().await;
            }
        };
        tokio::select! {
            () = ready => {}
            () = runtime.shutting_down() => return Err(WorkerError::ShuttingDown),
        }
        // Once for all: they register the same cards.
        if let Some(first) = starting.first() {
            check_others(&first.runtime, &config.endpoint, &cards).await?;
        }
        let mut workers = Vec::with_capacity(starting.len());
        for worker in starting {
            workers.push(worker.register(&config.endpoint, &card, &config.loras, &families).await?);
        }
        if let Some(first) = workers.first() {
            check_others(&first.runtime, &config.endpoint, &cards).await?;
        }
        let this = Self { workers, card, lora_routes: runtime_config.system.lora_routes };
        if let Some(first) = this.runtime() {
            this.register_routes(first.system());
        }
        Ok(this)
    }

    /// Adds the engine routes of all workers together to the system server that this process has, and that they need not
    /// know of. The routes keep no engine alive.
    pub fn register_routes(&self, system: &SystemState) {
        self.register_routes_with(&[], system);
    }

    /// As [`register_routes`](Self::register_routes), for these workers and others of the process: a process has each
    /// route once.
    pub fn register_routes_with(&self, others: &[&Self], system: &SystemState) {
        let workers = || others.iter().copied().chain([self]).flat_map(|group| &group.workers);
        let engines: Vec<Weak<MockEngine>> = workers().map(|worker| Arc::downgrade(&worker.engine)).collect();
        system.routes().register("clear_kv_blocks", move |_| {
            let mut cleared = 0;
            for engine in engines.iter().filter_map(Weak::upgrade) {
                engine.clear_cache();
                cleared += 1;
            }
            async move { Ok(serde_json::json!({"status": "ok", "workers": cleared})) }
        });
        if self.lora_routes {
            adapters::register_routes(system, workers().map(|worker| &worker.adapters));
        }
    }

    /// The model that they serve.
    pub fn card(&self) -> &ModelCard {
        &self.card
    }

    /// The runtime of the first worker, which has the request plane and the system server.
    pub fn runtime(&self) -> Option<&DistributedRuntime> {
        self.workers.first().map(|worker| &worker.runtime)
    }
}

struct Families {
    component: ComponentMetrics,
    load: LoadGauges,
    intake: EngineIntakeMetrics,
}

impl Starting {
    async fn new(
        runtime: DistributedRuntime,
        endpoint: &EndpointId,
        config: MockerConfig,
        wire: Option<(IpAddr, WirePorts)>,
        families: &Families,
    ) -> Result<Self, WorkerError> {
        let worker_id = runtime.incarnation().worker_id.get();
        let events = EventScope::component(endpoint.namespace.clone(), endpoint.component.clone());
        let publisher = runtime.event_plane().publisher(events, KV_EVENTS_TOPIC).await?;
        let ranks = 0..config.data_parallel_size;
        let scope = runtime.scope().child("engine");
        let observer = KvPublisher::start(worker_id, ranks, publisher, &families.load, &scope);
        let adapters = Arc::<LoadedAdapters>::default();
        let (of_engine, listeners) = match wire {
            Some((host, ports)) => {
                over_the_wire(host, ports, &config, &adapters, &observer, &families.intake)?
            }
            None => (observer.clone() as Arc<dyn EngineObserver>, Vec::new()),
        };
        let config = MockerConfig { engine_id: Some(worker_id.to_string()), ..config };
        let spawner = scope.clone();
        let engine = Arc::new(MockEngine::start(config, of_engine, |task| {
            spawner.spawn("rank", task);
        })?);
        Ok(Self { runtime, observer, scope, listeners, engine, adapters })
    }

    async fn register(
        self,
        endpoint: &EndpointId,
        card: &ModelCard,
        loras: &[String],
        families: &Families,
    ) -> Result<Worker, WorkerError> {
        let Self { runtime, observer, scope, listeners, engine, adapters: loaded } = self;
        let worker_id = runtime.incarnation().worker_id.get();
        let beside = |name: &str| EndpointId { endpoint: name.to_owned(), ..endpoint.clone() };
        let metrics = families.component.endpoint(endpoint, worker_id);
        let queries = KvQueryHandler::new(observer, scope.clone());
        let files = ModelFileHandler::new(card, scope);
        // What answers questions about the model and its cache is there before anybody can ask.
        let queries = runtime.serve_endpoint(beside(KV_QUERY_ENDPOINT), Arc::new(queries)).await?;
        let files = runtime.serve_endpoint(beside(MODEL_FILES_ENDPOINT), Arc::new(files)).await?;
        let generate = GenerateHandler::new(engine.clone(), metrics).with_adapters(loaded.clone());
        let generate = runtime.serve_endpoint(endpoint.clone(), Arc::new(generate)).await?;
        let model = announce_model(&runtime, endpoint, card).await?;
        let adapters = WorkerAdapters::new(runtime.clone(), endpoint.clone(), card.clone(), loaded);
        for name in loras {
            adapters.register(name, None).await?;
        }
        Ok(Worker {
            runtime,
            adapters: Arc::new(adapters),
            _model: model,
            _endpoints: [generate, queries, files],
            _listeners: listeners,
            engine,
        })
    }
}

/// The card of a model and those of its adapters. Finds names that cannot be before anything is started.
fn cards_of(base: &ModelCard, adapters: &[String]) -> Result<Vec<ModelCard>, AdapterError> {
    let mut cards = vec![base.clone()];
    for name in adapters {
        let card = base.adapter_card(name, None)?;
        if let Some(other) = cards.iter().find(|other| other.key_suffix() == card.key_suffix()) {
            return Err(AdapterError::SameKey(name.clone(), other.display_name.clone()));
        }
        if cards.len() > MAX_ADAPTERS {
            return Err(AdapterError::Full);
        }
        cards.push(card);
    }
    Ok(cards)
}

/// Lets the engine publish on sockets of its own, and `publisher` listen there.
fn over_the_wire(
    host: IpAddr,
    ports: WirePorts,
    config: &MockerConfig,
    adapters: &Arc<LoadedAdapters>,
    publisher: &Arc<KvPublisher>,
    metrics: &EngineIntakeMetrics,
) -> Result<(Arc<dyn EngineObserver>, Vec<EngineListener>), WorkerError> {
    let block_size = BlockSize::new(config.block_size).ok_or(MockConfigError::Zero("block_size"))?;
    let (ranks, size) = (config.data_parallel_size, config.block_size);
    let wire = EngineWire::start(host, ports, ranks, size, adapters.clone(), publisher.clone())?;
    let metrics = metrics.of_worker(publisher.worker_id());
    let listeners = wire.endpoints().iter().zip(0..).map(|(endpoint, rank)| {
        let source =
            EngineEventSource::new(&endpoint.events, publisher.clone(), block_size, rank, metrics.clone());
        EngineListener::start(endpoint.clone(), source, metrics.clone())
    });
    let listeners = listeners.collect::<Result<Vec<_>, _>>()?;
    Ok((Arc::new(wire), listeners))
}

#[cfg(test)]
mod tests;
