//! What a global router counts.

use dynamo_runtime::metrics::{IntCounter, Metrics, MetricsError};
use prometheus::IntCounterVec;

/// All families.
pub(super) struct GlobalMetrics {
    requests: IntCounterVec,
    skipped: IntCounterVec,
    pub(super) failed: IntCounter,
}

/// One pool's series.
pub(super) struct PoolMetrics {
    pub(super) requests: IntCounter,
    pub(super) skipped: IntCounter,
}

impl GlobalMetrics {
    pub(super) fn new(metrics: &Metrics) -> Result<Self, MetricsError> {
        let labels = ["kind", "pool"];
        Ok(Self {
            requests: metrics.counter_vec(
                "dynamo_component_global_router_requests_total",
                "Requests that a pool accepted",
                &labels,
            )?,
            skipped: metrics.counter_vec(
                "dynamo_component_global_router_pool_skipped_total",
                "Requests for which a pool was asked and did not accept",
                &labels,
            )?,
            failed: metrics.counter(
                "dynamo_component_global_router_requests_failed_total",
                "Requests that no pool answered to the end",
            )?,
        })
    }

    /// The series of a pool, shown at 0 from now on.
    pub(super) fn pool(&self, kind: &str, namespace: &str) -> PoolMetrics {
        let labels = [kind, namespace];
        PoolMetrics {
            requests: self.requests.with_label_values(&labels),
            skipped: self.skipped.with_label_values(&labels),
        }
    }
}
