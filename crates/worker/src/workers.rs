//! Starts the workers of this process.

use std::{path::PathBuf, sync::Arc};

use dynamo_engine_api::Engine;
use dynamo_llm::{
    CardError, CardOptions, KV_EVENTS_TOPIC, KV_QUERY_ENDPOINT, MODEL_FILES_ENDPOINT, ModelCard,
    RuntimeConfigCard,
};
use dynamo_mocker::{MockConfigError, MockEngine, MockerConfig};
use dynamo_runtime::{
    Announcement, DiscoveryError, DistributedRuntime, EndpointId, EventScope, ModelRecord, Record,
    RequestPlaneSource, Runtime, RuntimeConfig, ServeError, ServedEndpoint, StartError,
    events::EventPlaneError, metrics::MetricsError,
};
use dynamo_text::{Tokenizer, TokenizerError};

use crate::{
    handler::GenerateHandler,
    kv_publisher::{KvPublisher, KvQueryHandler},
    load::LoadGauges,
    metrics::ComponentMetrics,
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
    /// What each simulates.
    pub engine: MockerConfig,
}

/// Why workers did not start.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "each variant is what its source says")]
pub enum WorkerError {
    #[error(transparent)]
    Model(#[from] CardError),
    #[error(transparent)]
    File(#[from] dynamo_llm::FileError),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error(transparent)]
    Engine(#[from] MockConfigError),
    #[error(transparent)]
    Runtime(#[from] StartError),
    #[error(transparent)]
    Serve(#[from] ServeError),
    #[error(transparent)]
    Discovery(#[from] DiscoveryError),
    #[error(transparent)]
    Events(#[from] EventPlaneError),
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    #[error("the model card does not serialize: {0}")]
    Card(#[from] serde_json::Error),
}

/// The running workers of this process. Dropping it leaves discovery and ends the engines.
#[must_use = "dropping the workers ends them"]
pub struct Workers {
    workers: Vec<Worker>,
    card: ModelCard,
}

struct Worker {
    runtime: DistributedRuntime,
    /// Left first, so that nobody is sent here while the rest goes.
    _model: Announcement,
    _endpoints: [ServedEndpoint; 3],
    _engine: Arc<MockEngine>,
}

impl Workers {
    /// Starts them one after the other. They share one request plane and one system server; each has an identity of its own.
    pub async fn start(
        runtime: &Runtime,
        config: WorkerConfig,
        runtime_config: RuntimeConfig,
    ) -> Result<Self, WorkerError> {
        let engine = &config.engine;
        let card = ModelCard::from_directory(
            &config.model_path,
            CardOptions {
                name: config.model_name.clone(),
                kv_cache_block_size: engine.block_size,
                custom_template: config.custom_template.clone(),
                migration_limit: 0,
                context_length: config.context_length,
                runtime_config: RuntimeConfigCard {
                    total_kv_blocks: Some(u64::from(engine.num_gpu_blocks)),
                    max_num_seqs: Some(u64::from(engine.max_num_seqs)),
                    max_num_batched_tokens: Some(u64::from(engine.max_num_batched_tokens)),
                    data_parallel_size: engine.data_parallel_size,
                    data_parallel_start_rank: 0,
                    enable_local_indexer: true,
                },
            },
        )?;
        let tokenizer = Tokenizer::from_json(&card.tokenizer.read_in_place()?)?;
        let engine = MockerConfig {
            vocabulary: ordinary_tokens(&tokenizer),
            max_model_len: Some(card.context_length),
            ..config.engine.clone()
        };
        drop(tokenizer);

        let families = Families {
            component: ComponentMetrics::new(&runtime_config.metrics)?,
            load: LoadGauges::new(&runtime_config.metrics)?,
        };
        let mut workers: Vec<Worker> = Vec::new();
        for _ in 0..config.num_workers {
            let mut own = runtime_config.clone();
            if let Some(first) = workers.first() {
                own.request_plane = RequestPlaneSource::Shared(first.runtime.request_plane().clone());
                own.system.port = None;
            }
            let runtime = DistributedRuntime::new(runtime.clone(), own).await?;
            workers.push(Worker::start(runtime, &config.endpoint, &card, engine.clone(), &families).await?);
        }
        Ok(Self { workers, card })
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
}

impl Worker {
    async fn start(
        runtime: DistributedRuntime,
        endpoint: &EndpointId,
        card: &ModelCard,
        config: MockerConfig,
        families: &Families,
    ) -> Result<Self, WorkerError> {
        let worker_id = runtime.incarnation().worker_id.get();
        let events = EventScope::component(endpoint.namespace.clone(), endpoint.component.clone());
        let publisher = runtime.event_plane().publisher(events, KV_EVENTS_TOPIC).await?;
        let ranks = 0..config.data_parallel_size;
        let observer =
            Arc::new(KvPublisher::new(worker_id, ranks, publisher, families.load.of_worker(worker_id)));
        let scope = runtime.scope().child("engine");
        let spawner = scope.clone();
        let engine = Arc::new(MockEngine::start(config, observer.clone(), |task| {
            spawner.spawn("rank", task);
        })?);
        engine.ready().await;

        let beside = |name: &str| EndpointId { endpoint: name.to_owned(), ..endpoint.clone() };
        let metrics = families.component.endpoint(endpoint, worker_id);
        let queries = KvQueryHandler::new(observer, scope.clone());
        let files = ModelFileHandler::new(card, scope);
        // What answers questions about the model and its cache is there before anybody can ask.
        let queries = runtime.serve_endpoint(beside(KV_QUERY_ENDPOINT), Arc::new(queries)).await?;
        let files = runtime.serve_endpoint(beside(MODEL_FILES_ENDPOINT), Arc::new(files)).await?;
        let generate = GenerateHandler::new(engine.clone(), metrics);
        let generate = runtime.serve_endpoint(endpoint.clone(), Arc::new(generate)).await?;
        let record = ModelRecord {
            endpoint: endpoint.clone(),
            incarnation: runtime.incarnation(),
            card: serde_json::to_value(card)?,
            suffix: None,
        };
        let model = runtime.announce(Record::Model(record)).await?;
        let clearing = engine.clone();
        runtime.system().routes().register("clear_kv_blocks", move |_| {
            clearing.clear_cache();
            async { Ok(serde_json::json!({"status": "ok"})) }
        });
        Ok(Self { runtime, _model: model, _endpoints: [generate, queries, files], _engine: engine })
    }
}
