//! Whether the decode worker computes a prompt itself, where there are prefill workers.

use std::str::FromStr;

use crate::{ConfigError, config::at_least};

/// What makes a remote prefill not worth its way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DisaggPolicy {
    /// A prompt of which little is new.
    #[default]
    IslBounding,
    /// Prefill workers that are busy.
    PrefillLoad,
    /// Either of the two.
    Either,
}

impl FromStr for DisaggPolicy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.to_ascii_lowercase().replace('-', "_").as_str() {
            "isl_bounding" => Ok(Self::IslBounding),
            "prefill_load" => Ok(Self::PrefillLoad),
            "either" => Ok(Self::Either),
            _ => Err("use isl_bounding, prefill_load or either".to_owned()),
        }
    }
}

/// The settings of conditional disaggregation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ConditionalDisagg {
    /// What counts.
    pub policy: DisaggPolicy,
    /// Fewer new tokens than this are little.
    pub max_local_tokens: usize,
    /// And a smaller share of the prompt than this, 0 to 1.
    pub max_local_ratio: f64,
}

impl ConditionalDisagg {
    /// The reference's defaults.
    pub const REFERENCE: Self =
        Self { policy: DisaggPolicy::IslBounding, max_local_tokens: 2048, max_local_ratio: 0.7 };

    /// Says which setting cannot be used, and why. `sees_load` is whether a busy or queue threshold is set for prefill
    /// workers, without which none is ever busy.
    pub fn validate(&self, sees_load: bool) -> Result<(), ConfigError> {
        at_least("conditional_disagg_ratio", self.max_local_ratio, 0.0)?;
        if self.max_local_ratio > 1.0 {
            return Err(ConfigError::NoShare {
                name: "conditional_disagg_ratio",
                value: self.max_local_ratio,
            });
        }
        if self.policy != DisaggPolicy::IslBounding && !sees_load {
            return Err(ConfigError::DisaggWithoutLoad);
        }
        Ok(())
    }

    /// Where a prompt of `isl_tokens` is computed, of which the decode worker has `cached_tokens`. `prefill_busy` is
    /// whether all prefill workers are over their threshold.
    pub fn place(&self, isl_tokens: usize, cached_tokens: usize, prefill_busy: bool) -> PrefillPlace {
        let new_tokens = isl_tokens.saturating_sub(cached_tokens);
        let is_short = new_tokens < self.max_local_tokens
            && (new_tokens as f64) < self.max_local_ratio * isl_tokens as f64;
        let local = match self.policy {
            DisaggPolicy::IslBounding => is_short,
            DisaggPolicy::PrefillLoad => prefill_busy,
            DisaggPolicy::Either => is_short || prefill_busy,
        };
        if local { PrefillPlace::Decode } else { PrefillPlace::Prefill }
    }
}

/// Who computes a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PrefillPlace {
    /// The worker that will also generate.
    Decode,
    /// A prefill worker, which then hands it over.
    Prefill,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_that_is_new_stays_local_and_load_does_where_it_counts() {
        use PrefillPlace::{Decode, Prefill};
        let reference = ConditionalDisagg::REFERENCE;
        for (isl, cached, busy, expected) in [
            (10_000, 8_000, false, Decode),
            (10_000, 7_952, false, Prefill),
            (1_000, 300, false, Prefill),
            (1_000, 301, false, Decode),
            (0, 0, false, Prefill),
            (10_000, 0, true, Prefill),
        ] {
            assert_eq!(reference.place(isl, cached, busy), expected, "{isl} {cached}");
        }
        let load = ConditionalDisagg { policy: DisaggPolicy::PrefillLoad, ..reference };
        assert_eq!((load.place(10_000, 9_999, false), load.place(10_000, 0, true)), (Prefill, Decode));
        let either = ConditionalDisagg { policy: "either".parse().unwrap(), ..reference };
        assert_eq!((either.place(10_000, 9_999, false), either.place(10_000, 0, true)), (Decode, Decode));
        assert_eq!(either.validate(false), Err(ConfigError::DisaggWithoutLoad));
        assert_eq!(either.validate(true), Ok(()));
        assert!(ConditionalDisagg { max_local_ratio: 2.0, ..reference }.validate(true).is_err());
    }
}
