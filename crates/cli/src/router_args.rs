//! How requests are routed: flags and variables.

mod caches;
mod index_place;
mod queue;
mod shared_cache;

use std::{num::NonZeroUsize, time::Duration};

use caches::CacheArgs;
use dynamo_kv_router::{
    AffinityConfig, AffinityMode, BusyThresholds, IndexerKind, KvRouterConfig, LaneConfig, PrefillLoadModel,
};
use dynamo_llm::{RouterConfig, RouterMode};
use dynamo_runtime::config::{ConfigError, Key, Layers};
use index_place::IndexPlaceArgs;
use queue::QueueArgs;
use shared_cache::SharedCacheArgs;

const NUMBER: &str = "a number of 0 or more";
const SWITCH: &str = "true or false";

const MODE: Key = Key::new("router-mode")
    .env(&["DYN_ROUTER_MODE"])
    .expects("round-robin, random, least-loaded, power-of-two, kv or direct");
const WEIGHT: Key = Key::new("router-kv-overlap-score-weight")
    .env(&["DYN_ROUTER_KV_OVERLAP_SCORE_WEIGHT"])
    .deprecated(&["DYN_KV_OVERLAP_SCORE_WEIGHT", "DYN_OVERLAP_SCORE_WEIGHT"])
    .expects(NUMBER);
const CREDIT: Key =
    Key::new("router-kv-overlap-score-credit").env(&["DYN_ROUTER_KV_OVERLAP_SCORE_CREDIT"]).expects(NUMBER);
const CREDIT_DECAY: Key = Key::new("router-kv-overlap-score-credit-decay")
    .env(&["DYN_ROUTER_KV_OVERLAP_SCORE_CREDIT_DECAY"])
    .expects(NUMBER);
const LOAD_SCALE: Key =
    Key::new("router-prefill-load-scale").env(&["DYN_ROUTER_PREFILL_LOAD_SCALE"]).expects(NUMBER);
const REQUEST_WEIGHT: Key = Key::new("router-decode-active-request-weight")
    .env(&["DYN_ROUTER_DECODE_ACTIVE_REQUEST_WEIGHT"])
    .expects(NUMBER);
const HOST_WEIGHT: Key =
    Key::new("router-host-cache-hit-weight").env(&["DYN_ROUTER_HOST_CACHE_HIT_WEIGHT"]).expects(NUMBER);
const DISK_WEIGHT: Key =
    Key::new("router-disk-cache-hit-weight").env(&["DYN_ROUTER_DISK_CACHE_HIT_WEIGHT"]).expects(NUMBER);
const ROOM_WEIGHT: Key = Key::new("router-room-weight").env(&["DYN_ROUTER_ROOM_WEIGHT"]).expects(NUMBER);
const TEMPERATURE: Key = Key::new("router-temperature").env(&["DYN_ROUTER_TEMPERATURE"]).expects(NUMBER);
const TRACK_ACTIVE: Key =
    Key::new("router-track-active-blocks").env(&["DYN_ROUTER_TRACK_ACTIVE_BLOCKS"]).expects(SWITCH);
const TRACK_OUTPUT: Key =
    Key::new("router-track-output-blocks").env(&["DYN_ROUTER_TRACK_OUTPUT_BLOCKS"]).expects(SWITCH);
const TRACK_PREFILL: Key =
    Key::new("router-track-prefill-tokens").env(&["DYN_ROUTER_TRACK_PREFILL_TOKENS"]).expects(SWITCH);
const PREFILL_LOAD_MODEL: Key =
    Key::new("router-prefill-load-model").env(&["DYN_ROUTER_PREFILL_LOAD_MODEL"]).expects(
        "none or measured (ais and aic need a predictor that is not a part of this program: use measured)",
    );
const ASSUME_REUSE: Key =
    Key::new("router-assume-kv-reuse").env(&["DYN_ROUTER_ASSUME_KV_REUSE"]).expects(SWITCH);
const MAX_IMBALANCE: Key = Key::new("router-max-imbalance")
    .env(&["DYN_ROUTER_MAX_IMBALANCE"])
    .expects("a number of 1 or more, or 0 for no bound");
const INDEXER: Key =
    Key::new("router-indexer").env(&["DYN_ROUTER_INDEXER"]).expects("run, radix, concurrent or positional");
const EVENT_THREADS: Key =
    Key::new("router-event-threads").env(&["DYN_ROUTER_EVENT_THREADS"]).expects("a number of 1 or more");
const MIN_WORKERS: Key = Key::new("router-min-initial-workers")
    .env(&["DYN_ROUTER_MIN_INITIAL_WORKERS"])
    .expects("a whole number of 0 or more");
const REPLICA_SYNC: Key = Key::new("router-replica-sync").env(&["DYN_ROUTER_REPLICA_SYNC"]).expects(SWITCH);
const SESSION_TTL: Key = Key::new("router-session-affinity-ttl-secs")
    .env(&["DYN_ROUTER_SESSION_AFFINITY_TTL_SECS"])
    .expects("seconds, at least 1");
const SESSION_MODE: Key = Key::new("router-session-affinity-mode")
    .env(&["DYN_ROUTER_SESSION_AFFINITY_MODE"])
    .expects("hard or soft");
const BUSY_BLOCKS: Key = Key::new("active-decode-blocks-threshold")
    .env(&["DYN_ACTIVE_DECODE_BLOCKS_THRESHOLD"])
    .expects("a number from 0 to 1");
const BUSY_TOKENS: Key = Key::new("active-prefill-tokens-threshold")
    .env(&["DYN_ACTIVE_PREFILL_TOKENS_THRESHOLD"])
    .expects("a whole number");
const BUSY_STEPS: Key = Key::new("active-prefill-tokens-threshold-frac")
    .env(&["DYN_ACTIVE_PREFILL_TOKENS_THRESHOLD_FRAC"])
    .expects(NUMBER);
/// The variable alone, as the incumbent has it; what cannot be used is passed over with a warning.
const REQUEST_EXPIRY: &str = "DYN_ROUTER_ACTIVE_REQUEST_EXPIRY_SECS";

/// Flags of the router.
#[derive(Clone, Debug, Default, clap::Args)]
#[command(next_help_heading = "Routing")]
pub(crate) struct RouterArgs {
    /// How a worker is chosen: round-robin, random, least-loaded, power-of-two, kv or direct
    /// [env: DYN_ROUTER_MODE] [default: round-robin]
    #[arg(long, value_name = "MODE")]
    router_mode: Option<RouterMode>,
    /// kv: what a block to compute costs beside a block to hold; 0 ignores caches [default: 4]
    #[arg(long, alias = "kv-overlap-score-weight", value_name = "WEIGHT")]
    router_kv_overlap_score_weight: Option<f64>,
    /// kv: what a cached block takes off the prompt, in blocks; 0 ignores caches [default: 1]
    #[arg(long, value_name = "CREDIT")]
    router_kv_overlap_score_credit: Option<f64>,
    /// kv: how fast that credit fades as a worker gets busier than others [default: 0]
    #[arg(long, value_name = "DECAY")]
    router_kv_overlap_score_credit_decay: Option<f64>,
    /// kv: what a block to compute costs beside a block to hold [default: 4]
    #[arg(long, value_name = "SCALE")]
    router_prefill_load_scale: Option<f64>,
    /// kv: what a running request costs, in blocks [default: 0]
    #[arg(long, value_name = "BLOCKS")]
    router_decode_active_request_weight: Option<f64>,
    /// kv: what a block in host memory takes off the prompt [default: 0.75]
    #[arg(long, value_name = "WEIGHT")]
    router_host_cache_hit_weight: Option<f64>,
    /// kv: what a block on disk takes off the prompt [default: 0.25]
    #[arg(long, value_name = "WEIGHT")]
    router_disk_cache_hit_weight: Option<f64>,
    /// kv: what a new block costs beside one to compute, on the worker whose cache is the fullest; less on emptier ones
    /// [env: DYN_ROUTER_ROOM_WEIGHT] [default: 0.5]
    #[arg(long, value_name = "WEIGHT")]
    router_room_weight: Option<f64>,
    /// kv: 0 takes the cheapest worker, more spreads the choice [env: DYN_ROUTER_TEMPERATURE] [default: 0]
    #[arg(long, value_name = "T")]
    router_temperature: Option<f64>,
    /// kv: do not count the blocks of running requests
    #[arg(long, alias = "no-track-active-blocks")]
    no_router_track_active_blocks: bool,
    /// kv: count the blocks of answers as they grow
    #[arg(long, alias = "track-output-blocks")]
    router_track_output_blocks: bool,
    /// kv: do not count the prompt tokens that are still to be computed
    #[arg(long)]
    no_router_track_prefill_tokens: bool,
    /// kv: how prompts count while they are computed: none, in full until the first token; measured, a worker's oldest less
    /// and less, at the worker's speed so far [env: DYN_ROUTER_PREFILL_LOAD_MODEL] [default: none]
    #[arg(long, value_name = "MODEL")]
    router_prefill_load_model: Option<PrefillLoadModel>,
    /// kv: count every request's blocks for itself
    #[arg(long, alias = "no-assume-kv-reuse")]
    no_router_assume_kv_reuse: bool,
    /// kv: how much busier than others a worker may become for its cache; 0: without bound [default: 2]
    #[arg(long, value_name = "FACTOR")]
    router_max_imbalance: Option<f64>,
    #[command(flatten)]
    queue: QueueArgs,
    /// kv: what keeps who holds which blocks: run, radix, concurrent or positional [env: DYN_ROUTER_INDEXER]
    /// [default: run, or radix with one thread for events]
    #[arg(long, value_name = "INDEX")]
    router_indexer: Option<IndexerKind>,
    /// kv: threads that apply KV events, where the index can have several (concurrent, positional)
    /// [env: DYN_ROUTER_EVENT_THREADS] [default: 4]
    #[arg(long, value_name = "N")]
    router_event_threads: Option<NonZeroUsize>,
    #[command(flatten)]
    index_place: IndexPlaceArgs,
    #[command(flatten)]
    caches: CacheArgs,
    #[command(flatten)]
    shared_cache: SharedCacheArgs,
    /// Serve a model when so many of its workers have been there at once [env: DYN_ROUTER_MIN_INITIAL_WORKERS] [default: 0]
    #[arg(long, value_name = "N")]
    router_min_initial_workers: Option<usize>,
    /// Tell other routers what is sent to the workers, and count what they send [env: DYN_ROUTER_REPLICA_SYNC]
    #[arg(long)]
    router_replica_sync: bool,
    /// Requests with one x-dynamo-session-id stay with one worker until the session is silent for so long
    #[arg(long, value_name = "SECONDS")]
    router_session_affinity_ttl_secs: Option<f64>,
    /// hard: as long as the worker is there; soft: as long as it takes requests at once [default: hard]
    #[arg(long, value_name = "MODE")]
    router_session_affinity_mode: Option<String>,
    /// Workers take no more requests over this share of their KV blocks
    #[arg(long, value_name = "SHARE")]
    active_decode_blocks_threshold: Option<f64>,
    /// Workers take no more requests over so many prompt tokens that are still to be computed
    #[arg(long, value_name = "TOKENS")]
    active_prefill_tokens_threshold: Option<u64>,
    /// The same, in steps of the worker's largest batch
    #[arg(long, value_name = "STEPS")]
    active_prefill_tokens_threshold_frac: Option<f64>,
}

impl RouterArgs {
    pub(crate) fn resolve(
        &self,
        layers: &mut Layers<'_>,
        default_mode: RouterMode,
    ) -> anyhow::Result<RouterConfig> {
        let default = KvRouterConfig::DEFAULT;
        let scale = default.prefill_load_scale;
        let weight = layers.value(&WEIGHT, self.router_kv_overlap_score_weight, scale)?;
        // The older setting is what the newer ones start from.
        let base = default.with_overlap_score_weight(weight);
        let mut number = |key, flag, default| layers.value(key, flag, default);
        let kv = KvRouterConfig {
            overlap_score_credit: number(
                &CREDIT,
                self.router_kv_overlap_score_credit,
                base.overlap_score_credit,
            )?,
            overlap_score_credit_decay: number(
                &CREDIT_DECAY,
                self.router_kv_overlap_score_credit_decay,
                base.overlap_score_credit_decay,
            )?,
            prefill_load_scale: number(&LOAD_SCALE, self.router_prefill_load_scale, base.prefill_load_scale)?,
            decode_active_request_weight: number(
                &REQUEST_WEIGHT,
                self.router_decode_active_request_weight,
                base.decode_active_request_weight,
            )?,
            host_cache_hit_weight: number(
                &HOST_WEIGHT,
                self.router_host_cache_hit_weight,
                base.host_cache_hit_weight,
            )?,
            disk_cache_hit_weight: number(
                &DISK_WEIGHT,
                self.router_disk_cache_hit_weight,
                base.disk_cache_hit_weight,
            )?,
            room_weight: number(&ROOM_WEIGHT, self.router_room_weight, base.room_weight)?,
            temperature: number(&TEMPERATURE, self.router_temperature, base.temperature)?,
            track_active_blocks: layers.switch(
                &TRACK_ACTIVE,
                self.no_router_track_active_blocks.then_some(false),
                base.track_active_blocks,
            )?,
            track_output_blocks: layers.switch(
                &TRACK_OUTPUT,
                self.router_track_output_blocks.then_some(true),
                base.track_output_blocks,
            )?,
            track_prefill_tokens: layers.switch(
                &TRACK_PREFILL,
                self.no_router_track_prefill_tokens.then_some(false),
                base.track_prefill_tokens,
            )?,
            prefill_load_model: layers.value(
                &PREFILL_LOAD_MODEL,
                self.router_prefill_load_model,
                base.prefill_load_model,
            )?,
            assume_kv_reuse: layers.switch(
                &ASSUME_REUSE,
                self.no_router_assume_kv_reuse.then_some(false),
                base.assume_kv_reuse,
            )?,
            max_imbalance: Some(layers.value(&MAX_IMBALANCE, self.router_max_imbalance, 2.0)?)
                .filter(|&factor| factor != 0.0),
            caches: self.caches.resolve(layers)?,
            shared_cache_multiplier: self.shared_cache.resolve(layers)?,
            busy: self.busy(layers)?,
            queue: self.queue.resolve(layers)?,
            active_request_expiry: request_expiry(layers, base.active_request_expiry),
            max_active_requests: base.max_active_requests,
        };
        kv.validate()?;
        let mode = layers.value(&MODE, self.router_mode, default_mode)?;
        let affinity = self.affinity(layers)?;
        let replica_sync = layers.switch(&REPLICA_SYNC, self.router_replica_sync.then_some(true), false)?;
        let event_threads =
            layers.value(&EVENT_THREADS, self.router_event_threads, LaneConfig::REFERENCE.lanes)?;
        // One thread stands for the plain radix tree, as it did before there was a choice.
        let indexer = if event_threads == NonZeroUsize::MIN { IndexerKind::Radix } else { IndexerKind::Run };
        let indexer = layers.value(&INDEXER, self.router_indexer, indexer)?;
        let min_initial_workers = layers.value(&MIN_WORKERS, self.router_min_initial_workers, 0)?;
        let config = RouterConfig {
            mode,
            kv,
            affinity,
            replica_sync,
            index_place: self.index_place.resolve(layers)?,
            indexer,
            event_threads,
            min_initial_workers,
        };
        config.check_index_place()?;
        Ok(config)
    }

    fn busy(&self, layers: &mut Layers<'_>) -> Result<BusyThresholds, ConfigError> {
        Ok(BusyThresholds {
            active_decode_blocks: layers.optional(&BUSY_BLOCKS, self.active_decode_blocks_threshold)?,
            active_prefill_tokens: layers.optional(&BUSY_TOKENS, self.active_prefill_tokens_threshold)?,
            active_prefill_tokens_frac: layers
                .optional(&BUSY_STEPS, self.active_prefill_tokens_threshold_frac)?,
        })
    }

    fn affinity(&self, layers: &mut Layers<'_>) -> anyhow::Result<Option<AffinityConfig>> {
        let mode =
            layers.value(&SESSION_MODE, self.router_session_affinity_mode.clone(), "hard".to_owned())?;
        let mode: AffinityMode =
            mode.parse().map_err(|error| anyhow::anyhow!("--router-session-affinity-mode: {error}"))?;
        let ttl: Option<f64> = layers.optional(&SESSION_TTL, self.router_session_affinity_ttl_secs)?;
        let Some(seconds) = ttl else { return Ok(None) };
        let ttl = Duration::try_from_secs_f64(seconds).ok().filter(|ttl| *ttl >= Duration::from_secs(1));
        let ttl = ttl.ok_or_else(|| {
            anyhow::anyhow!("--router-session-affinity-ttl-secs must be at least 1, not {seconds}")
        })?;
        Ok(Some(AffinityConfig { ttl, mode }))
    }
}

fn request_expiry(layers: &mut Layers<'_>, default: Duration) -> Duration {
    layers.also_known(&[REQUEST_EXPIRY]);
    let Some(text) = layers.env().get(REQUEST_EXPIRY) else { return default };
    match text.trim().parse() {
        Ok(seconds @ 1..) => Duration::from_secs(seconds),
        _ => {
            tracing::warn!("{REQUEST_EXPIRY} is `{text}`, which is no number of seconds: {default:?} it is");
            default
        }
    }
}

#[cfg(test)]
mod tests;
