//! What an operator can set about KV routing, and what a request can.

use std::time::Duration;

use crate::{BusyThresholds, CacheSource, PrefillLoadModel, QueueConfig, shared_cache::check_multiplier};

/// The settings of KV routing, named as their flags are (without `--router-`).
#[derive(Clone, Debug, PartialEq)]
pub struct KvRouterConfig {
    /// What a block to prefill costs beside a block to decode, at least 0.
    pub prefill_load_scale: f64,
    /// What a block in device memory takes off a prompt's prefill, in blocks, at least 0. With 0 prefix caches do not
    /// matter, and no index is needed.
    pub overlap_score_credit: f64,
    /// How fast that credit fades as a rank's outstanding prefill grows beyond the least, at least 0.
    pub overlap_score_credit_decay: f64,
    /// What a block that is in host memory and not in device memory takes off, in blocks.
    pub host_cache_hit_weight: f64,
    /// What a block that is on disk or further takes off, in blocks.
    pub disk_cache_hit_weight: f64,
    /// What a block beyond those in device memory takes off that is in storage which all workers share, in blocks, 0 to 1:
    /// see [`crate::SharedCacheType`]. It needs KV events.
    pub shared_cache_multiplier: f64,
    /// What a new block costs where it takes the place of another one, in blocks to prefill, at least 0: on the rank whose
    /// cache is the fullest, and less the emptier it is.
    pub room_weight: f64,
    /// What a running request costs, in blocks.
    pub decode_active_request_weight: f64,
    /// 0: the cheapest worker; above: the higher, the more even the choice.
    pub temperature: f64,
    /// Count the blocks of running requests. Off for pools that only prefill.
    pub track_active_blocks: bool,
    /// Count the blocks of answers as they grow; needs `track_active_blocks`.
    pub track_output_blocks: bool,
    /// Requests with a common prefix share its blocks on a worker. Off: every request counts its blocks for itself.
    pub assume_kv_reuse: bool,
    /// Count the prompt tokens that are still to be computed. Off for pools that only decode.
    pub track_prefill_tokens: bool,
    /// How they count while they are computed; any but none needs `track_prefill_tokens`.
    pub prefill_load_model: PrefillLoadModel,
    /// How much busier than the others a rank may become for the sake of its cache, at least 1; absent: without bound.
    /// See [`crate::Balance`].
    pub max_imbalance: Option<f64>,
    /// How what workers have cached is known.
    pub caches: CacheSource,
    /// When ranks take no more requests.
    pub busy: BusyThresholds,
    /// Whether and how requests wait for a worker.
    pub queue: QueueConfig,
    /// After this long without a sign of life a request no longer counts.
    pub active_request_expiry: Duration,
    /// Requests that may run at once, over all workers. The tracker refuses more: a bound on memory.
    pub max_active_requests: u32,
}

impl KvRouterConfig {
    /// The reference's defaults; the bound on imbalance is ours.
    pub const REFERENCE: Self = Self {
        prefill_load_scale: 1.0,
        overlap_score_credit: 1.0,
        overlap_score_credit_decay: 0.0,
        host_cache_hit_weight: 0.75,
        disk_cache_hit_weight: 0.25,
        shared_cache_multiplier: 0.0,
        room_weight: 0.0,
        decode_active_request_weight: 0.0,
        temperature: 0.0,
        track_active_blocks: true,
        track_output_blocks: false,
        assume_kv_reuse: true,
        track_prefill_tokens: true,
        prefill_load_model: PrefillLoadModel::None,
        max_imbalance: Some(2.0),
        caches: CacheSource::Events,
        busy: BusyThresholds::NONE,
        queue: QueueConfig::OFF,
        active_request_expiry: Duration::from_secs(300),
        // A hundred times what a frontend of the largest size keeps open; some 100 MB if it were ever reached.
        max_active_requests: 1_000_000,
    };

    /// What is used unless something else is said. On the conversation trace a scale of four is better than the
    /// reference's one in cached share and in time to first token at every load, and as even. The price for room finds
    /// more in caches up to saturation, at about the same time to first token; without it, workers that were never used
    /// stay so while others have the block that all prompts begin with (`docs/routing.md`).
    pub const DEFAULT: Self = Self { prefill_load_scale: 4.0, room_weight: 0.5, ..Self::REFERENCE };

    /// Applies the older setting that stands for two newer ones: it is the scale of the prefill, and 0 also takes away
    /// the credit for caches.
    pub fn with_overlap_score_weight(mut self, weight: f64) -> Self {
        self.prefill_load_scale = weight;
        if weight == 0.0 {
            self.overlap_score_credit = 0.0;
        }
        self
    }

    /// Whether what workers have cached changes any choice.
    pub fn uses_caches(&self) -> bool {
        self.overlap_score_credit > 0.0
    }

    /// Says which setting cannot be used, and why.
    pub fn validate(&self) -> Result<(), ConfigError> {
        for (name, value) in [
            ("prefill_load_scale", self.prefill_load_scale),
            ("overlap_score_credit", self.overlap_score_credit),
            ("overlap_score_credit_decay", self.overlap_score_credit_decay),
            ("host_cache_hit_weight", self.host_cache_hit_weight),
            ("disk_cache_hit_weight", self.disk_cache_hit_weight),
            ("room_weight", self.room_weight),
            ("decode_active_request_weight", self.decode_active_request_weight),
            ("temperature", self.temperature),
            ("queue_threshold", self.queue.threshold.unwrap_or(0.0)),
        ] {
            at_least(name, value, 0.0)?;
        }
        at_least("max_imbalance", self.max_imbalance.unwrap_or(1.0), 1.0)?;
        check_multiplier(self.shared_cache_multiplier)?;
        self.caches.validate()?;
        if self.shared_cache_multiplier > 0.0 && !self.caches.uses_events() {
            return Err(ConfigError::SharedCacheWithoutEvents);
        }
        self.busy.validate()?;
        if self.track_output_blocks && !self.track_active_blocks {
            return Err(ConfigError::OutputBlocksWithoutActiveBlocks);
        }
        if self.queue.is_used() && !self.track_prefill_tokens {
            return Err(ConfigError::QueueWithoutPrefillTokens);
        }
        if self.prefill_load_model != PrefillLoadModel::None && !self.track_prefill_tokens {
            return Err(ConfigError::LoadModelWithoutPrefillTokens(self.prefill_load_model));
        }
        if self.queue.classes.is_some() && !self.queue.is_used() {
            return Err(ConfigError::ClassesWithoutQueue);
        }
        if self.active_request_expiry.is_zero() {
            return Err(ConfigError::NoExpiry);
        }
        Ok(())
    }
}

/// What a request sets for itself instead of the configuration.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RouterOverrides {
    /// See [`KvRouterConfig::with_overlap_score_weight`]; the next two go before it.
    pub overlap_score_weight: Option<f64>,
    /// See [`KvRouterConfig::overlap_score_credit`].
    pub overlap_score_credit: Option<f64>,
    /// See [`KvRouterConfig::prefill_load_scale`].
    pub prefill_load_scale: Option<f64>,
    /// See [`KvRouterConfig::temperature`].
    pub temperature: Option<f64>,
    /// See [`KvRouterConfig::assume_kv_reuse`].
    pub assume_kv_reuse: Option<bool>,
    /// See [`KvRouterConfig::track_prefill_tokens`].
    pub track_prefill_tokens: Option<bool>,
}

pub(crate) fn at_least(name: &'static str, value: f64, least: f64) -> Result<(), ConfigError> {
    let valid = value.is_finite() && value >= least;
    if valid { Ok(()) } else { Err(ConfigError::TooSmall { name, value, least }) }
}

/// A setting that cannot be used.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// A number that is too small, infinite or none.
    #[error("{name} must be {least} or more, not {value}")]
    TooSmall {
        /// The setting.
        name: &'static str,
        /// Its value.
        value: f64,
        /// The least that it can be.
        least: f64,
    },
    /// A share outside of 0 to 1.
    #[error("{name} must be between 0 and 1, not {value}")]
    NoShare {
        /// The setting.
        name: &'static str,
        /// Its value.
        value: f64,
    },
    /// Output blocks are a part of the active blocks.
    #[error("track_output_blocks needs track_active_blocks")]
    OutputBlocksWithoutActiveBlocks,
    /// The queue waits for prefill tokens to become fewer.
    #[error("queue_threshold needs track_prefill_tokens")]
    QueueWithoutPrefillTokens,
    /// What is not counted cannot become less.
    #[error("prefill_load_model {0} needs track_prefill_tokens")]
    LoadModelWithoutPrefillTokens(PrefillLoadModel),
    /// Classes share what never fills.
    #[error(
        "policy classes share the queue, and nobody queues: set queue_threshold, or a threshold of a class"
    )]
    ClassesWithoutQueue,
    /// Nobody would ever know that prefill workers are busy.
    #[error(
        "conditional disaggregation by prefill load needs prefill_busy_threshold, or router-queue-threshold"
    )]
    DisaggWithoutLoad,
    /// What was sent would be forgotten at once.
    #[error("router-ttl-secs and router-predicted-ttl-secs must be longer than 0 s")]
    NoTtl,
    /// There would be room for nothing.
    #[error("router-max-tree-size must be 1 or more")]
    NoTree,
    /// A share of the entries that none are, or more than all.
    #[error("router-prune-target-ratio must be above 0 and at most 1, not {0}")]
    PruneTarget(f64),
    /// Workers that send events say themselves what they evict.
    #[error(
        "router-approximate-cache-policy lru is for workers without KV events: give --no-router-kv-events, or use ttl"
    )]
    LruWithEvents,
    /// Without events all that is known is predicted.
    #[error(
        "router-predicted-ttl-secs needs KV events: leave out --no-router-kv-events, or give --router-ttl-secs instead"
    )]
    PredictedWithoutEvents,
    /// A weight of blocks in storage that there is not.
    #[error(
        "shared-cache-multiplier is for storage that workers share: give --shared-cache-type hicache, or leave it out"
    )]
    MultiplierWithoutSharedCache,
    /// Workers tell by KV events what is in storage that they share.
    #[error(
        "shared-cache-type needs KV events: leave out --no-router-kv-events, or give --shared-cache-type none"
    )]
    SharedCacheWithoutEvents,
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
        let blind =
            KvRouterConfig { track_active_blocks: false, track_output_blocks: true, ..reference.clone() };
        assert_eq!(blind.validate(), Err(ConfigError::OutputBlocksWithoutActiveBlocks));
        let steep = KvRouterConfig { max_imbalance: Some(0.5), ..reference.clone() };
        assert_eq!(steep.validate().unwrap_err().to_string(), "max_imbalance must be 1 or more, not 0.5");
        let uncounted = KvRouterConfig {
            track_prefill_tokens: false,
            prefill_load_model: PrefillLoadModel::Measured,
            ..reference.clone()
        };
        let error = uncounted.validate().unwrap_err().to_string();
        assert_eq!(error, "prefill_load_model measured needs track_prefill_tokens");
        let foreign = KvRouterConfig { shared_cache_multiplier: 1.5, ..reference.clone() };
        assert!(matches!(foreign.validate(), Err(ConfigError::NoShare { .. })));
        let caches = CacheSource::Sent(crate::ApproximateConfig::REFERENCE);
        let unheard = KvRouterConfig { shared_cache_multiplier: 0.5, caches, ..reference.clone() };
        assert_eq!(unheard.validate(), Err(ConfigError::SharedCacheWithoutEvents));
        let busy = BusyThresholds { active_decode_blocks: Some(1.5), ..BusyThresholds::NONE };
        let busy = KvRouterConfig { busy, ..reference };
        assert!(matches!(busy.validate(), Err(ConfigError::NoShare { .. })));
    }

    #[test]
    fn the_older_weight_stands_for_scale_and_credit() {
        let half = KvRouterConfig::REFERENCE.with_overlap_score_weight(0.5);
        assert_eq!(
            (half.prefill_load_scale, half.overlap_score_credit, half.uses_caches()),
            (0.5, 1.0, true)
        );
        let none = KvRouterConfig::REFERENCE.with_overlap_score_weight(0.0);
        assert_eq!(
            (none.prefill_load_scale, none.overlap_score_credit, none.uses_caches()),
            (0.0, 0.0, false)
        );
    }
}
