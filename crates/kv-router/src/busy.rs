//! When a rank is too busy for another request.

use crate::{ConfigError, SlotLoad, config::at_least};

/// What a rank can hold at once, as far as its worker says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RankLimits {
    /// KV blocks.
    pub total_kv_blocks: Option<u64>,
    /// Tokens of one step.
    pub max_num_batched_tokens: Option<u64>,
    /// Requests that run at once; more wait inside of the worker.
    pub max_num_seqs: Option<u64>,
}

/// A rank over one of these takes no more requests; none set: it always does.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct BusyThresholds {
    /// Share of the rank's KV blocks that running requests use, 0 to 1.
    pub active_decode_blocks: Option<f64>,
    /// Prompt tokens that are still to be computed.
    pub active_prefill_tokens: Option<u64>,
    /// The same, in steps of the rank's largest batch.
    pub active_prefill_tokens_frac: Option<f64>,
}

impl BusyThresholds {
    /// No rank is ever too busy.
    pub const NONE: Self =
        Self { active_decode_blocks: None, active_prefill_tokens: None, active_prefill_tokens_frac: None };

    /// Says which threshold cannot be used, and why.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if let Some(value) = self.active_decode_blocks
            && !(0.0..=1.0).contains(&value)
        {
            return Err(ConfigError::NoShare { name: "active_decode_blocks_threshold", value });
        }
        let frac = self.active_prefill_tokens_frac.unwrap_or(0.0);
        at_least("active_prefill_tokens_threshold_frac", frac, 0.0)
    }

    /// Whether any threshold is set.
    pub fn is_set(&self) -> bool {
        *self != Self::NONE
    }

    /// These thresholds, with those that are set in `other` instead.
    pub fn merged(self, other: Self) -> Self {
        Self {
            active_decode_blocks: other.active_decode_blocks.or(self.active_decode_blocks),
            active_prefill_tokens: other.active_prefill_tokens.or(self.active_prefill_tokens),
            active_prefill_tokens_frac: other.active_prefill_tokens_frac.or(self.active_prefill_tokens_frac),
        }
    }

    /// Whether a load is over any of them. A share of what the worker does not say is never reached.
    pub fn is_busy(&self, load: &SlotLoad, limits: &RankLimits) -> bool {
        let over = |load: f64, threshold: Option<f64>, unit: Option<u64>| {
            threshold.zip(unit).is_some_and(|(threshold, unit)| load > threshold * unit as f64)
        };
        let prefill = load.prefill_tokens as f64;
        over(load.decode_blocks, self.active_decode_blocks, limits.total_kv_blocks)
            || self.active_prefill_tokens.is_some_and(|threshold| load.prefill_tokens > threshold)
            || over(prefill, self.active_prefill_tokens_frac, limits.max_num_batched_tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_threshold_that_is_passed_makes_busy() {
        let limits =
            RankLimits { total_kv_blocks: Some(100), max_num_batched_tokens: Some(1000), max_num_seqs: None };
        let load = |prefill_tokens, decode_blocks| SlotLoad { prefill_tokens, decode_blocks, requests: 1 };
        let blocks = BusyThresholds { active_decode_blocks: Some(0.5), ..BusyThresholds::NONE };
        assert!(!blocks.is_busy(&load(0, 50.0), &limits) && blocks.is_busy(&load(0, 50.5), &limits));
        let tokens = BusyThresholds { active_prefill_tokens: Some(700), ..blocks };
        assert!(tokens.is_busy(&load(701, 0.0), &limits) && !tokens.is_busy(&load(700, 50.0), &limits));
        let steps = BusyThresholds { active_prefill_tokens_frac: Some(1.5), ..BusyThresholds::NONE };
        assert!(steps.is_busy(&load(1501, 0.0), &limits) && !steps.is_busy(&load(1500, 99.0), &limits));
        assert!(!steps.is_busy(&load(1501, 0.0), &RankLimits::default()), "nobody knows the step");
        assert!(!BusyThresholds::NONE.is_busy(&load(u64::MAX, 1e9), &limits));
    }

    #[test]
    fn merging_keeps_what_is_not_given() {
        let old = BusyThresholds {
            active_decode_blocks: Some(0.5),
            active_prefill_tokens: Some(7),
            ..BusyThresholds::NONE
        };
        let new = BusyThresholds { active_prefill_tokens: Some(0), ..BusyThresholds::NONE };
        assert_eq!(old.merged(new), BusyThresholds { active_prefill_tokens: Some(0), ..old });
    }
}
