//! The flags of `dynamo simulate`. Those of workers and router are named as theirs.

use std::{path::PathBuf, sync::Arc, time::Duration};

use clap::{Args, value_parser};
use dynamo_kv_router::{
    ApproximateConfig, BusyThresholds, CachePolicy, CacheSource, KvRouterConfig, PolicyClasses,
    PrefillLoadModel, QueueConfig, QueuePolicy,
};
use dynamo_mocker::{MockerConfig, PreemptionPolicy};
use serde::Serialize;

use crate::{Mode, Setting, SimulateError};

const EXAMPLES: &str = "\
Examples:
  KV routing beside round-robin at three levels of load, with a page of plots:
    dynamo simulate --trace conversation_trace.jsonl --workers 8 --compare kv,round-robin --load 0.5,1,2 --html report.html

  What more blocks would give:
    for b in 512 2048 8192; do dynamo simulate --trace t.jsonl --workers 8 --blocks $b --json $b.json; done

  The same as a live run of `dynamo bench --trace t.jsonl --shrink 8 --speedup 40` with workers at --speedup-ratio 40:
    dynamo simulate --trace t.jsonl --workers 8 --blocks 2048 --shrink 8 --speedup 40

Router and workers are the real ones but for the clock: times are those of the simulated engine, on no machine in
particular, and equal seeds give equal results.
Exit code: 0, or 2 if it could not run. A load that is too much is told in the report (`saturated`).";

/// Runs a trace through a router and simulated workers, faster than real time.
#[derive(Clone, Debug, Args, Serialize)]
#[command(after_long_help = EXAMPLES)]
pub struct SimulateArgs {
    /// The trace, in the mooncake format (see `dynamo trace`)
    #[arg(long, value_name = "FILE", help_heading = "Trace")]
    pub trace: PathBuf,
    /// Only the first so many requests
    #[arg(long, short = 'n', value_parser = value_parser!(u64).range(1..), help_heading = "Trace")]
    pub requests: Option<u64>,
    /// Divide the trace's lengths by this
    #[arg(long, default_value_t = 1, value_parser = value_parser!(u32).range(1..=512), help_heading = "Trace")]
    pub shrink: u32,
    /// Tokens for a hash id [default: 512 divided by --shrink]
    #[arg(long, value_name = "TOKENS", value_parser = value_parser!(u32).range(1..=65_536), help_heading = "Trace")]
    pub trace_block_tokens: Option<u32>,
    /// End prompts where the trace says, instead of with their last block, as `dynamo bench` does
    #[arg(long, help_heading = "Trace")]
    pub exact_lengths: bool,
    /// Tokens of the chat template in front of every prompt, the same for all
    #[arg(long, value_name = "TOKENS", default_value_t = 0, help_heading = "Trace")]
    pub template_tokens: u32,
    /// Tokens of every answer, instead of what the trace says
    #[arg(long, value_parser = value_parser!(u32).range(1..), help_heading = "Trace")]
    pub output_tokens: Option<u32>,
    /// Divide all times, the trace's and the workers', by this: as in a live run at that speed
    #[arg(long, default_value_t = 1.0, help_heading = "Trace")]
    pub speedup: f64,
    /// Multiply the rate of the trace, and run once for each value
    #[arg(long, value_name = "LOADS", value_delimiter = ',', default_value = "1", help_heading = "Trace")]
    pub load: Vec<f64>,
    /// Go on with twice the highest load until every router is saturated
    #[arg(long, help_heading = "Trace")]
    pub until_saturated: bool,

    /// Workers
    #[arg(long, visible_alias = "num-workers", default_value_t = 8, value_parser = value_parser!(u32).range(1..=100_000), help_heading = "Workers")]
    pub workers: u32,
    /// Data-parallel ranks of each worker, each with blocks and steps of its own
    #[arg(long, visible_alias = "dp-size", default_value_t = 1, value_parser = value_parser!(u32).range(1..=4096), help_heading = "Workers")]
    pub data_parallel_size: u32,
    /// KV blocks of each rank
    #[arg(long, visible_aliases = ["num-gpu-blocks-override", "blocks-per-worker"], default_value_t = 16_384, value_parser = value_parser!(u32).range(1..), help_heading = "Workers")]
    pub blocks: u32,
    /// Tokens of a KV block
    #[arg(long, default_value_t = 64, value_parser = value_parser!(u32).range(1..), help_heading = "Workers")]
    pub block_size: u32,
    /// Requests computed at once by a worker
    #[arg(long, default_value_t = 256, help_heading = "Workers")]
    pub max_num_seqs: u32,
    /// Tokens computed in one step of a worker
    #[arg(long, default_value_t = 8192, help_heading = "Workers")]
    pub max_num_batched_tokens: u32,
    /// Share of the blocks that admission leaves free
    #[arg(long, default_value_t = 0.01, help_heading = "Workers")]
    pub watermark: f64,
    /// Do not find prompts in the cache
    #[arg(long, help_heading = "Workers")]
    pub no_enable_prefix_caching: bool,
    /// Do not compute long prompts in pieces
    #[arg(long, help_heading = "Workers")]
    pub no_enable_chunked_prefill: bool,
    /// Preempt the request that was admitted first, instead of last
    #[arg(long, help_heading = "Workers")]
    pub preempt_first: bool,
    /// How much faster the workers are than the modelled accelerator (on top of --speedup)
    #[arg(long, default_value_t = 1.0, help_heading = "Workers")]
    pub speedup_ratio: f64,
    /// How much faster they decode, on top of that
    #[arg(long, default_value_t = 1.0, help_heading = "Workers")]
    pub decode_speedup_ratio: f64,

    /// How workers are chosen
    #[arg(long, value_enum, default_value_t = Mode::Kv, help_heading = "Router")]
    pub router_mode: Mode,
    /// Run once for each of these
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        value_name = "MODES",
        conflicts_with = "router_mode",
        help_heading = "Router"
    )]
    pub compare: Vec<Mode>,
    /// What a block to prefill costs beside a block to decode
    #[arg(long, visible_alias = "kv-overlap-score-weight", default_value_t = KvRouterConfig::DEFAULT.prefill_load_scale, help_heading = "Router")]
    pub router_kv_overlap_score_weight: f64,
    /// What a new block costs beside one to prefill, on the worker whose cache is the fullest; less on emptier ones
    #[arg(long, default_value_t = KvRouterConfig::DEFAULT.room_weight, help_heading = "Router")]
    pub router_room_weight: f64,
    /// How prompts count while they are computed: none, in full until the first token; measured, a worker's oldest less and
    /// less, at the worker's speed so far
    #[arg(long, value_name = "MODEL", default_value_t = KvRouterConfig::DEFAULT.prefill_load_model, help_heading = "Router")]
    #[serde(serialize_with = "shown")]
    pub router_prefill_load_model: PrefillLoadModel,
    /// 0 takes the cheapest worker; above, the higher, the more even the choice
    #[arg(long, default_value_t = KvRouterConfig::DEFAULT.temperature, help_heading = "Router")]
    pub router_temperature: f64,
    /// How much busier than the others a worker may become for the sake of its cache; 0: without bound
    #[arg(long, default_value_t = KvRouterConfig::DEFAULT.max_imbalance.unwrap_or(0.0), help_heading = "Router")]
    pub router_max_imbalance: f64,
    /// Requests wait while all workers have more prompt tokens outstanding than this many of their largest steps
    #[arg(long, value_name = "STEPS", help_heading = "Router")]
    pub router_queue_threshold: Option<f64>,
    /// Which of those that wait is next: fcfs, lcfs, wspt or edf
    #[arg(long, value_name = "POLICY", default_value_t = QueuePolicy::default(), help_heading = "Router")]
    #[serde(serialize_with = "shown")]
    pub router_queue_policy: QueuePolicy,
    /// YAML: classes that share the queue by weight; what a rule says of models and priorities, a trace does not have
    #[arg(long, value_name = "FILE", help_heading = "Router")]
    pub router_policy_config: Option<PathBuf>,
    /// Workers take no more requests over this share of their KV blocks
    #[arg(long, value_name = "SHARE", help_heading = "Router")]
    pub active_decode_blocks_threshold: Option<f64>,
    /// Workers take no more requests over so many prompt tokens that are still to be computed
    #[arg(long, value_name = "TOKENS", help_heading = "Router")]
    pub active_prefill_tokens_threshold: Option<u64>,
    /// The same, in steps of the worker's largest batch
    #[arg(long, value_name = "STEPS", help_heading = "Router")]
    pub active_prefill_tokens_threshold_frac: Option<f64>,
    /// Do not count the blocks of running requests
    #[arg(long, help_heading = "Router")]
    pub no_router_track_active_blocks: bool,
    /// Count the blocks of answers as they grow
    #[arg(long, help_heading = "Router")]
    pub router_track_output_blocks: bool,
    /// Count every request's blocks for itself
    #[arg(long, help_heading = "Router")]
    pub no_router_assume_kv_reuse: bool,
    /// Know what workers have cached by what was sent to them, not by their KV events
    #[arg(long, help_heading = "Router")]
    pub no_router_kv_events: bool,
    /// Without KV events: what was sent counts as cached for so many simulated seconds, whatever the speed-up
    #[arg(long, value_name = "SECONDS", default_value_t = 120.0, help_heading = "Router")]
    pub router_ttl_secs: f64,
    /// Blocks that are remembered of what was sent, over all workers; beyond, the oldest go
    #[arg(long, value_name = "BLOCKS", default_value_t = ApproximateConfig::REFERENCE.max_blocks, help_heading = "Router")]
    pub router_max_tree_size: usize,
    /// The share of those that is left then
    #[arg(long, value_name = "SHARE", default_value_t = ApproximateConfig::REFERENCE.prune_target_ratio, help_heading = "Router")]
    pub router_prune_target_ratio: f64,
    /// Without KV events: what was sent goes after a time (ttl), or when its worker has no room for more (lru)
    #[arg(long, value_name = "POLICY", default_value_t = CachePolicy::Ttl, help_heading = "Router")]
    #[serde(serialize_with = "shown")]
    pub router_approximate_cache_policy: CachePolicy,
    /// With KV events: what was sent counts as cached for so long before its events come
    #[arg(long, value_name = "SECONDS", help_heading = "Router")]
    pub router_predicted_ttl_secs: Option<f64>,
    /// From a change in a worker's cache to the router's index
    #[arg(long, value_name = "MS", default_value_t = 1.0, help_heading = "Router")]
    pub event_delay_ms: f64,

    /// Equal seeds give equal results
    #[arg(long, default_value_t = 1, help_heading = "Report")]
    pub seed: u64,
    /// Write the report as JSON to a file, or to standard output with "-" (the table then goes to standard error)
    #[arg(long, value_name = "FILE", help_heading = "Report")]
    #[serde(skip)]
    pub json: Option<PathBuf>,
    /// Write a page of plots that needs nothing else
    #[arg(long, value_name = "FILE", help_heading = "Report")]
    #[serde(skip)]
    pub html: Option<PathBuf>,
}

/// The size of the blocks that hash ids of a mooncake trace stand for.
const MOONCAKE_BLOCK_TOKENS: u32 = 512;

impl SimulateArgs {
    /// The run with this router and load.
    ///
    /// # Errors
    /// If a flag makes no sense.
    pub fn setting(&self, mode: Mode, load: f64) -> Result<Setting, SimulateError> {
        let positive = |flag, value: f64| match value {
            value if value.is_finite() && value > 0.0 => Ok(value),
            _ => Err(SimulateError::flag(flag, format!("{value} is not a number above 0"))),
        };
        let speedup = positive("--speedup", self.speedup)?;
        let load = positive("--load", load)?;
        let delay = Duration::try_from_secs_f64(self.event_delay_ms / 1e3)
            .map_err(|_| SimulateError::flag("--event-delay-ms", "give a number of milliseconds from 0"))?;
        let engine = MockerConfig {
            num_gpu_blocks: self.blocks,
            block_size: self.block_size,
            data_parallel_size: self.data_parallel_size,
            max_num_seqs: self.max_num_seqs,
            max_num_batched_tokens: self.max_num_batched_tokens,
            enable_prefix_caching: !self.no_enable_prefix_caching,
            enable_chunked_prefill: !self.no_enable_chunked_prefill,
            watermark: self.watermark,
            speedup_ratio: positive("--speedup-ratio", self.speedup_ratio)? * speedup,
            decode_speedup_ratio: self.decode_speedup_ratio,
            preemption_mode: if self.preempt_first { PreemptionPolicy::Fifo } else { PreemptionPolicy::Lifo },
            ..MockerConfig::default()
        };
        engine.validate()?;
        let kv = KvRouterConfig {
            room_weight: self.router_room_weight,
            prefill_load_model: self.router_prefill_load_model,
            temperature: self.router_temperature,
            track_active_blocks: !self.no_router_track_active_blocks,
            track_output_blocks: self.router_track_output_blocks,
            assume_kv_reuse: !self.no_router_assume_kv_reuse,
            caches: self.caches()?,
            max_imbalance: (self.router_max_imbalance > 0.0).then_some(self.router_max_imbalance),
            busy: BusyThresholds {
                active_decode_blocks: self.active_decode_blocks_threshold,
                active_prefill_tokens: self.active_prefill_tokens_threshold,
                active_prefill_tokens_frac: self.active_prefill_tokens_threshold_frac,
            },
            queue: QueueConfig {
                threshold: self.router_queue_threshold,
                policy: self.router_queue_policy,
                classes: self.classes()?,
                ..QueueConfig::OFF
            },
            ..KvRouterConfig::DEFAULT
        }
        .with_overlap_score_weight(self.router_kv_overlap_score_weight);
        kv.validate()?;
        Ok(Setting {
            workers: self.workers,
            engine,
            mode,
            kv,
            event_delay: delay,
            speedup: speedup * load,
            trace_block_tokens: self
                .trace_block_tokens
                .unwrap_or_else(|| (MOONCAKE_BLOCK_TOKENS / self.shrink).max(1)),
            exact_lengths: self.exact_lengths,
            template_tokens: self.template_tokens,
            shrink: self.shrink,
            output_tokens: self.output_tokens,
            seed: self.seed,
        })
    }

    fn classes(&self) -> Result<Option<Arc<PolicyClasses>>, SimulateError> {
        let Some(path) = &self.router_policy_config else { return Ok(None) };
        let wrong = |why: &dyn std::fmt::Display| {
            SimulateError::flag("--router-policy-config", format!("{}: {why}", path.display()))
        };
        let text = std::fs::read_to_string(path).map_err(|error| wrong(&error))?;
        Ok(Some(Arc::new(PolicyClasses::from_yaml(&text).map_err(|error| wrong(&error))?)))
    }

    fn caches(&self) -> Result<CacheSource, SimulateError> {
        let seconds = |flag, seconds: f64| {
            Duration::try_from_secs_f64(seconds)
                .map_err(|_| SimulateError::flag(flag, "give a number of seconds above 0"))
        };
        let memory = ApproximateConfig {
            policy: self.router_approximate_cache_policy,
            ttl: seconds("--router-ttl-secs", self.router_ttl_secs)?,
            max_blocks: self.router_max_tree_size,
            prune_target_ratio: self.router_prune_target_ratio,
        };
        let predicted = self.router_predicted_ttl_secs.map(|ttl| seconds("--router-predicted-ttl-secs", ttl));
        Ok(CacheSource::new(!self.no_router_kv_events, memory, predicted.transpose()?)?)
    }
}

fn shown<S: serde::Serializer>(value: &impl std::fmt::Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}
