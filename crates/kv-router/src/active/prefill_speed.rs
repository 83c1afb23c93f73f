//! How fast a rank computes prompts, by what it did so far.

use std::time::Duration;

/// Before so many samples there is no estimate. They are sorted by pace, and the middle half is what it begins with: the
/// first prompts of an engine that still compiles its kernels are no measure.
const WARM_UP: usize = 8;
/// Of the samples so far, this share is forgotten with each new one.
const FORGOTTEN: f64 = 1.0 / 16.0;
/// A sample counts as at most so many times slower or faster than expected, and for at most so many times the tokens of the
/// usual one: a stall, or one prompt of extraordinary length, moves the estimate but does not make it.
const OUTLIER: f64 = 4.0;
/// Prompts of one step of an engine are complete within this share of the time that the step took, and within so many
/// seconds; the first of them has all of its time, and the others none, so together they are one sample.
const SAME_STEP: (f64, f64) = (1.0 / 8.0, 0.02);

#[derive(Clone, Copy, Default)]
struct Sample {
    tokens: f64,
    seconds: f64,
}

impl Sample {
    fn pace(&self) -> f64 {
        self.seconds / self.tokens
    }
}

/// An exponentially weighted estimate. It is the ratio of two sums, not a mean of ratios: short prompts take longer for
/// their tokens than long ones, and are to weigh by their tokens.
#[derive(Default)]
pub(super) struct PrefillSpeed {
    /// The last one, with those of the same step; counts when the next begins.
    open: Option<Sample>,
    /// How long it may become for that.
    open_until: f64,
    /// Empty once there is an estimate.
    warm_up: Vec<Sample>,
    sum: Sample,
    /// Of the samples in `sum`.
    weight: f64,
}

impl PrefillSpeed {
    /// Tokens per second; 0 before enough is known.
    pub(super) fn tokens_per_second(&self) -> f64 {
        if self.weight > 0.0 { self.sum.tokens / self.sum.seconds } else { 0.0 }
    }

    /// So many tokens were computed since the sample before, or since there was something to compute.
    pub(super) fn observe(&mut self, tokens: u64, took: Duration) {
        let sample = Sample { tokens: tokens as f64, seconds: took.as_secs_f64() };
        if let Some(open) = &mut self.open
            && open.seconds + sample.seconds <= self.open_until
        {
            open.tokens += sample.tokens;
            open.seconds += sample.seconds;
            return;
        }
        let (share, most) = SAME_STEP;
        self.open_until = sample.seconds + (share * sample.seconds).min(most);
        if let Some(complete) = self.open.replace(sample) {
            self.count(complete);
        }
    }

    fn count(&mut self, sample: Sample) {
        // A clock that stood still says nothing.
        if sample.seconds <= 0.0 || sample.tokens <= 0.0 {
            return;
        }
        if self.weight == 0.0 {
            self.warm_up(sample);
            return;
        }
        let tokens = sample.tokens.min(OUTLIER * self.sum.tokens / self.weight);
        let expected = tokens * self.sum.pace();
        let seconds = (tokens * sample.pace()).clamp(expected / OUTLIER, expected * OUTLIER);
        self.sum.tokens += tokens - FORGOTTEN * self.sum.tokens;
        self.sum.seconds += seconds - FORGOTTEN * self.sum.seconds;
        self.weight += 1.0 - FORGOTTEN * self.weight;
    }

    fn warm_up(&mut self, sample: Sample) {
        self.warm_up.push(sample);
        if self.warm_up.len() < WARM_UP {
            return;
        }
        let mut samples = std::mem::take(&mut self.warm_up);
        samples.sort_unstable_by(|a, b| a.pace().total_cmp(&b.pace()));
        for sample in &samples[WARM_UP / 4..WARM_UP - WARM_UP / 4] {
            self.sum.tokens += sample.tokens;
            self.sum.seconds += sample.seconds;
            self.weight += 1.0;
        }
    }

    /// Bytes on the heap.
    pub(super) fn bytes(&self) -> usize {
        self.warm_up.capacity() * size_of::<Sample>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOKENS: u64 = 1000;
    const TOOK: Duration = Duration::from_millis(100);

    fn after(samples: usize) -> PrefillSpeed {
        let mut speed = PrefillSpeed::default();
        // The last one is still open.
        (0..=samples).for_each(|_| speed.observe(TOKENS, TOOK));
        speed
    }

    fn near(speed: &PrefillSpeed, expected: f64, share: f64) -> bool {
        (speed.tokens_per_second() / expected - 1.0).abs() < share
    }

    #[test]
    fn nothing_is_known_before_enough_samples() {
        assert_eq!(after(WARM_UP - 1).tokens_per_second(), 0.0);
        let speed = after(WARM_UP);
        assert!(near(&speed, 10_000.0, 1e-9), "{}", speed.tokens_per_second());
        assert_eq!(speed.bytes(), 0);
    }

    #[test]
    fn slow_first_prompts_do_not_count() {
        let mut speed = PrefillSpeed::default();
        speed.observe(TOKENS, Duration::from_secs(30));
        speed.observe(TOKENS, Duration::from_secs(20));
        (0..WARM_UP - 1).for_each(|_| speed.observe(TOKENS, TOOK));
        assert!(near(&speed, 10_000.0, 1e-9), "{}", speed.tokens_per_second());
    }

    #[test]
    fn prompts_of_one_step_are_one_sample() {
        let mut speed = PrefillSpeed::default();
        for _ in 0..=3 * WARM_UP {
            speed.observe(TOKENS, TOOK);
            (0..9).for_each(|_| speed.observe(TOKENS, Duration::from_micros(500)));
        }
        assert!(near(&speed, 100_000.0, 0.1), "{}", speed.tokens_per_second());
    }

    #[test]
    fn a_stall_moves_the_estimate_by_little_and_is_soon_forgotten() {
        let mut speed = after(100);
        speed.observe(TOKENS, Duration::from_secs(60));
        speed.observe(TOKENS, TOOK);
        assert!(near(&speed, 10_000.0, 0.2), "{}", speed.tokens_per_second());
        (0..40).for_each(|_| speed.observe(TOKENS, TOOK));
        assert!(near(&speed, 10_000.0, 0.02), "{}", speed.tokens_per_second());
    }

    #[test]
    fn one_prompt_of_any_length_does_not_make_the_estimate() {
        let mut speed = after(100);
        speed.observe(1_000_000, Duration::from_secs(1000));
        let mut least = f64::INFINITY;
        for _ in 0..64 {
            speed.observe(TOKENS, TOOK);
            least = least.min(speed.tokens_per_second());
        }
        assert!(least > 4500.0, "{least}");
        assert!(near(&speed, 10_000.0, 0.1), "{}", speed.tokens_per_second());
    }

    #[test]
    fn a_lasting_change_is_followed() {
        let mut speed = after(100);
        (0..120).for_each(|_| speed.observe(TOKENS, TOOK * 10));
        assert!(near(&speed, 1000.0, 0.1), "{}", speed.tokens_per_second());
        (0..120).for_each(|_| speed.observe(TOKENS, TOOK));
        assert!(near(&speed, 10_000.0, 0.1), "{}", speed.tokens_per_second());
    }

    #[test]
    fn short_prompts_weigh_by_their_tokens() {
        let mut speed = PrefillSpeed::default();
        for _ in 0..200 {
            speed.observe(10, Duration::from_millis(5));
            speed.observe(10_000, Duration::from_secs(1));
        }
        assert!(near(&speed, 10_000.0, 0.1), "{}", speed.tokens_per_second());
    }

    #[test]
    fn a_clock_that_stands_still_gives_no_estimate() {
        let mut speed = PrefillSpeed::default();
        (0..100).for_each(|_| speed.observe(TOKENS, Duration::ZERO));
        assert_eq!(speed.tokens_per_second(), 0.0);
    }
}
