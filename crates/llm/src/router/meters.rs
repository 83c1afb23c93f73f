//! What the router counts and times.

use std::sync::Arc;

use dynamo_kv_router::{ClassId, QueueConfig, QueueRejected, ReplicaOutcome};
use dynamo_runtime::metrics::{BoundHits, Metrics, MetricsError};
use prometheus::{Histogram, HistogramVec, IntCounter, IntCounterVec};

/// What a router's workers do, as the metrics label it (`worker_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WorkerType {
    /// They answer, and compute prompts where nobody else does.
    Decode,
    /// They compute prompts that others answer.
    Prefill,
}

impl WorkerType {
    pub(crate) const ALL: [Self; 2] = [Self::Decode, Self::Prefill];

    pub(crate) const fn label(self) -> &'static str {
        match self {
            Self::Decode => "decode",
            Self::Prefill => "prefill",
        }
    }
}

const ROUTER_LABELS: [&str; 2] = ["model", "worker_type"];
const QUEUE_LABELS: [&str; 3] = ["model", "worker_type", "policy_class"];

/// Who computed a prompt of a model that has prefill workers, as the counter labels it (`by`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PrefilledBy {
    /// A prefill worker.
    Prefill,
    /// The worker that answers: it was not worth the way.
    Decode,
    /// The worker that answers, for no prefill worker did.
    Fallback,
}

impl PrefilledBy {
    const ALL: [Self; 3] = [Self::Prefill, Self::Decode, Self::Fallback];

    const fn label(self) -> &'static str {
        match self {
            Self::Prefill => "prefill",
            Self::Decode => "decode",
            Self::Fallback => "fallback",
        }
    }
}

/// Families of all models' routers.
#[derive(Clone)]
pub(crate) struct RouterMetrics {
    router_id: String,
    /// Names of the policy classes, by id.
    classes: Arc<[Box<str>]>,
    overhead: [HistogramVec; 5],
    requests_started: IntCounterVec,
    requests: IntCounterVec,
    seconds: [HistogramVec; 2],
    tokens: [HistogramVec; 2],
    hit_rate: HistogramVec,
    admission_received: IntCounterVec,
    admission_rejected: IntCounterVec,
    backpressure: IntCounterVec,
    unknown_classes: IntCounterVec,
    balanced: IntCounterVec,
    prefills: IntCounterVec,
    replica_events: IntCounterVec,
    remote_queries: IntCounterVec,
    served_queries: IntCounterVec,
    queue_full: IntCounter,
    outbox_full: IntCounter,
}

impl RouterMetrics {
    /// `router_id` labels the overhead, `queue` has the policy classes of all models.
    pub(crate) fn register(
        metrics: &Metrics,
        router_id: u64,
        queue: &QueueConfig,
    ) -> Result<Self, MetricsError> {
        // Computing takes microseconds, the whole may wait for locks.
        let computing = prometheus::exponential_buckets(0.001, 2.0, 15).unwrap_or_default();
        let whole = prometheus::exponential_buckets(0.01, 3.0, 17).unwrap_or_default();
        let overhead = |part: &str, help: &str, buckets: &[f64]| {
            metrics.histogram_vec(&format!("dynamo_router_overhead_{part}_ms"), help, buckets, &["router_id"])
        };
        let seconds = prometheus::exponential_buckets(0.001, 2.0, 18).unwrap_or_default();
        let tokens = prometheus::exponential_buckets(1.0, 4.0, 12).unwrap_or_default();
        let shares: Vec<f64> = (0..=20).map(|twentieths| f64::from(twentieths) / 20.0).collect();
        let of_model = |name: &str, help: &str, buckets: &[f64]| {
            metrics.histogram_vec(&format!("dynamo_component_router_{name}"), help, buckets, &ROUTER_LABELS)
        };
        let bounds = BoundHits::new(metrics)?;
        Ok(Self {
            router_id: router_id.to_string(),
            classes: queue.class_names().map(|(_, name)| name.into()).collect(),
            overhead: [
                overhead("block_hashing", "Hashing a prompt's blocks", &computing)?,
                overhead("seq_hashing", "Chaining a prompt's block hashes", &computing)?,
                overhead("indexer_find_matches", "Finding out who has a prompt cached", &whole)?,
                overhead("scheduling", "Choosing a worker and booking it", &whole)?,
                overhead("total", "The whole of routing, waiting in the queue apart", &whole)?,
            ],
            requests_started: metrics.counter_vec(
                "dynamo_component_router_requests_started_total",
                "Requests that got a worker",
                &ROUTER_LABELS,
            )?,
            requests: metrics.counter_vec(
                "dynamo_component_router_requests_total",
                "Requests that had a worker and are over",
                &ROUTER_LABELS,
            )?,
            seconds: [
                of_model("time_to_first_token_seconds", "From the choice to the first token", &seconds)?,
                of_model(
                    "inter_token_latency_seconds",
                    "Between tokens, the mean of each request",
                    &seconds,
                )?,
            ],
            tokens: [
                of_model("input_sequence_tokens", "Tokens of prompts", &tokens)?,
                of_model("output_sequence_tokens", "Tokens of answers", &tokens)?,
            ],
            hit_rate: of_model(
                "kv_hit_rate",
                "Share of a prompt that its worker has cached, by the index",
                &shares,
            )?,
            admission_received: metrics.counter_vec(
                "dynamo_frontend_router_admission_received_total",
                "Requests that came to a router with a queue",
                &QUEUE_LABELS,
            )?,
            admission_rejected: metrics.counter_vec(
                "dynamo_frontend_router_admission_rejected_total",
                "Requests that could not wait, or waited in vain",
                &QUEUE_LABELS,
            )?,
            backpressure: metrics.counter_vec(
                "dynamo_frontend_router_queue_backpressure_total",
                "Requests that could not wait, or waited in vain, by reason",
                &["model", "worker_type", "policy_class", "reason"],
            )?,
            unknown_classes: metrics.counter_vec(
                "dynamo_kvrouter_unknown_policy_class_total",
                "Tries to route a request that names a policy class that there is not; it is of the default class then",
                &ROUTER_LABELS,
            )?,
            balanced: metrics.counter_vec(
                "dynamo_kvrouter_balanced_choices_total",
                "Requests that did not go to the cheapest worker, which was too far ahead of the others in load",
                &ROUTER_LABELS,
            )?,
            prefills: metrics.counter_vec(
                "dynamo_kvrouter_prefills_total",
                "Prompts of models that have prefill workers, by who computed them: prefill, decode (not worth the way), \
                 fallback (decode, for prefill workers did not)",
                &["model", "by"],
            )?,
            replica_events: metrics.counter_vec(
                "dynamo_kvrouter_replica_events_total",
                "Events of other routers, by outcome",
                &["outcome"],
            )?,
            remote_queries: metrics.counter_vec(
                "dynamo_kvrouter_remote_index_queries_total",
                "Questions to indexes in other processes, by what became of them",
                &["status"],
            )?,
            served_queries: metrics.counter_vec(
                "dynamo_kvrouter_served_index_queries_total",
                "Questions of other processes to the index of this one, by what became of them",
                &["status"],
            )?,
            queue_full: bounds.of("router_queue"),
            outbox_full: bounds.of("replica_outbox"),
        })
    }

    /// Counts what is asked of indexes elsewhere, by status.
    pub(crate) fn remote_queries(&self) -> IntCounterVec {
        self.remote_queries.clone()
    }

    /// Counts what others ask of this process's indexes, by status.
    pub(crate) fn served_queries(&self) -> IntCounterVec {
        self.served_queries.clone()
    }

    /// Removes the series of a model that is gone.
    pub(crate) fn forget(&self, model: &str) {
        for by in PrefilledBy::ALL {
            let _ = self.prefills.remove_label_values(&[model, by.label()]);
        }
        for worker_type in WorkerType::ALL.map(WorkerType::label) {
            let labels = [model, worker_type];
            for family in [&self.requests_started, &self.requests, &self.balanced, &self.unknown_classes] {
                let _ = family.remove_label_values(&labels);
            }
            for family in self.seconds.iter().chain(&self.tokens).chain([&self.hit_rate]) {
                let _ = family.remove_label_values(&labels);
            }
            for class in self.classes.iter() {
                for family in [&self.admission_received, &self.admission_rejected] {
                    let _ = family.remove_label_values(&[model, worker_type, class]);
                }
                for reason in QueueRejected::REASONS {
                    let _ = self.backpressure.remove_label_values(&[model, worker_type, class, reason]);
                }
            }
        }
    }

    /// A prompt of a model that has prefill workers was computed.
    pub(crate) fn prefilled(&self, model: &str, by: PrefilledBy) {
        self.prefills.with_label_values(&[model, by.label()]).inc();
    }

    /// Those of one model's router.
    pub(crate) fn of_router(&self, model: &str, worker_type: WorkerType) -> RouterMeters {
        let labels = [model, worker_type.label()];
        let of_router = |family: &HistogramVec| family.with_label_values(&[&self.router_id]);
        let [block_hashing, seq_hashing, find_matches, scheduling, total] =
            self.overhead.each_ref().map(of_router);
        let timed = |family: &HistogramVec| family.with_label_values(&labels);
        let [time_to_first_token, inter_token_latency] = self.seconds.each_ref().map(timed);
        let [input_tokens, output_tokens] = self.tokens.each_ref().map(timed);
        let of_class = |class: &str| {
            let labels = [model, worker_type.label(), class];
            ClassMeters {
                name: class.into(),
                received: self.admission_received.with_label_values(&labels),
                rejected: self.admission_rejected.with_label_values(&labels),
            }
        };
        RouterMeters {
            block_hashing,
            seq_hashing,
            find_matches,
            scheduling,
            total,
            requests_started: self.requests_started.with_label_values(&labels),
            requests: self.requests.with_label_values(&labels),
            time_to_first_token,
            inter_token_latency,
            input_tokens,
            output_tokens,
            hit_rate: timed(&self.hit_rate),
            classes: self.classes.iter().map(|class| of_class(class)).collect(),
            backpressure: self.backpressure.clone(),
            unknown_classes: self.unknown_classes.with_label_values(&labels),
            balanced: self.balanced.with_label_values(&labels),
            replica_events: self.replica_events.clone(),
            queue_full: self.queue_full.clone(),
            outbox_full: self.outbox_full.clone(),
            model: model.into(),
            worker_type,
        }
    }
}

/// What one model's router counts and times. Overheads are in milliseconds, the rest in seconds and tokens.
pub(crate) struct RouterMeters {
    pub(super) block_hashing: Histogram,
    pub(super) seq_hashing: Histogram,
    pub(super) find_matches: Histogram,
    pub(super) scheduling: Histogram,
    pub(super) total: Histogram,
    pub(super) requests_started: IntCounter,
    pub(super) requests: IntCounter,
    pub(super) time_to_first_token: Histogram,
    pub(super) inter_token_latency: Histogram,
    pub(super) input_tokens: Histogram,
    pub(super) output_tokens: Histogram,
    pub(super) hit_rate: Histogram,
    /// By id.
    classes: Vec<ClassMeters>,
    backpressure: IntCounterVec,
    pub(super) unknown_classes: IntCounter,
    pub(super) balanced: IntCounter,
    replica_events: IntCounterVec,
    pub(super) queue_full: IntCounter,
    pub(super) outbox_full: IntCounter,
    pub(super) model: Box<str>,
    worker_type: WorkerType,
}

/// What is counted of one policy class.
struct ClassMeters {
    name: Box<str>,
    received: IntCounter,
    rejected: IntCounter,
}

impl RouterMeters {
    /// A request of a class came.
    pub(super) fn received(&self, class: ClassId) {
        if let Some(class) = self.classes.get(class.index()) {
            class.received.inc();
        }
    }

    /// A request could not wait, or waited in vain.
    pub(super) fn rejected(&self, class: ClassId, reason: &str) {
        if let Some(class) = self.classes.get(class.index()) {
            class.rejected.inc();
            let labels = [&self.model, self.worker_type.label(), &class.name, reason];
            self.backpressure.with_label_values(&labels).inc();
        }
    }

    pub(super) fn replica_event(&self, outcome: ReplicaOutcome) {
        self.replica_events.with_label_values(&[outcome.label()]).inc();
    }
}
