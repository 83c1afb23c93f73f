//! How busy the engine's ranks are, as gauges.

use dynamo_engine_api::ActiveLoad;
use dynamo_runtime::metrics::{Metrics, MetricsError};
use prometheus::IntGaugeVec;

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
    worker_id: String,
}

impl LoadGauges {
    /// Makes the families and registers them.
    pub fn new(metrics: &Metrics) -> Result<Self, MetricsError> {
        let gauge =
            |name: &str, help: &str| metrics.gauge_vec(&format!("dynamo_component_{name}"), help, &LABELS);
        Ok(Self {
            active_blocks: gauge("active_blocks", "KV blocks that running requests hold")?,
            used_blocks: gauge("used_blocks", "KV blocks in use, cached ones included")?,
            total_blocks: gauge("total_blocks", "KV blocks there are")?,
            prefill_tokens: gauge("active_prefill_tokens", "Prompt tokens still to be computed")?,
            waiting: gauge("waiting_requests", "Requests that wait to be admitted")?,
            running: gauge("running_requests", "Requests that are being computed")?,
            worker_id: String::new(),
        })
    }

    /// The same families, for one worker.
    pub fn of_worker(&self, worker_id: u64) -> Self {
        Self { worker_id: format!("{worker_id:x}"), ..self.clone() }
    }

    /// Shows a rank's load.
    pub fn set(&self, load: &ActiveLoad) {
        let rank = load.dp_rank.to_string();
        let show = |family: &IntGaugeVec, value: Option<u64>| {
            if let Some(value) = value {
                family
                    .with_label_values(&[&self.worker_id, &rank])
                    .set(i64::try_from(value).unwrap_or(i64::MAX));
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
