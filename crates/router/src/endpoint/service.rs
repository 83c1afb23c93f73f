//! From the first card to the endpoints that are served.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use dynamo_llm::{EndpointRouter, EndpointRouterConfig, EndpointStatus};
use dynamo_runtime::{
    DistributedRuntime, EndpointId, ServeError, ServedEndpoint, TaskScope, metrics::MetricsError,
    request_plane::Handler,
};

use super::{
    advice::{BestWorkerHandler, BestWorkerIdHandler},
    bookings::Bookings,
    generate::GenerateHandler,
    metrics::ServiceMetrics,
};

/// The component under which a router serves, in the namespace of its workers.
pub const ROUTER_COMPONENT: &str = "router";

/// How often a router that starts looks whether it is ready.
const LOOK: Duration = Duration::from_millis(20);
/// How often bookings that nobody marks free are looked at.
const TICK: Duration = Duration::from_secs(1);

/// What a router process needs to know.
#[derive(Clone, Debug)]
pub struct RouterServiceConfig {
    /// Whose requests it routes, and how.
    pub router: EndpointRouterConfig,
}

/// Why a router did not start.
#[derive(Debug, thiserror::Error)]
pub enum RouterServiceError {
    /// A metric is taken.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// It cannot be registered.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// The process goes.
    #[error("told to shut down before the workers were known")]
    ShuttingDown,
}

/// A router that follows its endpoint; it is served from [`RouterService::serve`] on.
pub struct RouterService {
    runtime: DistributedRuntime,
    router: EndpointRouter,
    endpoint: EndpointId,
    metrics: ServiceMetrics,
    bookings: Arc<Bookings>,
    scope: TaskScope,
}

impl RouterService {
    /// Begins to follow the workers.
    pub fn start(
        runtime: &DistributedRuntime,
        config: RouterServiceConfig,
    ) -> Result<Self, RouterServiceError> {
        let scope = runtime.scope().child("router");
        let expiry = config.router.router.kv.active_request_expiry;
        let target = &config.router.endpoint;
        let endpoint = EndpointId::new(target.namespace.clone(), ROUTER_COMPONENT, "generate");
        let router = EndpointRouter::start(runtime, config.router, scope.clone())?;
        let bookings = Arc::new(Bookings::new(expiry));
        let counted = bookings.clone();
        let metrics = ServiceMetrics::new(runtime.metrics(), &router, move || counted.len())?;
        scope.spawn("bookings", expire(bookings.clone(), scope.clone()));
        Ok(Self { runtime: runtime.clone(), router, endpoint, metrics, bookings, scope })
    }

    /// How it stands.
    pub fn status(&self) -> EndpointStatus {
        self.router.status()
    }

    /// The router behind it.
    pub fn router(&self) -> &EndpointRouter {
        &self.router
    }

    /// Where it serves.
    pub fn endpoint(&self) -> &EndpointId {
        &self.endpoint
    }

    /// Waits until it is known what the workers hold, or each has had its time, and serves from then on, for as long as
    /// what is returned is held.
    pub async fn serve(&self) -> Result<[ServedEndpoint; 3], RouterServiceError> {
        let settled = async {
            while !self.router.is_settled() {
                tokio::time::sleep(LOOK).await;
            }
        };
        tokio::select! {
            () = settled => {}
            () = self.runtime.runtime().shutting_down() => return Err(RouterServiceError::ShuttingDown),
        }
        let beside = |name: &str| EndpointId { endpoint: name.to_owned(), ..self.endpoint.clone() };
        let (router, scope) = (&self.router, &self.scope);
        let generate: Arc<dyn Handler> = Arc::new(GenerateHandler {
            router: router.clone(),
            metrics: self.metrics.clone(),
            worker_id: self.runtime.incarnation().worker_id.get(),
            scope: scope.clone(),
        });
        let best_id = Arc::new(BestWorkerIdHandler { router: router.clone(), scope: scope.clone() });
        let best = Arc::new(BestWorkerHandler {
            router: router.clone(),
            bookings: self.bookings.clone(),
            scope: scope.clone(),
        });
        let best_id = self.runtime.serve_endpoint(beside("best_worker_id"), best_id).await?;
        let best = self.runtime.serve_endpoint(beside("best_worker"), best).await?;
        let generate = self.runtime.serve_endpoint(self.endpoint.clone(), generate).await?;
        Ok([generate, best_id, best])
    }
}

async fn expire(bookings: Arc<Bookings>, scope: TaskScope) {
    let mut tick = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            () = scope.cancelled() => return,
            _ = tick.tick() => {
                let forgotten = bookings.expire(Instant::now());
                if forgotten > 0 {
                    tracing::warn!(forgotten, "booked requests that nobody marked free no longer count");
                }
            }
        }
    }
}
