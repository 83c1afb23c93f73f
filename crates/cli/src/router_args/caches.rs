//! How what workers have cached is known: flags and variables.

use dynamo_kv_router::{ApproximateConfig, CachePolicy, CacheSource};
use dynamo_runtime::config::{Key, Layers};

const KV_EVENTS: Key = Key::new("router-kv-events")
    .env(&["DYN_ROUTER_USE_KV_EVENTS"])
    .deprecated(&["DYN_USE_KV_EVENTS"])
    .expects("true or false");
const TTL: Key = Key::new("router-ttl-secs").env(&["DYN_ROUTER_TTL_SECS"]).expects("seconds");
const MAX_TREE: Key =
    Key::new("router-max-tree-size").env(&["DYN_ROUTER_MAX_TREE_SIZE"]).expects("a number of blocks");
const PRUNE_TARGET: Key = Key::new("router-prune-target-ratio")
    .env(&["DYN_ROUTER_PRUNE_TARGET_RATIO"])
    .expects("a number above 0 and at most 1");
const POLICY: Key = Key::new("router-approximate-cache-policy")
    .env(&["DYN_ROUTER_APPROXIMATE_CACHE_POLICY"])
    .expects("ttl or lru");
const PREDICTED_TTL: Key =
    Key::new("router-predicted-ttl-secs").env(&["DYN_ROUTER_PREDICTED_TTL_SECS"]).expects("seconds");

/// Flags of how caches are known.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct CacheArgs {
    /// kv: know what workers have cached by what was sent to them, not by their KV events [env: DYN_ROUTER_USE_KV_EVENTS=false]
    #[arg(long, alias = "no-kv-events", overrides_with = "router_kv_events")]
    no_router_kv_events: bool,
    /// kv: know what workers have cached by their KV events, as is the default [env: DYN_ROUTER_USE_KV_EVENTS]
    #[arg(long, alias = "kv-events", overrides_with = "no_router_kv_events")]
    router_kv_events: bool,
    /// Without KV events: what was sent counts as cached for so long [env: DYN_ROUTER_TTL_SECS] [default: 120]
    #[arg(long, value_name = "SECONDS")]
    router_ttl_secs: Option<f64>,
    /// Blocks that are remembered of what was sent, over all workers; beyond, the oldest go [default: 1048576]
    #[arg(long, value_name = "BLOCKS")]
    router_max_tree_size: Option<usize>,
    /// The share of those that is left then [default: 0.8]
    #[arg(long, value_name = "SHARE")]
    router_prune_target_ratio: Option<f64>,
    /// Without KV events: what was sent goes after a time (ttl), or with what a rank's card says that it can hold (lru)
    /// [env: DYN_ROUTER_APPROXIMATE_CACHE_POLICY] [default: ttl]
    #[arg(long, value_name = "POLICY")]
    router_approximate_cache_policy: Option<CachePolicy>,
    /// With KV events: what was sent counts as cached for so long before its events come
    /// [env: DYN_ROUTER_PREDICTED_TTL_SECS] [default: not at all]
    #[arg(long, value_name = "SECONDS")]
    router_predicted_ttl_secs: Option<f64>,
}

impl CacheArgs {
    pub(super) fn resolve(&self, layers: &mut Layers<'_>) -> anyhow::Result<CacheSource> {
        let default = ApproximateConfig::REFERENCE;
        let given = match (self.no_router_kv_events, self.router_kv_events) {
            (true, _) => Some(false),
            (_, true) => Some(true),
            _ => None,
        };
        let use_kv_events = layers.switch(&KV_EVENTS, given, true)?;
        let memory = ApproximateConfig {
            policy: layers.value(&POLICY, self.router_approximate_cache_policy, default.policy)?,
            ttl: layers.seconds(&TTL, self.router_ttl_secs, default.ttl)?,
            max_blocks: layers.value(&MAX_TREE, self.router_max_tree_size, default.max_blocks)?,
            prune_target_ratio: layers.value(
                &PRUNE_TARGET,
                self.router_prune_target_ratio,
                default.prune_target_ratio,
            )?,
        };
        let predicted = layers.optional_seconds(&PREDICTED_TTL, self.router_predicted_ttl_secs)?;
        Ok(CacheSource::new(use_kv_events, memory, predicted)?)
    }
}
