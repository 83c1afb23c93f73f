//! A set of numbers in a few.

use serde::Serialize;

/// Count, mean, spread and quantiles of a set of numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Summary {
    /// How many.
    pub count: u64,
    /// Their mean.
    pub mean: f64,
    /// Their standard deviation.
    pub std: f64,
    /// The smallest.
    pub min: f64,
    /// A quarter is at most this.
    pub p25: f64,
    /// Half are at most this.
    pub p50: f64,
    /// Three quarters are at most this.
    pub p75: f64,
    /// 99 of 100 are at most this.
    pub p99: f64,
    /// The largest.
    pub max: f64,
}

impl Summary {
    /// Sorts the numbers on the way.
    #[must_use]
    pub fn of(values: &mut [f64]) -> Self {
        if values.is_empty() {
            return Self::default();
        }
        values.sort_by(f64::total_cmp);
        let count = values.len();
        let mean = values.iter().sum::<f64>() / count as f64;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / count as f64;
        let at = |share: f64| quantile(values, share);
        Self {
            count: count as u64,
            mean,
            std: variance.sqrt(),
            min: values[0],
            p25: at(0.25),
            p50: at(0.5),
            p75: at(0.75),
            p99: at(0.99),
            max: values[count - 1],
        }
    }
}

/// The smallest value that at least `share` (0 to 1) of the sorted values do not exceed; 0 of none.
#[must_use]
pub fn quantile(sorted: &[f64], share: f64) -> f64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.clamp(1, sorted.len().max(1)) - 1).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_values_of_the_set() {
        let mut values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        let summary = Summary::of(&mut values);
        assert_eq!(
            (summary.min, summary.p25, summary.p50, summary.p99, summary.max),
            (1.0, 25.0, 50.0, 99.0, 100.0)
        );
        assert!((summary.mean - 50.5).abs() < 1e-9 && (summary.std - 28.866).abs() < 1e-3);
        assert_eq!(Summary::of(&mut []), Summary::default());
        assert_eq!(quantile(&[], 0.5), 0.0);
    }
}
