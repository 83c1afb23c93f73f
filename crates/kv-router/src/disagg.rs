//! Whether the decode worker computes a prompt itself, where there are prefill workers.

use serde::Deserialize;

use crate::{ConfigError, config::at_least};

/// What makes a remote prefill not worth its way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DisaggPolicy {
    /// A prompt of which little is new.
    #[default]
    IslBounding,
    /// Prefill workers that are busy.
    PrefillLoad,
    /// Either of the two.
    IslOrLoad,
}

/// The settings of conditional disaggregation. Names and defaults are the reference's.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConditionalDisagg {
    /// What counts.
    pub policy: DisaggPolicy,
    /// Fewer new tokens than this are little. 2048.
    pub eff_isl_threshold: usize,
    /// And a smaller share of the prompt than this, 0 to 1. 0.7.
    pub eff_isl_ratio_threshold: f64,
    /// Prefill workers are busy when each has more prompt tokens outstanding than so many of its largest steps; absent: than
    /// the queue's threshold says.
    pub prefill_busy_threshold: Option<f64>,
    /// No prompt stays with decode workers of which each has more outstanding than so many steps; absent: however many.
    pub decode_busy_threshold: Option<f64>,
}

impl Default for ConditionalDisagg {
    fn default() -> Self {
        Self::REFERENCE
    }
}

impl ConditionalDisagg {
    /// The reference's defaults.
    pub const REFERENCE: Self = Self {
        policy: DisaggPolicy::IslBounding,
        eff_isl_threshold: 2048,
        eff_isl_ratio_threshold: 0.7,
        prefill_busy_threshold: None,
        decode_busy_threshold: None,
    };

    /// Says which setting cannot be used, and why. `queue_threshold` is the queue's.
    pub fn validate(&self, queue_threshold: Option<f64>) -> Result<(), ConfigError> {
        for (name, value) in [
            ("eff_isl_ratio_threshold", Some(self.eff_isl_ratio_threshold)),
            ("prefill_busy_threshold", self.prefill_busy_threshold),
            ("decode_busy_threshold", self.decode_busy_threshold),
        ] {
            at_least(name, value.unwrap_or(0.0), 0.0)?;
        }
        if self.eff_isl_ratio_threshold > 1.0 {
            let value = self.eff_isl_ratio_threshold;
            return Err(ConfigError::NoShare { name: "eff_isl_ratio_threshold", value });
        }
        if self.policy != DisaggPolicy::IslBounding && self.busy_steps(queue_threshold).is_none() {
            return Err(ConfigError::DisaggWithoutLoad);
        }
        Ok(())
    }

    /// The steps beyond which prefill workers are busy, where that counts.
    pub fn busy_steps(&self, queue_threshold: Option<f64>) -> Option<f64> {
        match self.policy {
            DisaggPolicy::IslBounding => None,
            DisaggPolicy::PrefillLoad | DisaggPolicy::IslOrLoad => {
                self.prefill_busy_threshold.or(queue_threshold)
            }
        }
    }

    /// Where a prompt of `isl_tokens` is computed, of which the decode worker has `cached_tokens`. Whether workers are busy is
    /// asked only where it counts.
    pub fn place(
        &self,
        isl_tokens: usize,
        cached_tokens: usize,
        prefill_busy: impl FnOnce() -> bool,
        decode_busy: impl FnOnce(f64) -> bool,
    ) -> PrefillPlace {
        let new_tokens = isl_tokens.saturating_sub(cached_tokens);
        let is_short = new_tokens < self.eff_isl_threshold
            && (new_tokens as f64) < self.eff_isl_ratio_threshold * isl_tokens as f64;
        let local = match self.policy {
            DisaggPolicy::IslBounding => is_short,
            DisaggPolicy::PrefillLoad => prefill_busy(),
            DisaggPolicy::IslOrLoad => is_short || prefill_busy(),
        };
        if local && !self.decode_busy_threshold.is_some_and(decode_busy) {
            PrefillPlace::Decode
        } else {
            PrefillPlace::Prefill
        }
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
        let place = |settings: ConditionalDisagg, isl, cached, busy| {
            settings.place(isl, cached, || busy, |_| unreachable!("no threshold is set"))
        };
        let reference = ConditionalDisagg::REFERENCE;
        for (isl, cached, busy, expected) in [
            (10_000, 8_000, false, Decode),
            (10_000, 7_952, false, Prefill),
            (1_000, 300, false, Prefill),
            (1_000, 301, false, Decode),
            (0, 0, false, Prefill),
            (10_000, 0, true, Prefill),
        ] {
            assert_eq!(place(reference, isl, cached, busy), expected, "{isl} {cached}");
        }
        let load = ConditionalDisagg { policy: DisaggPolicy::PrefillLoad, ..reference };
        assert_eq!((place(load, 10_000, 9_999, false), place(load, 10_000, 0, true)), (Prefill, Decode));
        let either = ConditionalDisagg { policy: DisaggPolicy::IslOrLoad, ..reference };
        assert_eq!((place(either, 10_000, 9_999, false), place(either, 10_000, 0, true)), (Decode, Decode));
    }

    #[test]
    fn nothing_stays_with_decode_workers_that_are_busy_themselves() {
        let bounded = ConditionalDisagg { decode_busy_threshold: Some(3.0), ..ConditionalDisagg::REFERENCE };
        for (busy, expected) in [(true, PrefillPlace::Prefill), (false, PrefillPlace::Decode)] {
            let decode_busy = |steps| {
                assert_eq!(steps, 3.0);
                busy
            };
            assert_eq!(
                bounded.place(1_000, 900, || unreachable!("it does not count"), decode_busy),
                expected
            );
        }
    }

    #[test]
    fn settings_have_the_references_names_and_those_that_make_no_sense_are_refused_by_name() {
        let parse =
            |text: &str| serde_json::from_str::<ConditionalDisagg>(text).map_err(|error| error.to_string());
        assert_eq!(parse("{}"), Ok(ConditionalDisagg::REFERENCE));
        let either = parse(r#"{"policy": "isl_or_load", "eff_isl_threshold": 100}"#).unwrap();
        assert_eq!((either.policy, either.eff_isl_threshold), (DisaggPolicy::IslOrLoad, 100));
        for (text, words) in [(r#"{"x": 1}"#, "`x`"), (r#"{"policy": "x"}"#, "isl_or_load")] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
        assert_eq!(either.validate(None), Err(ConfigError::DisaggWithoutLoad));
        assert_eq!((either.validate(Some(4.0)), either.busy_steps(Some(4.0))), (Ok(()), Some(4.0)));
        let own = ConditionalDisagg { prefill_busy_threshold: Some(2.0), ..either };
        assert_eq!((own.validate(None), own.busy_steps(Some(4.0))), (Ok(()), Some(2.0)));
        for text in [
            r#"{"eff_isl_ratio_threshold": 1.5}"#,
            r#"{"eff_isl_ratio_threshold": -1}"#,
            r#"{"decode_busy_threshold": -1}"#,
        ] {
            assert!(parse(text).unwrap().validate(None).is_err(), "{text}");
        }
    }
}
