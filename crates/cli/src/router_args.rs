//! The flags of routing, for the frontend and for the router as a process of its own.

use dynamo_kv_router::KvRouterConfig;
use dynamo_llm::{RouterConfig, RouterMode};
use dynamo_runtime::config::{Key, Layers};

const MODE: Key =
    Key::new("router-mode").env(&["DYN_ROUTER_MODE"]).expects("round-robin, random, kv or direct");
const WEIGHT: Key = Key::new("router-kv-overlap-score-weight")
    .env(&["DYN_ROUTER_KV_OVERLAP_SCORE_WEIGHT"])
    .deprecated(&["DYN_KV_OVERLAP_SCORE_WEIGHT", "DYN_OVERLAP_SCORE_WEIGHT"])
    .expects("a number of 0 or more");
const TEMPERATURE: Key =
    Key::new("router-temperature").env(&["DYN_ROUTER_TEMPERATURE"]).expects("a number of 0 or more");
const TRACK_ACTIVE: Key =
    Key::new("router-track-active-blocks").env(&["DYN_ROUTER_TRACK_ACTIVE_BLOCKS"]).expects("true or false");
const TRACK_OUTPUT: Key =
    Key::new("router-track-output-blocks").env(&["DYN_ROUTER_TRACK_OUTPUT_BLOCKS"]).expects("true or false");
const ASSUME_REUSE: Key =
    Key::new("router-assume-kv-reuse").env(&["DYN_ROUTER_ASSUME_KV_REUSE"]).expects("true or false");

/// How requests are routed.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct RouterArgs {
    /// How a worker is chosen: round-robin, random, kv or direct [env: DYN_ROUTER_MODE] [default: round-robin]
    #[arg(long, value_name = "MODE")]
    pub(crate) router_mode: Option<RouterMode>,
    /// kv: what a block to compute costs beside a block to hold; 0 ignores caches [default: 1]
    #[arg(long, alias = "kv-overlap-score-weight", value_name = "WEIGHT")]
    pub(crate) router_kv_overlap_score_weight: Option<f64>,
    /// kv: 0 takes the cheapest worker, more spreads the choice [env: DYN_ROUTER_TEMPERATURE] [default: 0]
    #[arg(long, value_name = "T")]
    pub(crate) router_temperature: Option<f64>,
    /// kv: do not count the blocks of running requests
    #[arg(long, alias = "no-track-active-blocks")]
    pub(crate) no_router_track_active_blocks: bool,
    /// kv: count the blocks of answers as they grow
    #[arg(long, alias = "track-output-blocks")]
    pub(crate) router_track_output_blocks: bool,
    /// kv: count every request's blocks for itself
    #[arg(long, alias = "no-assume-kv-reuse")]
    pub(crate) no_router_assume_kv_reuse: bool,
}

impl RouterArgs {
    pub(crate) fn resolve(
        &self,
        layers: &mut Layers<'_>,
        default_mode: RouterMode,
    ) -> anyhow::Result<RouterConfig> {
        let reference = KvRouterConfig::REFERENCE;
        let kv = KvRouterConfig {
            overlap_score_weight: layers.value(
                &WEIGHT,
                self.router_kv_overlap_score_weight,
                reference.overlap_score_weight,
            )?,
            temperature: layers.value(&TEMPERATURE, self.router_temperature, reference.temperature)?,
            track_active_blocks: layers.switch(
                &TRACK_ACTIVE,
                self.no_router_track_active_blocks.then_some(false),
                reference.track_active_blocks,
            )?,
            track_output_blocks: layers.switch(
                &TRACK_OUTPUT,
                self.router_track_output_blocks.then_some(true),
                reference.track_output_blocks,
            )?,
            assume_kv_reuse: layers.switch(
                &ASSUME_REUSE,
                self.no_router_assume_kv_reuse.then_some(false),
                reference.assume_kv_reuse,
            )?,
            ..reference
        };
        kv.validate()?;
        Ok(RouterConfig { mode: layers.value(&MODE, self.router_mode, default_mode)?, kv })
    }
}
