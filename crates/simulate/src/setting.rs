//! What is simulated.

use std::time::Duration;

use clap::ValueEnum;
use dynamo_kv_router::KvRouterConfig;
use dynamo_mocker::MockerConfig;
use serde::Serialize;

/// How workers are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// By what they have cached and what runs on them.
    Kv,
    /// In turn.
    #[value(alias = "round_robin")]
    RoundRobin,
    /// At random.
    Random,
}

impl std::fmt::Display for Mode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Kv => "kv",
            Self::RoundRobin => "round-robin",
            Self::Random => "random",
        })
    }
}

/// One run.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Workers, all alike.
    pub workers: u32,
    /// Each of them; `speedup_ratio` divides the time of its steps. Each of its data-parallel ranks has blocks and steps of
    /// its own.
    pub engine: MockerConfig,
    /// How they are chosen.
    pub mode: Mode,
    /// The settings of the choice.
    pub kv: KvRouterConfig,
    /// From a change in a worker's cache to the router's index.
    pub event_delay: Duration,
    /// Divides the times of the trace.
    pub speedup: f64,
    /// Tokens for a hash id.
    pub trace_block_tokens: u32,
    /// Prompts end where the trace says (divided by `shrink`), instead of with their last block.
    pub exact_lengths: bool,
    /// Tokens in front of every prompt, the same for all.
    pub template_tokens: u32,
    /// Divides lengths of answers.
    pub shrink: u32,
    /// Instead of the trace's lengths of answers.
    pub output_tokens: Option<u32>,
    /// Equal seeds give equal results.
    pub seed: u64,
}

impl Setting {
    /// Ranks of all workers: rank `r` of worker `w` has the number `w · ranks + r`.
    pub(crate) fn ranks(&self) -> u32 {
        self.workers.saturating_mul(self.engine.data_parallel_size)
    }
}
