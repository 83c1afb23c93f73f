//! Pools as they are asked: one after the other until one accepts.

use dynamo_runtime::{
    Client, DistributedRuntime, EndpointId, InstanceState,
    client::ClientError,
    request_plane::{OutgoingRequest, ResponseStream, StreamError},
};

use super::{config::PoolGrid, grid::Grid, metrics::PoolMetrics};
use crate::endpoint::ROUTER_COMPONENT;

/// A pool's router.
struct Pool {
    client: Client,
    metrics: PoolMetrics,
}

/// Pools of one kind with their clients.
pub(super) struct PoolSet {
    grid: Grid,
    pools: Vec<Pool>,
}

impl PoolSet {
    pub(super) fn new(
        runtime: &DistributedRuntime,
        config: &PoolGrid,
        metrics: impl Fn(&str) -> PoolMetrics,
    ) -> Self {
        let pool = |namespace: &String| Pool {
            client: runtime.client(EndpointId::new(namespace.clone(), ROUTER_COMPONENT, "generate")),
            metrics: metrics(namespace),
        };
        Self { grid: config.grid.clone(), pools: config.namespaces.iter().map(pool).collect() }
    }

    pub(super) fn grid(&self) -> &Grid {
        &self.grid
    }

    /// Whether any pool has a router.
    pub(super) fn has_routers(&self) -> bool {
        let up = |pool: &Pool| {
            pool.client.instances().iter().any(|instance| instance.state() != InstanceState::Draining)
        };
        self.pools.iter().any(up)
    }

    /// Sends a request to the pool that its values name, or to the next best that accepts it.
    pub(super) async fn send(
        &self,
        values: &[f64],
        request: OutgoingRequest,
    ) -> Result<ResponseStream, StreamError> {
        let mut last = StreamError::Unavailable("no pool has a router".to_owned());
        for place in self.grid.choose(values) {
            let pool = &self.pools[place];
            let error = match pool.client.round_robin(request.clone()).await {
                Ok(opened) => {
                    pool.metrics.requests.inc();
                    return Ok(opened.stream);
                }
                Err(error) => error,
            };
            pool.metrics.skipped.inc();
            tracing::debug!(pool = %pool.client.endpoint(), %error, request_id = %request.id, "trying the next best pool");
            match error {
                ClientError::Refused { last: refused, .. } => last = refused,
                ClientError::Failed(failed) if !failed.is_retriable() => return Err(failed),
                ClientError::Failed(failed) => last = failed,
                other => last = StreamError::Unavailable(other.to_string()),
            }
        }
        Err(last)
    }
}
