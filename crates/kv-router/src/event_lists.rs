//! Memory of events that are done with, for events to come.

use dynamo_engine_api::{ExternalBlockHash, KvCacheEventData, StoredBlock};

/// Lists kept, of each kind: as many as a message of the event plane has events.
const KEPT_LISTS: usize = 128;

/// The longest list that is kept, in elements; with the above, at most 3 MiB lie idle.
const KEPT_CAPACITY: usize = 1024;

/// Empty lists with room in them.
#[derive(Default)]
pub(crate) struct EventLists {
    blocks: Vec<Vec<StoredBlock>>,
    hashes: Vec<Vec<ExternalBlockHash>>,
}

impl EventLists {
    pub(crate) fn blocks(&mut self) -> Vec<StoredBlock> {
        self.blocks.pop().unwrap_or_default()
    }

    pub(crate) fn hashes(&mut self) -> Vec<ExternalBlockHash> {
        self.hashes.pop().unwrap_or_default()
    }

    pub(crate) fn recycle(&mut self, data: KvCacheEventData) {
        match data {
            KvCacheEventData::Stored { blocks, .. } => keep(&mut self.blocks, blocks),
            KvCacheEventData::Removed { block_hashes } => keep(&mut self.hashes, block_hashes),
            KvCacheEventData::Cleared => {}
        }
    }
}

fn keep<T>(kept: &mut Vec<Vec<T>>, mut list: Vec<T>) {
    if kept.len() < KEPT_LISTS && (1..=KEPT_CAPACITY).contains(&list.capacity()) {
        list.clear();
        kept.push(list);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_kept_is_bounded() {
        let mut lists = EventLists::default();
        let stored =
            |capacity| KvCacheEventData::Stored { parent_hash: None, blocks: Vec::with_capacity(capacity) };
        lists.recycle(stored(KEPT_CAPACITY * 2));
        lists.recycle(stored(0));
        assert!(lists.blocks.is_empty());
        for _ in 0..2 * KEPT_LISTS {
            lists.recycle(stored(1));
        }
        assert_eq!(lists.blocks.len(), KEPT_LISTS);
    }
}
