//! How long a step would take on a real engine.

use std::time::Duration;

/// A step is not simulated to take longer, so that times can be added without overflow.
const LONGEST_STEP: Duration = Duration::from_secs(24 * 3600);

/// Polynomials fitted to one GPU; the constants are the reference's. Milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct TimingModel {
    speedup_ratio: f64,
    decode_speedup_ratio: f64,
}

impl TimingModel {
    /// `speedup_ratio` divides all times; 0 makes them nothing.
    pub fn new(speedup_ratio: f64) -> Self {
        Self { speedup_ratio, decode_speedup_ratio: 1.0 }
    }

    /// Divides the decoding part of a step by this as well.
    #[must_use]
    pub fn with_decode_speedup(self, decode_speedup_ratio: f64) -> Self {
        Self { decode_speedup_ratio, ..self }
    }

    /// Whether nothing takes any time.
    pub fn is_instant(&self) -> bool {
        self.speedup_ratio <= 0.0
    }

    /// Milliseconds to compute `tokens` prompt tokens in one step, all requests together.
    pub fn prefill_ms(tokens: usize) -> f64 {
        let n = tokens as f64;
        if tokens == 0 { 0.0 } else { 4.209989e-7 * n * n + 1.518344e-2 * n + 16.50142 }
    }

    /// Milliseconds to give each running request a token while `share` (0 to 1) of the KV cache is in use.
    pub fn decode_ms(share: f64) -> f64 {
        let p = share.clamp(0.0, 1.0);
        (-25.74 * p * p + 54.01 * p + 5.74).max(1.0)
    }

    /// The time of a step; `decodes` says whether any request gets a token.
    pub fn step(&self, prefill_tokens: usize, decodes: bool, share: f64) -> Duration {
        if self.is_instant() {
            return Duration::ZERO;
        }
        let decode = if decodes { Self::decode_ms(share) / self.decode_speedup_ratio } else { 0.0 };
        let ms = (Self::prefill_ms(prefill_tokens) + decode) / self.speedup_ratio;
        Duration::try_from_secs_f64(ms / 1000.0).unwrap_or(LONGEST_STEP).min(LONGEST_STEP)
    }
}
