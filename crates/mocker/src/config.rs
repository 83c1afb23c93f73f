//! What a simulated engine is like. Names and defaults are the reference's.

use std::time::Duration;

use dynamo_scheduler::{ConfigError, PreemptionMode, SchedulerConfig};
use dynamo_tokens::BlockSize;
use serde::{Deserialize, Serialize};

use crate::transfer::LONGEST_TRANSFER;
use crate::{DisaggregationMode, TransferTime, Vocabulary};

/// What is on its way to a simulated engine arrives; the scheduler wants a limit all the same.
const LOAD_TIMEOUT: Duration = LONGEST_TRANSFER.saturating_add(Duration::from_secs(3600));

/// Whom to preempt when blocks run out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PreemptionPolicy {
    /// The request that was admitted last.
    #[default]
    Lifo,
    /// The request that was admitted first.
    Fifo,
}

/// A simulated engine. Unknown keys are refused, absent ones take the default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MockerConfig {
    /// KV blocks of each rank. 16384.
    pub num_gpu_blocks: u32,
    /// Tokens per block. 64.
    pub block_size: u32,
    /// Requests computed at the same time, each rank. 256.
    pub max_num_seqs: u32,
    /// Tokens computed in one step, each rank. 8192.
    pub max_num_batched_tokens: u32,
    /// Whether blocks are found again by their contents. Without, no KV events are sent either.
    pub enable_prefix_caching: bool,
    /// Whether a prompt may be spread over several steps.
    pub enable_chunked_prefill: bool,
    /// Share of the blocks that admission leaves free. 0.01.
    pub watermark: f64,
    /// Simulated seconds per second; 0 means that nothing takes time. 1.0.
    pub speedup_ratio: f64,
    /// Decoding is sped up by this on top, prefill is not: a small number makes slow streams that begin at once. 1.0.
    pub decode_speedup_ratio: f64,
    /// Ranks, each with its own blocks and queue. 1.
    #[serde(alias = "dp_size")]
    pub data_parallel_size: u32,
    /// Seconds until the engine is ready.
    pub startup_time: Option<f64>,
    /// Whom to preempt.
    pub preemption_mode: PreemptionPolicy,
    /// Prompt and output together, in tokens; absent: what fits in the blocks.
    pub max_model_len: Option<u32>,
    /// Requests that may wait to be admitted, each rank. 16384: more than one process has connections for.
    pub max_waiting: u32,
    /// What the simulated tokens depend on beside the tokens before them. Workers of one model must agree on it.
    pub seed: u64,
    /// What simulated tokens are drawn from: the ordinary tokens of the model.
    pub vocabulary: Vocabulary,
    /// Whether a token that ends the request's text may be drawn if the vocabulary has it.
    pub draw_end_tokens: bool,
    /// Which half of requests it is there for. Both.
    pub disaggregation_mode: DisaggregationMode,
    /// What a prefill engine calls itself in what it says to others. Set by whoever runs the engine.
    #[serde(skip)]
    pub engine_id: Option<String>,
    /// GB (10⁹ bytes) per second at which blocks come from prefill engines; 0 means that they take no time. 64.0.
    pub kv_transfer_bandwidth: f64,
    /// Bytes of a token's KV in all layers; absent: whoever runs the engine reads it from the model's configuration. An
    /// engine that is not told loads in no time.
    pub kv_bytes_per_token: Option<u64>,
}

impl Default for MockerConfig {
    fn default() -> Self {
        Self {
            num_gpu_blocks: 16384,
            block_size: 64,
            max_num_seqs: 256,
            max_num_batched_tokens: 8192,
            enable_prefix_caching: true,
            enable_chunked_prefill: true,
            watermark: 0.01,
            speedup_ratio: 1.0,
            decode_speedup_ratio: 1.0,
            data_parallel_size: 1,
            startup_time: None,
            preemption_mode: PreemptionPolicy::Lifo,
            max_model_len: None,
            max_waiting: 16384,
            seed: 0,
            vocabulary: Vocabulary::default(),
            draw_end_tokens: false,
            disaggregation_mode: DisaggregationMode::Agg,
            engine_id: None,
            kv_transfer_bandwidth: 64.0,
            kv_bytes_per_token: None,
        }
    }
}

/// A configuration that no engine can have.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum MockConfigError {
    /// A count of zero.
    #[error("{0} must be at least 1")]
    Zero(&'static str),
    /// Not a number of seconds, or not a ratio.
    #[error("{0} must be a finite number of at least 0")]
    Negative(&'static str),
    /// A ratio by which nothing can be divided.
    #[error("{0} must be more than 0")]
    NotPositive(&'static str),
    /// No token to draw.
    #[error("the vocabulary is empty: give a range with its end after its start, or at least one token")]
    NoVocabulary,
    /// The scheduler's limits.
    #[error(transparent)]
    Scheduler(#[from] ConfigError),
}

impl MockerConfig {
    /// Checks everything.
    pub fn validate(&self) -> Result<(), MockConfigError> {
        for (name, value) in [
            ("num_gpu_blocks", self.num_gpu_blocks),
            ("block_size", self.block_size),
            ("data_parallel_size", self.data_parallel_size),
        ] {
            if value == 0 {
                return Err(MockConfigError::Zero(name));
            }
        }
        for (name, value) in [
            ("speedup_ratio", self.speedup_ratio),
            ("startup_time", self.startup_time.unwrap_or(0.0)),
            ("kv_transfer_bandwidth", self.kv_transfer_bandwidth),
        ] {
            if Duration::try_from_secs_f64(value).is_err() {
                return Err(MockConfigError::Negative(name));
            }
        }
        if !(self.decode_speedup_ratio.is_finite() && self.decode_speedup_ratio > 0.0) {
            return Err(MockConfigError::NotPositive("decode_speedup_ratio"));
        }
        if self.vocabulary.is_empty() {
            return Err(MockConfigError::NoVocabulary);
        }
        self.scheduler().validate()?;
        Ok(())
    }

    pub(crate) fn block_size(&self) -> Option<BlockSize> {
        BlockSize::new(self.block_size)
    }

    pub(crate) fn startup(&self) -> Duration {
        Duration::try_from_secs_f64(self.startup_time.unwrap_or(0.0)).unwrap_or_default()
    }

    /// How long blocks take from a prefill engine to here.
    pub fn transfer_time(&self) -> TransferTime {
        let bytes = self.kv_bytes_per_token.unwrap_or(0).saturating_mul(u64::from(self.block_size));
        TransferTime::new(bytes, self.kv_transfer_bandwidth, self.speedup_ratio)
    }

    /// Tokens that a prompt may have: there must be room for one more.
    pub(crate) fn max_prompt(&self) -> usize {
        let pool = self.num_gpu_blocks as usize * self.block_size as usize;
        let fits = self.max_model_len.map_or(pool, |len| pool.min(len as usize)).saturating_sub(1);
        if self.enable_chunked_prefill { fits } else { fits.min(self.max_num_batched_tokens as usize) }
    }

    /// The limits of a rank's scheduler.
    pub fn scheduler(&self) -> SchedulerConfig {
        SchedulerConfig {
            max_num_seqs: self.max_num_seqs as usize,
            max_num_batched_tokens: self.max_num_batched_tokens as usize,
            chunked_prefill: self.enable_chunked_prefill,
            watermark: self.watermark,
            preemption: match self.preemption_mode {
                PreemptionPolicy::Lifo => PreemptionMode::Lifo,
                PreemptionPolicy::Fifo => PreemptionMode::Fifo,
            },
            max_waiting: self.max_waiting as usize,
            max_sequence_len: self.max_model_len.map_or(usize::MAX, |len| len as usize),
            max_advance: 1,
            load_timeout: LOAD_TIMEOUT,
        }
    }
}
