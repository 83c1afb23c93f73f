//! What all requests of a service share.

use std::sync::{Arc, atomic::AtomicBool};

use axum::http::StatusCode;
use dynamo_llm::{ChatModel, ModelCatalog};
use dynamo_runtime::{Metrics, Phase, metrics::MetricsError};
use tokio::sync::{Semaphore, watch};

use crate::{
    api_error::ApiError, byte_budget::ByteBudget, config::HttpConfig, metrics::FrontendMetrics,
    request_body::BodyLimits,
};

/// Large bodies parsed at once, each on a thread of the blocking pool: they come seldom, and a core each is enough.
const LARGE_PARSES: usize = 4;

pub(crate) struct App {
    pub(crate) config: HttpConfig,
    pub(crate) catalog: Arc<dyn ModelCatalog>,
    pub(crate) metrics: Arc<FrontendMetrics>,
    pub(crate) registry: Metrics,
    pub(crate) body_limits: BodyLimits,
    pub(crate) large_parses: Semaphore,
    /// Whether somebody was told that routing headers are passed over.
    pub(crate) told_of_headers: AtomicBool,
    phase: watch::Receiver<Phase>,
}

impl App {
    pub(crate) fn new(
        config: HttpConfig,
        catalog: Arc<dyn ModelCatalog>,
        registry: Metrics,
        phase: watch::Receiver<Phase>,
    ) -> Result<Self, MetricsError> {
        let metrics = Arc::new(FrontendMetrics::new(&config.metrics, &registry)?);
        let body_limits = BodyLimits {
            bytes: config.body_limit,
            budget: ByteBudget::new(config.body_budget),
            timeout: config.body_timeout,
        };
        Ok(Self {
            config,
            catalog,
            metrics,
            registry,
            body_limits,
            large_parses: Semaphore::new(LARGE_PARSES),
            told_of_headers: AtomicBool::new(false),
            phase,
        })
    }

    pub(crate) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    pub(crate) fn phases(&self) -> watch::Receiver<Phase> {
        self.phase.clone()
    }

    /// Refuses requests once the process drains.
    pub(crate) fn admit(&self) -> Result<(), ApiError> {
        if self.phase() < Phase::Draining {
            return Ok(());
        }
        Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "The server is shutting down"))
    }

    /// The model that can answer now.
    pub(crate) fn model(&self, name: &str) -> Result<Arc<dyn ChatModel>, ApiError> {
        self.catalog.get(name).ok_or_else(|| {
            if self.catalog.is_known(name) {
                ApiError::model_not_ready(name)
            } else {
                ApiError::model_not_found(name)
            }
        })
    }
}
