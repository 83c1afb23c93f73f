//! When requests of an open loop are due.

use std::time::Duration;

use crate::{
    rng::{SplitMix, derive},
    workload::Workload,
};

const ARRIVALS: u64 = 4;

/// The times at which requests that follow no other are due, after the start.
pub(crate) enum Arrivals<'a> {
    /// At random, so many a second on average.
    Poisson { rng: SplitMix, rate: f64, at: f64 },
    /// As recorded.
    Schedule { workload: &'a Workload, next: u64 },
}

impl<'a> Arrivals<'a> {
    pub(crate) fn poisson(seed: u64, rate: f64) -> Self {
        Self::Poisson { rng: SplitMix::new(derive(seed, ARRIVALS, 0)), rate, at: 0.0 }
    }

    pub(crate) fn schedule(workload: &'a Workload) -> Self {
        Self::Schedule { workload, next: 0 }
    }
}

impl Iterator for Arrivals<'_> {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        match self {
            Self::Poisson { rng, rate, at } => {
                *at += rng.exponential() / *rate;
                Some(Duration::from_secs_f64(*at))
            }
            Self::Schedule { workload, next } => {
                if workload.starts().is_some_and(|starts| *next >= starts) {
                    return None;
                }
                *next += 1;
                workload.due(workload.start(*next - 1))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_poisson_process_keeps_its_rate_and_its_spread() {
        let times: Vec<f64> = Arrivals::poisson(1, 200.0).take(20_000).map(|d| d.as_secs_f64()).collect();
        assert!((times[19_999] - 100.0).abs() < 3.0, "{}", times[19_999]);
        let gaps: Vec<f64> = times.windows(2).map(|w| w[1] - w[0]).collect();
        let short = gaps.iter().filter(|g| **g < 0.005).count() as f64 / gaps.len() as f64;
        // One minus 1/e of the gaps are shorter than the mean.
        assert!((short - 0.632).abs() < 0.02, "{short}");
    }

    #[test]
    fn equal_seeds_are_equal_times() {
        let times = |seed| Arrivals::poisson(seed, 5.0).take(5).collect::<Vec<_>>();
        assert_eq!(times(4), times(4));
        assert_ne!(times(4), times(5));
    }
}
