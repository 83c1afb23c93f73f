//! The limits under which a scheduler works.

use std::time::Duration;

/// Whom to preempt when blocks run out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PreemptionMode {
    /// The request that was admitted last.
    Lifo,
    /// The request that was admitted first.
    Fifo,
}

/// The limits of one scheduler.
#[derive(Clone, Debug)]
pub struct SchedulerConfig {
    /// Requests admitted at the same time.
    pub max_num_seqs: usize,
    /// Tokens computed in one step.
    pub max_num_batched_tokens: usize,
    /// Whether a prompt may be spread over several steps.
    pub chunked_prefill: bool,
    /// The share of blocks, from 0 to 1, that admission leaves free for running requests to grow into.
    pub watermark: f64,
    /// Whom to preempt.
    pub preemption: PreemptionMode,
    /// Requests that may wait for admission; preempted ones come on top.
    pub max_waiting: usize,
    /// Prompt and output together, in tokens.
    pub max_sequence_len: usize,
    /// Tokens by which a request may advance in one step and still find room for their KV: 1 without speculation.
    pub max_advance: usize,
    /// How long a request waits for cached contents that are on the way.
    pub load_timeout: Duration,
}

/// A limit that makes no sense.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ConfigError {
    /// A count of zero.
    #[error("{0} must be at least 1")]
    Zero(&'static str),
    /// A step could not advance every running request.
    #[error(
        "max_num_batched_tokens ({tokens}) must be at least max_num_seqs ({seqs}): raise the first or lower the second"
    )]
    BudgetBelowSeqs {
        /// Tokens a step.
        tokens: usize,
        /// Requests at the same time.
        seqs: usize,
    },
    /// Not a share.
    #[error("watermark must be at least 0 and below 1, it is {0}")]
    Watermark(f64),
}

impl SchedulerConfig {
    /// Checks the limits against one another.
    pub fn validate(&self) -> Result<(), ConfigError> {
        for (name, value) in [
            ("max_num_seqs", self.max_num_seqs),
            ("max_num_batched_tokens", self.max_num_batched_tokens),
            ("max_waiting", self.max_waiting),
            ("max_sequence_len", self.max_sequence_len),
            ("max_advance", self.max_advance),
        ] {
            if value == 0 {
                return Err(ConfigError::Zero(name));
            }
        }
        if self.max_num_batched_tokens < self.max_num_seqs {
            return Err(ConfigError::BudgetBelowSeqs {
                tokens: self.max_num_batched_tokens,
                seqs: self.max_num_seqs,
            });
        }
        if !(0.0..1.0).contains(&self.watermark) {
            return Err(ConfigError::Watermark(self.watermark));
        }
        Ok(())
    }
}
