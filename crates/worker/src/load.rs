//! How busy the engine's ranks are, as gauges.

use dynamo_engine_api::{ActiveLoad, DpRank};
use dynamo_runtime::metrics::{IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Metrics, MetricsError};

const LABELS: [&str; 2] = ["worker_id", "dp_rank"];

/// Gauges of all engines in this process.
#[derive(Clone)]
pub struct LoadGauges {
    active_blocks: IntGaugeVec,
    used_blocks: IntGaugeVec,
    total_blocks: IntGaugeVec,
    prefill_tokens: IntGaugeVec,
    waiting: IntGaugeVec,
    running: IntGaugeVec,
    inconsistent: IntCounterVec,
    lower_tiers: IntCounterVec,
    doubled: IntCounterVec,
}

/// One rank's series, looked up once: a load comes with every step that changed it.
pub struct RankGauges {
    active_blocks: IntGauge,
    used_blocks: IntGauge,
    total_blocks: IntGauge,
    prefill_tokens: IntGauge,
    waiting: IntGauge,
    running: IntGauge,
    inconsistent: IntCounter,
    lower_tiers: IntCounter,
    doubled: IntCounter,
}

impl LoadGauges {
    /// Makes the families and registers them.
    pub fn new(metrics: &Metrics) -> Result<Self, MetricsError> {
        let gauge =
            |name: &str, help: &str| metrics.gauge_vec(&format!("dynamo_component_{name}"), help, &LABELS);
        let publisher = |name: &str, help: &str| {
            metrics.counter_vec(&format!("dynamo_component_kv_publisher_{name}"), help, &LABELS)
        };
        Ok(Self {
            active_blocks: gauge("active_blocks", "KV blocks that running requests hold")?,
            used_blocks: gauge("used_blocks", "KV blocks in use, cached ones included")?,
            total_blocks: gauge("total_blocks", "KV blocks there are")?,
            prefill_tokens: gauge("active_prefill_tokens", "Prompt tokens still to be computed")?,
            waiting: gauge("waiting_requests", "Requests that wait to be admitted")?,
            running: gauge("running_requests", "Requests that are being computed")?,
            inconsistent: publisher(
                "inconsistent_events_total",
                "KV events of the engine that do not fit those before them",
            )?,
            lower_tiers: publisher(
                "lower_tier_events_total",
                "KV events of the engine on lower tiers than the device",
            )?,
            doubled: publisher(
                "doubled_blocks_total",
                "Removals not published, because the engine has another copy of the block",
            )?,
        })
    }

    /// The series of one rank of one worker.
    pub fn of_rank(&self, worker_id: u64, dp_rank: DpRank) -> RankGauges {
        let (worker, rank) = (format!("{worker_id:x}"), dp_rank.to_string());
        let of = |family: &IntGaugeVec| family.with_label_values(&[&worker, &rank]);
        let counter = |family: &IntCounterVec| family.with_label_values(&[&worker, &rank]);
        RankGauges {
            active_blocks: of(&self.active_blocks),
            used_blocks: of(&self.used_blocks),
            total_blocks: of(&self.total_blocks),
            prefill_tokens: of(&self.prefill_tokens),
            waiting: of(&self.waiting),
            running: of(&self.running),
            inconsistent: counter(&self.inconsistent),
            lower_tiers: counter(&self.lower_tiers),
            doubled: counter(&self.doubled),
        }
    }
}

impl RankGauges {
    /// What the engine's events were: so many did not fit those before them, were of lower tiers than the device, and
    /// removed blocks of which a copy is left.
    pub fn published(&self, inconsistent: u64, lower_tiers: u64, doubled: u64) {
        self.inconsistent.inc_by(inconsistent);
        self.lower_tiers.inc_by(lower_tiers);
        self.doubled.inc_by(doubled);
    }

    /// Shows the rank's load; what the engine does not know stays as it was.
    pub fn set(&self, load: &ActiveLoad) {
        let show = |gauge: &IntGauge, value: Option<u64>| {
            if let Some(value) = value {
                gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
            }
        };
        show(&self.active_blocks, load.active_decode_blocks);
        show(&self.used_blocks, load.kv_used_blocks);
        show(&self.total_blocks, load.kv_total_blocks);
        show(&self.prefill_tokens, load.active_prefill_tokens);
        show(&self.waiting, Some(load.waiting_requests));
        show(&self.running, Some(load.running_requests));
    }
}
