//! What an operator can set about KV routing.

/// The settings of KV routing, named as their flags are (without `--router-`).
#[derive(Clone, Debug, PartialEq)]
pub struct KvRouterConfig {
    /// What a block to prefill costs beside a block to decode, at least 0. With 0 prefix caches do not matter, and no
    /// index is needed.
    pub overlap_score_weight: f64,
    /// 0: the cheapest worker; above: the higher, the more even the choice.
    pub temperature: f64,
    /// Count the blocks of running requests. Off for pools that only prefill.
    pub track_active_blocks: bool,
    /// Count the blocks of answers as they grow; needs `track_active_blocks`.
    pub track_output_blocks: bool,
    /// Requests with a common prefix share its blocks on a worker. Off: every request counts its blocks for itself.
    pub assume_kv_reuse: bool,
    /// After this long without a sign of life a request no longer counts.
    pub active_request_expiry: std::time::Duration,
    /// Requests that may run at once, over all workers. The tracker refuses more: a bound on memory.
    pub max_active_requests: u32,
}

impl KvRouterConfig {
    /// The reference's defaults.
    pub const REFERENCE: Self = Self {
        overlap_score_weight: 1.0,
        temperature: 0.0,
        track_active_blocks: true,
        track_output_blocks: false,
        assume_kv_reuse: true,
        active_request_expiry: std::time::Duration::from_secs(300),
        // A hundred times what a frontend of the largest size keeps open; some 100 MB if it were ever reached.
        max_active_requests: 1_000_000,
    };

    /// Says which setting cannot be used, and why.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let positive = |name, value: f64| {
            let valid = value.is_finite() && value >= 0.0;
            if valid { Ok(()) } else { Err(ConfigError::Negative { name, value }) }
        };
        positive("overlap_score_weight", self.overlap_score_weight)?;
        positive("temperature", self.temperature)?;
        if self.track_output_blocks && !self.track_active_blocks {
            return Err(ConfigError::OutputBlocksWithoutActiveBlocks);
        }
        if self.active_request_expiry.is_zero() {
            return Err(ConfigError::NoExpiry);
        }
        Ok(())
    }
}

/// A setting that cannot be used.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// A number below zero, infinite or none.
    #[error("{name} must be 0 or more, not {value}")]
    Negative {
        /// The setting.
        name: &'static str,
        /// Its value.
        value: f64,
    },
    /// Output blocks are a part of the active blocks.
    #[error("track_output_blocks needs track_active_blocks")]
    OutputBlocksWithoutActiveBlocks,
    /// Requests would not count at all.
    #[error("active_request_expiry must be longer than 0 s")]
    NoExpiry,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_is_valid_and_nonsense_is_named() {
        let reference = KvRouterConfig::REFERENCE;
        assert_eq!(reference.validate(), Ok(()));
        let hot = KvRouterConfig { temperature: f64::NAN, ..reference.clone() };
        assert!(hot.validate().unwrap_err().to_string().starts_with("temperature must be 0 or more"));
        let blind = KvRouterConfig { track_active_blocks: false, track_output_blocks: true, ..reference };
        assert_eq!(blind.validate(), Err(ConfigError::OutputBlocksWithoutActiveBlocks));
    }
}
