//! Typed metric families over one Prometheus registry.
//!
//! A part of the system asks [`Metrics`] for its families once, keeps the handles, and updates them without look-ups.
//! Asking again for a family of the same name and type gives the same one, so parts need not know of each other.

mod bounds;
mod process;
mod registry;

pub use bounds::BoundHits;
pub use process::{ProcessSources, register_process_metrics};
pub use registry::{Metrics, MetricsError};

pub use prometheus::{
    Gauge, GaugeVec, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
};

/// The content type of [`Metrics::encode_text`]'s output.
pub const TEXT_CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Label: the namespace that a series belongs to.
pub const LABEL_NAMESPACE: &str = "dynamo_namespace";
/// Label: the component that a series belongs to.
pub const LABEL_COMPONENT: &str = "dynamo_component";
/// Label: the endpoint that a series belongs to.
pub const LABEL_ENDPOINT: &str = "dynamo_endpoint";
/// Label: the worker that a series is about, in lower-case hex.
pub const LABEL_WORKER: &str = "worker_id";

/// Upper bounds, in seconds, of `dynamo_component_request_duration_seconds`.
pub const REQUEST_DURATION_BUCKETS: [f64; 17] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0];

#[cfg(test)]
mod tests;
