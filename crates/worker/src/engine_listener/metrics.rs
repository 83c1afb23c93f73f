use dynamo_kv_router::{FilterReason, IntakeCounters, ReplayFailure};
use dynamo_runtime::metrics::{
    IntCounter, IntCounterVec, IntGauge, IntGaugeVec, LABEL_WORKER, Metrics, MetricsError,
};

const REASON: &str = "reason";

/// The families `dynamo_component_kv_publisher_zmq_*`, by worker.
#[derive(Clone)]
pub struct EngineIntakeMetrics {
    batches: IntCounterVec,
    skipped: IntCounterVec,
    replayed: IntCounterVec,
    lost: IntCounterVec,
    restarts: IntCounterVec,
    replay_failures: IntCounterVec,
    silent: IntGaugeVec,
    received: IntCounterVec,
    accepted: IntCounterVec,
    filtered: IntCounterVec,
}

/// The series of one worker.
#[derive(Clone)]
pub struct SourceMetrics {
    /// Batches handed over, replayed ones included.
    pub batches: IntCounter,
    /// Messages that do not have three frames.
    pub bad_frames: IntCounter,
    /// Messages whose number is not eight bytes.
    pub bad_number: IntCounter,
    /// Batches whose payload cannot be read.
    pub bad_payload: IntCounter,
    /// Batches of a rank that the worker does not have.
    pub unknown_rank: IntCounter,
    /// Batches that a replay brought.
    pub replayed: IntCounter,
    /// Batches that did not come and will not.
    pub lost: IntCounter,
    /// Times that the engine began to count anew.
    pub restarts: IntCounter,
    /// 1 if nothing has come since the start, for a minute at least.
    pub silent: IntGauge,
    replay_failures: [IntCounter; ReplayFailure::ALL.len()],
    received: IntCounter,
    accepted: IntCounter,
    filtered: [IntCounter; FilterReason::ALL.len()],
}

impl EngineIntakeMetrics {
    /// Makes the families, or takes those that are there.
    pub fn new(metrics: &Metrics) -> Result<Self, MetricsError> {
        let name = |name: &str| format!("dynamo_component_kv_publisher_zmq_{name}");
        let plain = |of: &str, help: &str| metrics.counter_vec(&name(of), help, &[LABEL_WORKER]);
        let by_reason = |of: &str, help: &str| metrics.counter_vec(&name(of), help, &[LABEL_WORKER, REASON]);
        Ok(Self {
            batches: plain("batches_total", "Batches of KV events received from the engine")?,
            skipped: by_reason("batches_skipped_total", "Messages of the engine that are no batch")?,
            replayed: plain("batches_replayed_total", "Batches that the engine gave out again")?,
            lost: plain("batches_lost_total", "Batches that did not come and will not")?,
            restarts: plain("engine_restarts_total", "Times that the engine began to count anew")?,
            replay_failures: by_reason("replay_failures_total", "Replays that did not bring all")?,
            silent: metrics.gauge_vec(
                &name("silent"),
                "1 if the engine has sent nothing since the start",
                &[LABEL_WORKER],
            )?,
            received: plain("events_received_total", "KV events received from the engine")?,
            accepted: plain("events_accepted_total", "KV events of the engine that were passed on")?,
            filtered: by_reason("events_filtered_total", "KV events of the engine that were left out")?,
        })
    }

    /// The series of one worker.
    pub fn of_worker(&self, worker_id: u64) -> SourceMetrics {
        let worker = format!("{worker_id:x}");
        let plain = |family: &IntCounterVec| family.with_label_values(&[&worker]);
        let by = |family: &IntCounterVec, reason: &str| family.with_label_values(&[&worker, reason]);
        SourceMetrics {
            batches: plain(&self.batches),
            bad_frames: by(&self.skipped, "frames"),
            bad_number: by(&self.skipped, "sequence"),
            bad_payload: by(&self.skipped, "payload"),
            unknown_rank: by(&self.skipped, "unknown_rank"),
            replayed: plain(&self.replayed),
            lost: plain(&self.lost),
            restarts: plain(&self.restarts),
            silent: self.silent.with_label_values(&[&worker]),
            replay_failures: ReplayFailure::ALL.map(|failure| by(&self.replay_failures, failure.label())),
            received: plain(&self.received),
            accepted: plain(&self.accepted),
            filtered: FilterReason::ALL.map(|reason| by(&self.filtered, reason.label())),
        }
    }
}

impl SourceMetrics {
    pub(super) fn replay_failed(&self, failure: ReplayFailure) {
        self.replay_failures[failure as usize].inc();
    }

    /// Adds what a decoder counted between two looks at it.
    pub fn add(&self, before: &IntakeCounters, after: &IntakeCounters) {
        self.received.inc_by(after.received - before.received);
        self.accepted.inc_by(after.accepted - before.accepted);
        for (counter, reason) in self.filtered.iter().zip(FilterReason::ALL) {
            counter.inc_by(after.filtered(reason) - before.filtered(reason));
        }
    }
}
