//! KV cache events and load reports, in the shapes that the ecosystem's workers send.

use dynamo_tokens::LocalBlockHash;
use serde::{Deserialize, Serialize};

/// A data-parallel rank within a worker.
pub type DpRank = u32;

/// An engine's own identity of a whole prefix; opaque to a router.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ExternalBlockHash(pub u64);

/// One block that came into a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredBlock {
    /// The engine's identity of the prefix that ends with this block.
    pub block_hash: ExternalBlockHash,
    /// The hash of the block's own tokens.
    pub tokens_hash: LocalBlockHash,
}

/// What happened to a cache.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KvCacheEventData {
    /// Blocks that follow one another, the first one after `parent_hash` (none: at the start of a sequence).
    Stored {
        /// The block before the first one.
        parent_hash: Option<ExternalBlockHash>,
        /// First to last.
        blocks: Vec<StoredBlock>,
    },
    /// Blocks that are gone.
    Removed {
        /// Any order.
        block_hashes: Vec<ExternalBlockHash>,
    },
    /// All blocks of the rank are gone.
    Cleared,
}

/// An event with its place in the order of its (worker, rank).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvCacheEvent {
    /// From 1, without gaps.
    pub event_id: u64,
    /// What happened.
    pub data: KvCacheEventData,
    /// The rank that it happened to.
    #[serde(default)]
    pub dp_rank: DpRank,
}

/// Where a block lies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StorageTier {
    /// The accelerator's memory.
    #[default]
    Device,
    /// Pinned host memory.
    HostPinned,
    /// A local disk.
    Disk,
    /// Anything shared between workers.
    External,
}

/// An event as it travels from worker to router.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouterEvent {
    /// The worker, 53 bits.
    pub worker_id: u64,
    /// What happened, and when in the worker's order.
    pub event: KvCacheEvent,
    /// The tier that it happened on.
    #[serde(default)]
    pub storage_tier: StorageTier,
}

/// How busy one rank of an engine is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActiveLoad {
    /// Zero where the publisher fills it in.
    #[serde(default)]
    pub worker_id: u64,
    /// The rank.
    #[serde(default)]
    pub dp_rank: DpRank,
    /// Blocks that running requests hold.
    pub active_decode_blocks: Option<u64>,
    /// Prompt tokens still to be computed.
    pub active_prefill_tokens: Option<u64>,
    /// Blocks in use, cached ones included.
    #[serde(default)]
    pub kv_used_blocks: Option<u64>,
    /// Blocks there are.
    #[serde(default)]
    pub kv_total_blocks: Option<u64>,
    /// Requests that wait to be admitted.
    #[serde(default)]
    pub waiting_requests: u64,
    /// Requests that are being computed.
    #[serde(default)]
    pub running_requests: u64,
}
