use super::{IntCounter, IntCounterVec, Metrics, MetricsError};

/// Counts, by name, how often a bound was hit: `dynamo_bound_hits_total{bound}`.
#[derive(Clone)]
pub struct BoundHits(IntCounterVec);

impl BoundHits {
    /// The family of `metrics`.
    pub fn new(metrics: &Metrics) -> Result<Self, MetricsError> {
        let help = "Times a bounded queue, map or buffer was full, by the bound's name";
        metrics.counter_vec("dynamo_bound_hits_total", help, &["bound"]).map(Self)
    }

    /// The counter of one bound, to be kept by its owner. It shows at 0 from now on.
    pub fn of(&self, bound: &'static str) -> IntCounter {
        self.0.with_label_values(&[bound])
    }
}
