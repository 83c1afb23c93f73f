//! A bound on how far a cache may draw requests to one rank while others have little to do.

use super::{Candidate, Scored, SelectConfig};

/// The bound. With the *wait* of a candidate being the prompt tokens that are to be computed there before the request's
/// first token (what is outstanding, and its own that are not cached), a candidate is passed over
///
/// - if more than one full step of the worker is outstanding there, and its wait is over `factor` times the least wait
///   of all; or
/// - if it runs more than `factor` times the requests of the one that runs the fewest, and 8 more.
///
/// So no request waits for a cache much longer than it would elsewhere, whatever the weights and however skewed the
/// prefixes: while some rank is idle, at most `factor` times the request's own prompt, or one step, is outstanding at
/// the rank that gets it. And while some rank has nothing to do, no other runs more than eight requests. The candidate with the least wait
/// always stays; where the second rule would leave nobody, it does not apply.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Balance {
    /// At least 1.
    pub factor: f64,
}

/// Decoding some more requests together takes about as long as decoding one.
const FREE_REQUESTS: f64 = 8.0;

/// The step of a worker that does not say, in tokens: the usual one.
const USUAL_STEP: u64 = 8192;

impl Balance {
    /// Takes out those that are too far ahead.
    pub(super) fn retain(
        &self,
        scored: &mut Vec<Scored>,
        isl_tokens: usize,
        candidates: &[Candidate],
        config: &SelectConfig,
    ) {
        if scored.len() < 2 {
            return;
        }
        let requests = |scored: &Scored| f64::from(scored.load.requests);
        let fewest = scored.iter().map(requests).fold(f64::INFINITY, f64::min);
        if config.track_prefill_tokens {
            let wait = |scored: &Scored| {
                let cached = scored.overlap.device as usize * config.block_size.get();
                (scored.load.prefill_tokens + isl_tokens.saturating_sub(cached) as u64) as f64
            };
            let bound = self.factor * scored.iter().map(wait).fold(f64::INFINITY, f64::min);
            scored.retain(|scored| {
                let limits = &candidates[scored.place as usize].profile.limits;
                let step = limits.max_num_batched_tokens.unwrap_or(USUAL_STEP);
                scored.load.prefill_tokens <= step || wait(scored) <= bound
            });
        }
        let within = |scored: &Scored| requests(scored) <= self.factor * fewest + FREE_REQUESTS;
        if scored.iter().any(within) {
            scored.retain(within);
        }
    }
}
