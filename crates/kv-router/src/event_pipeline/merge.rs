//! Which changes are one event: fewer and longer ones cost routers less.

use dynamo_engine_api::KvCacheEventData;

/// Blocks of a merged event at most, looked at after each change that was added.
const MAX_MERGED_BLOCKS: usize = 128;

pub(super) fn blocks(data: &KvCacheEventData) -> usize {
    match data {
        KvCacheEventData::Stored { blocks, .. } => blocks.len(),
        KvCacheEventData::Removed { block_hashes } => block_hashes.len(),
        KvCacheEventData::Cleared => 0,
    }
}

pub(super) fn is_full(data: &KvCacheEventData) -> bool {
    blocks(data) >= MAX_MERGED_BLOCKS
}

/// Whether `next` goes on where `data` ends.
pub(super) fn goes_on(data: &KvCacheEventData, next: &KvCacheEventData) -> bool {
    match (data, next) {
        (KvCacheEventData::Stored { blocks, .. }, KvCacheEventData::Stored { parent_hash, .. }) => {
            parent_hash.is_some() && blocks.last().map(|last| last.block_hash) == *parent_hash
        }
        (KvCacheEventData::Removed { .. }, KvCacheEventData::Removed { .. }) => true,
        _ => false,
    }
}

/// Adds a change that goes on.
pub(super) fn append(data: &mut KvCacheEventData, next: &KvCacheEventData) {
    match (data, next) {
        (KvCacheEventData::Stored { blocks, .. }, KvCacheEventData::Stored { blocks: more, .. }) => {
            blocks.extend_from_slice(more);
        }
        (KvCacheEventData::Removed { block_hashes }, KvCacheEventData::Removed { block_hashes: more }) => {
            block_hashes.extend_from_slice(more)
        }
        _ => {}
    }
}
