//! A histogram as it goes into the report.

use serde::Serialize;

use hdrhistogram::Histogram;

/// Each bucket of the report ends at this many times the last one's end.
const GROWTH: f64 = 1.2;

/// Times in milliseconds.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Distribution {
    /// How many.
    pub count: u64,
    /// The shortest.
    pub min_ms: f64,
    /// The mean.
    pub mean_ms: f64,
    /// Half are at most this.
    pub p50_ms: f64,
    /// Nine of ten are at most this.
    pub p90_ms: f64,
    /// 95 of 100 are at most this.
    pub p95_ms: f64,
    /// 99 of 100 are at most this.
    pub p99_ms: f64,
    /// 999 of 1000 are at most this.
    pub p999_ms: f64,
    /// The longest.
    pub max_ms: f64,
    /// Filled buckets in order: the upper end in milliseconds, and how many are in it.
    pub buckets: Vec<(f64, u64)>,
}

impl Distribution {
    /// Of times in microseconds.
    #[must_use]
    pub fn of(histogram: &Histogram<u64>) -> Self {
        if histogram.is_empty() {
            return Self::default();
        }
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
        let mut buckets: Vec<(f64, u64)> = Vec::new();
        let mut end = 1.0;
        for value in histogram.iter_recorded() {
            let micros = value.value_iterated_to() as f64;
            if micros > end || buckets.is_empty() {
                while end < micros {
                    end *= GROWTH;
                }
                buckets.push(((end / 1e3 * 1e4).round() / 1e4, 0));
            }
            if let Some(last) = buckets.last_mut() {
                last.1 += value.count_since_last_iteration();
            }
        }
        Self {
            count: histogram.len(),
            min_ms: histogram.min() as f64 / 1e3,
            mean_ms: histogram.mean() / 1e3,
            p50_ms: at(0.5),
            p90_ms: at(0.9),
            p95_ms: at(0.95),
            p99_ms: at(0.99),
            p999_ms: at(0.999),
            max_ms: histogram.max() as f64 / 1e3,
            buckets,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_and_buckets_agree_with_what_was_recorded() {
        let mut histogram = Histogram::<u64>::new_with_bounds(1, 1_000_000_000, 3).unwrap();
        histogram.record_n(0, 5).unwrap();
        for millis in 1..=100u64 {
            histogram.record(millis * 1000).unwrap();
        }
        let distribution = Distribution::of(&histogram);
        assert_eq!(distribution.count, 105);
        assert_eq!(distribution.min_ms, 0.0);
        assert!((distribution.p99_ms - 99.0).abs() < 0.2, "{}", distribution.p99_ms);
        assert_eq!(distribution.buckets.iter().map(|b| b.1).sum::<u64>(), 105);
        assert_eq!(distribution.buckets[0].1, 5);
        assert!(distribution.buckets.windows(2).all(|w| w[0].0 < w[1].0));
        assert!(distribution.buckets.last().unwrap().0 >= 100.0);
    }

    #[test]
    fn nothing_recorded_is_all_zero() {
        let histogram = Histogram::<u64>::new_with_bounds(1, 1_000_000, 3).unwrap();
        assert_eq!(Distribution::of(&histogram).count, 0);
    }
}
