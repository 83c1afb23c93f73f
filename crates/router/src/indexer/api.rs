//! The JSON of the service. Names and shapes are the ecosystem's.

use std::collections::BTreeMap;

use dynamo_engine_api::DpRank;
use dynamo_kv_router::WorkerRank;
use serde::{Deserialize, Serialize};

use super::registry::ModelKey;

/// The group of those who name none.
pub(super) fn default_group() -> String {
    "default".to_owned()
}

/// `POST /register`.
#[derive(Debug, Deserialize)]
pub(super) struct RegisterBody {
    pub(super) instance_id: u64,
    pub(super) endpoint: String,
    pub(super) model_name: String,
    #[serde(default = "default_group", alias = "tenant_id")]
    pub(super) routing_group: String,
    pub(super) block_size: u32,
    #[serde(default)]
    pub(super) dp_rank: Option<DpRank>,
    #[serde(default)]
    pub(super) replay_endpoint: Option<String>,
}

/// `POST /unregister`.
#[derive(Debug, Deserialize)]
pub(super) struct UnregisterBody {
    pub(super) instance_id: u64,
    pub(super) model_name: String,
    #[serde(default = "default_group", alias = "tenant_id")]
    pub(super) routing_group: String,
    #[serde(default)]
    pub(super) dp_rank: Option<DpRank>,
}

/// `POST /query`.
#[derive(Debug, Deserialize)]
pub(super) struct QueryBody {
    pub(super) token_ids: Vec<u32>,
    pub(super) model_name: String,
    #[serde(default = "default_group", alias = "tenant_id")]
    pub(super) routing_group: String,
    #[serde(default)]
    pub(super) lora_name: Option<String>,
    #[serde(default)]
    pub(super) cache_salt: Option<String>,
}

/// `POST /query_by_hash`. Hashes are those of the blocks' own tokens, signed or not.
#[derive(Debug, Deserialize)]
pub(super) struct QueryByHashBody {
    pub(super) block_hashes: Vec<AnyInt>,
    pub(super) model_name: String,
    #[serde(default = "default_group", alias = "tenant_id")]
    pub(super) routing_group: String,
}

/// 64 bits, whether they were written with a sign or without.
#[derive(Clone, Copy, Debug)]
pub(super) struct AnyInt(pub(super) u64);

impl<'de> Deserialize<'de> for AnyInt {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Bits;
        impl serde::de::Visitor<'_> for Bits {
            type Value = AnyInt;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a 64-bit integer")
            }

            fn visit_u64<E>(self, value: u64) -> Result<AnyInt, E> {
                Ok(AnyInt(value))
            }

            fn visit_i64<E>(self, value: i64) -> Result<AnyInt, E> {
                Ok(AnyInt(value as u64))
            }
        }
        deserializer.deserialize_any(Bits)
    }
}

/// `POST /register_peer` and `/deregister_peer`.
#[derive(Debug, Deserialize)]
pub(super) struct PeerBody {
    pub(super) url: String,
}

/// What a query finds. Numbers are tokens, but for `frequencies`.
#[derive(Debug, Default, Serialize)]
pub(super) struct QueryAnswer {
    /// By instance and rank: leading tokens in device memory.
    pub(super) scores: BTreeMap<u64, BTreeMap<DpRank, u64>>,
    /// First block first: how often the blocks that somebody holds were asked for before, within the window. It ends
    /// before the first block that was not, and is empty where uses are not counted.
    pub(super) frequencies: Vec<u32>,
    pub(super) instances: BTreeMap<u64, InstanceMatch>,
}

/// What one instance holds; of several ranks, the best.
#[derive(Debug, Default, Serialize)]
pub(super) struct InstanceMatch {
    /// On any tier.
    pub(super) longest_matched: u64,
    /// In device memory.
    pub(super) gpu: u64,
    pub(super) dp: BTreeMap<DpRank, u64>,
    /// In device or host memory.
    pub(super) cpu: u64,
    /// On any tier.
    pub(super) disk: u64,
}

/// One entry of `GET /workers`.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct WorkerEntry {
    pub(super) instance_id: u64,
    #[serde(default)]
    pub(super) source: String,
    #[serde(default)]
    pub(super) status: String,
    pub(super) model_name: String,
    #[serde(default = "default_group")]
    pub(super) routing_group: String,
    pub(super) block_size: u32,
    pub(super) endpoints: BTreeMap<DpRank, String>,
    #[serde(default)]
    pub(super) listeners: BTreeMap<DpRank, ListenerEntry>,
}

/// A listener, as `GET /workers` shows it.
#[derive(Debug, Deserialize, Serialize)]
pub(super) struct ListenerEntry {
    pub(super) endpoint: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) replay_endpoint: Option<String>,
    #[serde(default)]
    pub(super) status: String,
    /// The engine's number of the last batch that the index has; our own addition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) last_batch: Option<u64>,
}

impl WorkerEntry {
    /// The last batch of each rank of which it is known.
    pub(super) fn last_batches(&self) -> impl Iterator<Item = (ModelKey, WorkerRank, u64)> + '_ {
        self.listeners.iter().filter_map(|(&dp_rank, listener)| {
            let key = key(self.model_name.clone(), self.routing_group.clone());
            Some((key, WorkerRank { worker_id: self.instance_id, dp_rank }, listener.last_batch?))
        })
    }
}

/// Which index a body means.
pub(super) fn key(model_name: String, routing_group: String) -> ModelKey {
    ModelKey { model_name, routing_group }
}
