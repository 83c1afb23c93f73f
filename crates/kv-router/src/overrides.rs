//! What a request sets for itself, checked.

use dynamo_engine_api::RouterConfigOverride;

use crate::{ConfigError, RouterOverrides, config::at_least};

impl TryFrom<&RouterConfigOverride> for RouterOverrides {
    type Error = ConfigError;

    /// Numbers must be what they must be in the configuration.
    fn try_from(asked: &RouterConfigOverride) -> Result<Self, ConfigError> {
        let overrides = Self {
            overlap_score_weight: asked.overlap_score_weight,
            overlap_score_credit: asked.overlap_score_credit,
            prefill_load_scale: asked.prefill_load_scale,
            temperature: asked.router_temperature,
            assume_kv_reuse: asked.assume_kv_reuse,
            track_prefill_tokens: asked.track_prefill_tokens,
        };
        for (name, value) in [
            ("overlap_score_weight", overrides.overlap_score_weight),
            ("overlap_score_credit", overrides.overlap_score_credit),
            ("prefill_load_scale", overrides.prefill_load_scale),
            ("router_temperature", overrides.temperature),
        ] {
            at_least(name, value.unwrap_or(0.0), 0.0)?;
        }
        Ok(overrides)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_configuration_refuses_a_request_cannot_set_either() {
        let asked = RouterConfigOverride {
            router_temperature: Some(0.5),
            track_prefill_tokens: Some(false),
            ..RouterConfigOverride::default()
        };
        let overrides = RouterOverrides::try_from(&asked).unwrap();
        assert_eq!((overrides.temperature, overrides.track_prefill_tokens), (Some(0.5), Some(false)));
        for value in [-1.0, f64::NAN, f64::INFINITY] {
            let asked = RouterConfigOverride { prefill_load_scale: Some(value), ..asked.clone() };
            let error = RouterOverrides::try_from(&asked).unwrap_err().to_string();
            assert!(error.starts_with("prefill_load_scale must be 0 or more"), "{error}");
        }
    }
}
