//! Load that comes and goes: the request rate and the mix of two kinds of requests follow sines.

use std::f64::consts::{FRAC_PI_2, TAU};

use serde::Serialize;

use crate::{
    mooncake::TraceRequest,
    rng::{SplitMix, derive},
};

const COUNTS: u64 = 21;
const KINDS: u64 = 22;
const BLOCKS: u64 = 23;
/// A Poisson count is drawn in parts of at most this mean, where `exp` is still exact enough.
const POISSON_PART: f64 = 500.0;

/// A wave between two values that starts at the lower one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Wave {
    /// The lowest value.
    pub min: f64,
    /// The highest value.
    pub max: f64,
    /// Seconds from one lowest value to the next.
    pub period: f64,
}

impl Wave {
    /// The value at a time in seconds: `(min + max)/2 + (max − min)/2 · sin(2πt/period − π/2)`.
    #[must_use]
    pub fn at(&self, seconds: f64) -> f64 {
        (self.min + self.max) / 2.0
            + (self.max - self.min) / 2.0 * (TAU * seconds / self.period - FRAC_PI_2).sin()
    }
}

/// A load in waves.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SineLoad {
    /// Tokens of a block.
    pub block_size: u32,
    /// Different blocks to draw from.
    pub total_blocks: u64,
    /// Seconds of load.
    pub duration: f64,
    /// Seconds over which the rate is held; the requests of an interval are spread evenly.
    pub interval: f64,
    /// Requests a second.
    pub rate: Wave,
    /// Prompt and answer of the first kind, in tokens.
    pub first: (u32, u32),
    /// Prompt and answer of the second kind, in tokens.
    pub second: (u32, u32),
    /// The share of the first kind.
    pub ratio: Wave,
    /// Equal seeds give equal loads.
    pub seed: u64,
}

impl SineLoad {
    /// The requests in order of time.
    pub fn requests(&self) -> impl Iterator<Item = TraceRequest> + '_ {
        let mut counts = SplitMix::new(derive(self.seed, COUNTS, 0));
        let mut kinds = SplitMix::new(derive(self.seed, KINDS, 0));
        let mut blocks = SplitMix::new(derive(self.seed, BLOCKS, 0));
        let intervals = (self.duration / self.interval).ceil() as u64;
        let starts = (0..intervals).map(|interval| interval as f64 * self.interval);
        starts
            .flat_map(move |start| {
                let count = poisson(&mut counts, self.rate.at(start) * self.interval);
                (0..count).map(move |place| start + self.interval * place as f64 / count as f64)
            })
            .map(move |time| {
                let first = kinds.unit() < self.ratio.at(time);
                let (input_length, output_length) = if first { self.first } else { self.second };
                let count = input_length.div_ceil(self.block_size);
                TraceRequest {
                    timestamp: Some((time * 1e3).round()),
                    input_length,
                    output_length,
                    hash_ids: (0..count).map(|_| blocks.below(self.total_blocks)).collect(),
                    ..TraceRequest::default()
                }
            })
    }
}

/// How many events happen where `mean` do on average (Knuth's method, in parts).
fn poisson(rng: &mut SplitMix, mean: f64) -> u64 {
    let (mut left, mut count) = (mean, 0);
    while left > 0.0 {
        let limit = (-left.min(POISSON_PART)).exp();
        let mut product = rng.unit();
        while product > limit {
            count += 1;
            product *= rng.unit();
        }
        left -= POISSON_PART;
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load() -> SineLoad {
        SineLoad {
            block_size: 512,
            total_blocks: 10_000,
            duration: 2000.0,
            interval: 1.0,
            rate: Wave { min: 5.0, max: 45.0, period: 100.0 },
            first: (100, 2000),
            second: (5000, 100),
            ratio: Wave { min: 0.2, max: 0.8, period: 100.0 },
            seed: 3,
        }
    }

    #[test]
    fn a_wave_starts_at_its_lowest_and_peaks_after_half_a_period() {
        let wave = load().rate;
        assert!((wave.at(0.0) - 5.0).abs() < 1e-9 && (wave.at(50.0) - 45.0).abs() < 1e-9);
        assert!((wave.at(25.0) - 25.0).abs() < 1e-9);
    }

    #[test]
    fn rate_and_mix_follow_the_waves() {
        let requests: Vec<TraceRequest> = load().requests().collect();
        let near = |phase: f64| {
            let here = requests.iter().filter(|request| {
                let seconds = request.timestamp.unwrap() / 1e3;
                (seconds.rem_euclid(100.0) - phase).abs() < 5.0
            });
            let (all, first) = here.fold((0, 0), |(all, first), request| {
                (all + 1, first + usize::from(request.input_length == 100))
            });
            (f64::from(all) / 200.0, first as f64 / f64::from(all))
        };
        let (peak, peak_mix) = near(50.0);
        assert!((peak - 45.0).abs() < 2.0 && (peak_mix - 0.8).abs() < 0.03, "{peak} {peak_mix}");
        let (middle, middle_mix) = near(25.0);
        assert!((middle - 25.0).abs() < 2.0 && (middle_mix - 0.5).abs() < 0.04, "{middle} {middle_mix}");
        assert!((requests.len() as f64 / 2000.0 - 25.0).abs() < 0.5, "{}", requests.len());
    }

    #[test]
    fn requests_are_well_formed_and_depend_on_the_seed_alone() {
        let requests: Vec<TraceRequest> = load().requests().take(500).collect();
        assert!(requests.windows(2).all(|pair| pair[0].timestamp <= pair[1].timestamp));
        assert!(requests.iter().all(|r| r.hash_ids.len() as u32 == r.input_length.div_ceil(512)));
        assert_eq!(requests, load().requests().take(500).collect::<Vec<_>>());
        assert_ne!(requests, SineLoad { seed: 4, ..load() }.requests().take(500).collect::<Vec<_>>());
    }

    #[test]
    fn large_counts_are_drawn_right() {
        let mut rng = SplitMix::new(1);
        let mean = (0..2000).map(|_| poisson(&mut rng, 1800.0)).sum::<u64>() as f64 / 2000.0;
        assert!((mean - 1800.0).abs() < 5.0, "{mean}");
        assert_eq!(poisson(&mut rng, 0.0), 0);
    }
}
