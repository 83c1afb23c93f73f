//! All families, made once and registered, and the handles of one model in them.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use dynamo_llm::{InstanceInfo, ModelInfo};
use dynamo_runtime::{
    Metrics,
    metrics::{BoundHits, MetricsError},
};
use parking_lot::{Mutex, RwLock};
use prometheus::{GaugeVec, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec};

use super::{MetricsConfig, cards::CardGauges, tracker::RequestKind};

/// The label of all requests for models that do not exist: names from outside must not become series.
const UNKNOWN_MODEL: &str = "unknown";
const CHAT_ENDPOINT: &str = "chat_completions";
/// Models whose handles are kept. A cluster with more names shares a label for the rest.
const MAX_MODELS: usize = 1024;
/// Workers whose last latencies are kept; over it, new ones are left out until others left.
const MAX_WORKERS: usize = 4096;

/// The families.
pub(crate) struct FrontendMetrics {
    requests: IntCounterVec,
    started: IntCounterVec,
    cancellations: IntCounterVec,
    rejections: IntCounterVec,
    inflight: IntGaugeVec,
    active: IntGaugeVec,
    queued: IntGaugeVec,
    duration: HistogramVec,
    input_tokens: HistogramVec,
    output_tokens: HistogramVec,
    cached_tokens: HistogramVec,
    output_tokens_total: IntCounterVec,
    time_to_first_token: HistogramVec,
    inter_token_latency: HistogramVec,
    worker_time_to_first_token: GaugeVec,
    worker_input_tokens: IntGaugeVec,
    worker_inter_token_latency: GaugeVec,
    pub(crate) bounds: Bounds,
    cards: CardGauges,
    pub(crate) disconnected: IntGauge,
    models: RwLock<HashMap<String, Arc<ModelMetrics>>>,
    /// Those of whom there are series.
    workers: Mutex<HashSet<WorkerSeries>>,
}

/// One model's handles.
pub(crate) struct ModelMetrics {
    pub(super) inflight: IntGauge,
    pub(super) active: IntGauge,
    pub(super) queued: IntGauge,
    pub(super) duration: Histogram,
    pub(super) input_tokens: Histogram,
    pub(super) output_tokens: Histogram,
    pub(super) cached_tokens: Histogram,
    pub(super) output_tokens_total: IntCounter,
    pub(super) time_to_first_token: Histogram,
    pub(super) inter_token_latency: Histogram,
    pub(super) rejections: IntCounter,
    kinds: [KindMetrics; 2],
}

/// One model's handles for one kind of request.
pub(super) struct KindMetrics {
    pub(super) started: IntCounter,
    pub(super) succeeded: IntCounter,
    pub(super) failed: IntCounter,
    pub(super) cancelled: IntCounter,
}

/// A rank of a worker, and what it did for a request (`worker_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct WorkerSeries {
    pub(super) worker_id: u64,
    pub(super) dp_rank: u32,
    pub(super) worker_type: &'static str,
}

/// What a rank did last; absent: nothing of the kind.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct WorkerLast {
    pub(super) time_to_first_token: Option<f64>,
    pub(super) input_tokens: Option<u32>,
    pub(super) inter_token_latency: Option<f64>,
}

impl ModelMetrics {
    pub(super) fn kind(&self, kind: RequestKind) -> &KindMetrics {
        &self.kinds[kind as usize]
    }
}

impl FrontendMetrics {
    /// Makes the families.
    pub(crate) fn new(config: &MetricsConfig, metrics: &Metrics) -> Result<Self, MetricsError> {
        let make = Maker { prefix: &config.prefix, metrics };
        let by_request = ["model", "endpoint", "request_type"];
        let worker = ["worker_id", "dp_rank", "worker_type"];
        Ok(Self {
            requests: make.counters(
                "requests_total",
                "Requests that ended",
                &["model", "endpoint", "request_type", "status"],
            )?,
            started: make.counters("requests_started_total", "Requests that began", &by_request)?,
            cancellations: make.counters(
                "model_cancellation_total",
                "Requests that were cancelled",
                &by_request,
            )?,
            rejections: make.counters(
                "model_rejection_total",
                "Requests refused because all workers were busy",
                &["model", "endpoint"],
            )?,
            inflight: make.gauges("inflight_requests", "Requests being served", &["model"])?,
            active: make.gauges("active_requests", "Requests being served", &["model"])?,
            queued: make.gauges("queued_requests", "Requests without a first token yet", &["model"])?,
            duration: make.histograms(
                "request_duration_seconds",
                "Seconds of a whole request",
                config.request_duration.bounds(),
            )?,
            input_tokens: make.histograms(
                "input_sequence_tokens",
                "Tokens of a prompt",
                config.input_sequence.bounds(),
            )?,
            output_tokens: make.histograms(
                "output_sequence_tokens",
                "Tokens of an answer",
                config.output_sequence.bounds(),
            )?,
            cached_tokens: make.histograms(
                "cached_tokens",
                "Tokens of a prompt that were found in a cache",
                config.input_sequence.bounds(),
            )?,
            output_tokens_total: make.counters("output_tokens_total", "Tokens of all answers", &["model"])?,
            time_to_first_token: make.histograms(
                "time_to_first_token_seconds",
                "Seconds to the first token",
                config.time_to_first_token.bounds(),
            )?,
            inter_token_latency: make.histograms(
                "inter_token_latency_seconds",
                "Seconds between tokens",
                config.inter_token_latency.bounds(),
            )?,
            worker_time_to_first_token: make.float_gauges(
                "worker_last_time_to_first_token_seconds",
                "Seconds to the first token of a worker's last request",
                &worker,
            )?,
            worker_input_tokens: make.gauges(
                "worker_last_input_sequence_tokens",
                "Prompt tokens of a worker's last request",
                &worker,
            )?,
            worker_inter_token_latency: make.float_gauges(
                "worker_last_inter_token_latency_seconds",
                "Mean seconds between tokens of a worker's last request",
                &worker,
            )?,
            bounds: Bounds::new(&BoundHits::new(metrics)?),
            cards: CardGauges::new(&make)?,
            disconnected: make
                .gauge("disconnected_clients", "Clients that left before the end of their answer")?,
            models: RwLock::default(),
            workers: Mutex::default(),
        })
    }

    /// The handles of a model that exists.
    pub(crate) fn model(&self, name: &str) -> Arc<ModelMetrics> {
        if let Some(found) = self.models.read().get(name) {
            return found.clone();
        }
        let mut models = self.models.write();
        let name = if models.len() < MAX_MODELS { name } else { UNKNOWN_MODEL };
        models.entry(name.to_owned()).or_insert_with(|| Arc::new(self.handles(name))).clone()
    }

    /// Counts a request that was refused before its model was known to exist.
    pub(crate) fn count_refused(&self, kind: RequestKind) {
        let model = self.model(UNKNOWN_MODEL);
        model.kind(kind).started.inc();
        model.kind(kind).failed.inc();
    }

    /// Notes what a rank of a worker did last.
    pub(super) fn note_worker(&self, worker: WorkerSeries, last: WorkerLast) {
        let mut workers = self.workers.lock();
        if !workers.contains(&worker) {
            if workers.len() >= MAX_WORKERS {
                return;
            }
            workers.insert(worker);
        }
        let (id, rank) = (worker.worker_id.to_string(), worker.dp_rank.to_string());
        let labels = [id.as_str(), &rank, worker.worker_type];
        if let Some(seconds) = last.time_to_first_token {
            self.worker_time_to_first_token.with_label_values(&labels).set(seconds);
        }
        if let Some(tokens) = last.input_tokens {
            self.worker_input_tokens.with_label_values(&labels).set(tokens.into());
        }
        if let Some(seconds) = last.inter_token_latency {
            self.worker_inter_token_latency.with_label_values(&labels).set(seconds);
        }
    }

    /// Brings what mirrors the cluster up to date: cards of models, and no series of workers that left.
    pub(crate) fn refresh(&self, models: &[ModelInfo], instances: &[InstanceInfo]) {
        self.cards.set(models);
        self.workers.lock().retain(|worker| {
            let here = instances.iter().any(|instance| instance.instance_id == worker.worker_id);
            if !here {
                let (id, rank) = (worker.worker_id.to_string(), worker.dp_rank.to_string());
                let labels = [id.as_str(), &rank, worker.worker_type];
                // An error only says that the series is gone already.
                let _ = self.worker_time_to_first_token.remove_label_values(&labels);
                let _ = self.worker_input_tokens.remove_label_values(&labels);
                let _ = self.worker_inter_token_latency.remove_label_values(&labels);
            }
            here
        });
    }

    fn handles(&self, name: &str) -> ModelMetrics {
        let kind = |kind: RequestKind| {
            let labels = [name, CHAT_ENDPOINT, kind.label()];
            let ended =
                |status| self.requests.with_label_values(&[name, CHAT_ENDPOINT, kind.label(), status]);
            KindMetrics {
                started: self.started.with_label_values(&labels),
                succeeded: ended("success"),
                failed: ended("error"),
                cancelled: self.cancellations.with_label_values(&labels),
            }
        };
        ModelMetrics {
            inflight: self.inflight.with_label_values(&[name]),
            active: self.active.with_label_values(&[name]),
            queued: self.queued.with_label_values(&[name]),
            duration: self.duration.with_label_values(&[name]),
            input_tokens: self.input_tokens.with_label_values(&[name]),
            output_tokens: self.output_tokens.with_label_values(&[name]),
            cached_tokens: self.cached_tokens.with_label_values(&[name]),
            output_tokens_total: self.output_tokens_total.with_label_values(&[name]),
            time_to_first_token: self.time_to_first_token.with_label_values(&[name]),
            inter_token_latency: self.inter_token_latency.with_label_values(&[name]),
            rejections: self.rejections.with_label_values(&[name, CHAT_ENDPOINT]),
            kinds: [kind(RequestKind::Stream), kind(RequestKind::Unary)],
        }
    }
}

/// How often each of the service's limits was reached.
pub(crate) struct Bounds {
    pub(crate) body: IntCounter,
    pub(crate) body_budget: IntCounter,
    pub(crate) connections: IntCounter,
    pub(crate) slow_readers: IntCounter,
}

impl Bounds {
    fn new(hits: &BoundHits) -> Self {
        Self {
            body: hits.of("http_body"),
            body_budget: hits.of("http_body_budget"),
            connections: hits.of("http_connections"),
            slow_readers: hits.of("http_slow_reader"),
        }
    }
}

/// Makes families under one prefix.
pub(super) struct Maker<'a> {
    prefix: &'a str,
    metrics: &'a Metrics,
}

impl Maker<'_> {
    fn name(&self, name: &str) -> String {
        format!("{}_{name}", self.prefix)
    }

    fn counters(&self, name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, MetricsError> {
        self.metrics.counter_vec(&self.name(name), help, labels)
    }

    pub(super) fn gauges(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<IntGaugeVec, MetricsError> {
        self.metrics.gauge_vec(&self.name(name), help, labels)
    }

    fn float_gauges(&self, name: &str, help: &str, labels: &[&str]) -> Result<GaugeVec, MetricsError> {
        self.metrics.float_gauge_vec(&self.name(name), help, labels)
    }

    fn gauge(&self, name: &str, help: &str) -> Result<IntGauge, MetricsError> {
        self.metrics.gauge(&self.name(name), help)
    }

    fn histograms(&self, name: &str, help: &str, bounds: Vec<f64>) -> Result<HistogramVec, MetricsError> {
        self.metrics.histogram_vec(&self.name(name), help, &bounds, &["model"])
    }
}
