//! The blocks of a slot as events that can be applied again.

use dynamo_engine_api::{ExternalBlockHash, KvCacheEventData, StoredBlock};

/// Blocks in one event of a dump: large enough that the event's own cost vanishes, small enough to decode at once.
const BLOCKS_PER_EVENT: usize = 1024;

/// The events under construction. Places are whatever numbers them in the index.
pub(super) struct Dump<P> {
    events: Vec<KvCacheEventData>,
    /// The place that the last block stands for.
    last: Option<P>,
}

impl<P: PartialEq> Dump<P> {
    pub(super) fn new() -> Self {
        Self { events: Vec::new(), last: None }
    }

    /// A block at `place`, to which later blocks may be added.
    pub(super) fn push(&mut self, place: P, parent: P, parent_name: Option<u64>, block: StoredBlock) {
        if let Some(KvCacheEventData::Stored { blocks, .. }) = self.events.last_mut()
            && self.last.as_ref() == Some(&parent)
            && blocks.len() < BLOCKS_PER_EVENT
        {
            blocks.push(block);
        } else {
            self.push_event(parent_name, block);
        }
        self.last = Some(place);
    }

    /// A further name of a block, in an event of its own.
    pub(super) fn push_alone(&mut self, parent_name: Option<u64>, block: StoredBlock) {
        self.push_event(parent_name, block);
        self.last = None;
    }

    fn push_event(&mut self, parent_name: Option<u64>, block: StoredBlock) {
        let parent_hash = parent_name.map(ExternalBlockHash);
        self.events.push(KvCacheEventData::Stored { parent_hash, blocks: vec![block] });
    }

    /// The events; `fillers` are names that only led to others and are removed again.
    pub(super) fn end(mut self, fillers: impl Iterator<Item = u64>) -> Vec<KvCacheEventData> {
        let block_hashes: Vec<_> = fillers.map(ExternalBlockHash).collect();
        if !block_hashes.is_empty() {
            self.events.push(KvCacheEventData::Removed { block_hashes });
        }
        self.events
    }
}
