//! Members of a deployment in one process, for tests.

use dynamo_runtime::{DistributedRuntime, Metrics, Runtime, RuntimeConfig, WorkerId};

/// One more member of the deployment that `config` is for; one with a number is a worker with a name of its own.
pub(crate) async fn member(config: &RuntimeConfig, worker_id: Option<u64>) -> DistributedRuntime {
    let mut config = config.clone();
    config.metrics = Metrics::new();
    config.worker_id = worker_id.map(WorkerId::from_bits);
    config.worker_name = worker_id.map(|id| format!("pod-{id}"));
    let runtime = Runtime::with_limits(tokio::runtime::Handle::current(), config.shutdown);
    DistributedRuntime::new(runtime, config).await.unwrap()
}
