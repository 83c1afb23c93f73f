//! What storage that workers share is worth: flags and variables.

use dynamo_kv_router::SharedCacheType;
use dynamo_runtime::config::{Key, Layers};

const TYPE: Key = Key::new("shared-cache-type").env(&["DYN_SHARED_CACHE_TYPE"]).expects("none or hicache");
const MULTIPLIER: Key =
    Key::new("shared-cache-multiplier").env(&["DYN_SHARED_CACHE_MULTIPLIER"]).expects("a number from 0 to 1");

/// Flags of shared storage.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct SharedCacheArgs {
    /// kv: storage from which each worker loads what any of them put there, as they tell by KV events of external blocks:
    /// none or hicache [env: DYN_SHARED_CACHE_TYPE] [default: none]
    #[arg(long, value_name = "TYPE")]
    shared_cache_type: Option<SharedCacheType>,
    /// kv: what a block there takes off the prompt of a worker that does not have it nearer, 0 to 1
    /// [env: DYN_SHARED_CACHE_MULTIPLIER] [default: 0.5 with hicache]
    #[arg(long, value_name = "SHARE")]
    shared_cache_multiplier: Option<f64>,
}

impl SharedCacheArgs {
    /// What a block in shared storage is worth; 0 without such storage.
    pub(super) fn resolve(&self, layers: &mut Layers<'_>) -> anyhow::Result<f64> {
        let kind = layers.value(&TYPE, self.shared_cache_type, SharedCacheType::None)?;
        Ok(kind.multiplier(layers.optional(&MULTIPLIER, self.shared_cache_multiplier)?)?)
    }
}
