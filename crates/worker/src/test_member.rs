//! Members of a deployment in one process, for tests.

use std::path::Path;

use dynamo_mocker::MockerConfig;
use dynamo_runtime::{DistributedRuntime, EndpointId, Metrics, Runtime, RuntimeConfig, WorkerId};

use crate::{WorkerConfig, Workers};

/// A simulated worker of the tiny model, which takes no time; `change` what is to be otherwise.
pub(crate) async fn tiny_worker(config: &RuntimeConfig, change: impl FnOnce(&mut WorkerConfig)) -> Workers {
    let mut config = config.clone();
    config.metrics = Metrics::new();
    let runtime = Runtime::with_limits(tokio::runtime::Handle::current(), config.shutdown);
    let mut worker = WorkerConfig {
        model_path: Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/tiny-llama"),
        model_name: Some("tiny".to_owned()),
        endpoint: EndpointId::new("ns", "backend", "generate"),
        custom_template: None,
        context_length: None,
        num_workers: 1,
        engine: MockerConfig { speedup_ratio: 0.0, block_size: 4, ..MockerConfig::default() },
        wire_ports: Vec::new(),
        taints: Vec::new(),
        loras: Vec::new(),
    };
    change(&mut worker);
    Workers::start(&runtime, worker, config).await.unwrap()
}

/// One more member of the deployment that `config` is for; one with a number is a worker with a name of its own.
pub(crate) async fn member(config: &RuntimeConfig, worker_id: Option<u64>) -> DistributedRuntime {
    let mut config = config.clone();
    config.metrics = Metrics::new();
    config.worker_id = worker_id.map(WorkerId::from_bits);
    config.worker_name = worker_id.map(|id| format!("pod-{id}"));
    let runtime = Runtime::with_limits(tokio::runtime::Handle::current(), config.shutdown);
    DistributedRuntime::new(runtime, config).await.unwrap()
}
