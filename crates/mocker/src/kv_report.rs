//! Changes of a pool as the events that workers send.

use dynamo_engine_api::{ExternalBlockHash, KvCacheEventData, StoredBlock};
use dynamo_scheduler::BlockChange;
use dynamo_tokens::SequenceHash;

/// The events that say the same as `changes`, which are left empty: blocks that follow one another in one event.
pub fn events_of(changes: &mut Vec<BlockChange>) -> Vec<KvCacheEventData> {
    let mut events = Vec::new();
    let mut last_stored: Option<SequenceHash> = None;
    for change in changes.drain(..) {
        match (change, events.last_mut()) {
            (BlockChange::Stored(block), last) => {
                let stored = StoredBlock {
                    block_hash: ExternalBlockHash(block.sequence_hash.0),
                    tokens_hash: block.local_hash,
                };
                match last {
                    Some(KvCacheEventData::Stored { blocks, .. })
                        if block.parent.is_some() && block.parent == last_stored =>
                    {
                        blocks.push(stored);
                    }
                    _ => events.push(KvCacheEventData::Stored {
                        parent_hash: block.parent.map(|hash| ExternalBlockHash(hash.0)),
                        blocks: vec![stored],
                    }),
                }
                last_stored = Some(block.sequence_hash);
            }
            (BlockChange::Removed(hash), Some(KvCacheEventData::Removed { block_hashes })) => {
                block_hashes.push(ExternalBlockHash(hash.0));
            }
            (BlockChange::Removed(hash), _) => {
                events.push(KvCacheEventData::Removed { block_hashes: vec![ExternalBlockHash(hash.0)] });
            }
        }
    }
    events
}
