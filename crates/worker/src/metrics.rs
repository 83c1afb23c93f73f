//! The `dynamo_component_*` families of a worker's endpoints.

use std::time::Instant;

use dynamo_runtime::metrics::{Metrics, MetricsError};
use prometheus::{HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

/// Seconds; the bounds that dashboards of this ecosystem expect.
const DURATION_BUCKETS: [f64; 17] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0];

const LABELS: [&str; 4] = ["dynamo_namespace", "dynamo_component", "dynamo_endpoint", "worker_id"];

/// All families, registered once per process.
#[derive(Clone)]
pub struct ComponentMetrics {
    requests: IntCounterVec,
    inflight: IntGaugeVec,
    duration: HistogramVec,
    request_bytes: IntCounterVec,
    response_bytes: IntCounterVec,
    errors: IntCounterVec,
    cancellations: IntCounterVec,
}

/// One endpoint's series.
#[derive(Clone)]
pub struct EndpointMetrics {
    labels: [String; 4],
    requests: IntCounter,
    inflight: IntGauge,
    duration: prometheus::Histogram,
    request_bytes: IntCounter,
    response_bytes: IntCounter,
    errors: IntCounterVec,
    cancellations: IntCounter,
}

impl ComponentMetrics {
    /// Makes the families, or takes those that are there.
    pub fn new(metrics: &Metrics) -> Result<Self, MetricsError> {
        let counter =
            |name: &str, help: &str| metrics.counter_vec(&format!("dynamo_component_{name}"), help, &LABELS);
        let mut error_labels = LABELS.to_vec();
        error_labels.push("error_type");
        Ok(Self {
            requests: counter("requests_total", "Requests received")?,
            inflight: metrics.gauge_vec(
                "dynamo_component_inflight_requests",
                "Requests being served",
                &LABELS,
            )?,
            duration: metrics.histogram_vec(
                "dynamo_component_request_duration_seconds",
                "From receiving a request to its last output",
                &DURATION_BUCKETS,
                &LABELS,
            )?,
            request_bytes: counter("request_bytes_total", "Payload bytes received")?,
            response_bytes: counter("response_bytes_total", "Payload bytes sent")?,
            errors: metrics.counter_vec(
                "dynamo_component_errors_total",
                "Requests that failed, by kind",
                &error_labels,
            )?,
            cancellations: counter("cancellation_total", "Requests that were cancelled")?,
        })
    }

    /// The series of one endpoint of one worker.
    pub fn endpoint(&self, id: &dynamo_runtime::EndpointId, worker_id: u64) -> EndpointMetrics {
        let labels =
            [id.namespace.clone(), id.component.clone(), id.endpoint.clone(), format!("{worker_id:x}")];
        let of = labels.each_ref().map(String::as_str);
        EndpointMetrics {
            requests: self.requests.with_label_values(&of),
            inflight: self.inflight.with_label_values(&of),
            duration: self.duration.with_label_values(&of),
            request_bytes: self.request_bytes.with_label_values(&of),
            response_bytes: self.response_bytes.with_label_values(&of),
            errors: self.errors.clone(),
            cancellations: self.cancellations.with_label_values(&of),
            labels,
        }
    }
}

impl EndpointMetrics {
    /// A request came in.
    pub fn started(&self, bytes: usize) {
        self.requests.inc();
        self.inflight.inc();
        self.request_bytes.inc_by(bytes as u64);
    }

    /// It failed, and how.
    pub fn failed(&self, kind: &str) {
        let [namespace, component, endpoint, worker] = self.labels.each_ref().map(String::as_str);
        self.errors.with_label_values(&[namespace, component, endpoint, worker, kind]).inc();
    }

    /// It was cancelled.
    pub fn cancelled(&self) {
        self.cancellations.inc();
    }

    /// Bytes went back.
    pub fn responded(&self, bytes: u64) {
        self.response_bytes.inc_by(bytes);
    }

    /// It is over.
    pub fn ended(&self, began: Instant) {
        self.inflight.dec();
        self.duration.observe(began.elapsed().as_secs_f64());
    }
}
