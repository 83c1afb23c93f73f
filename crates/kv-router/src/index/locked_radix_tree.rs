//! The radix tree of one writer, behind a lock.

use std::{sync::Arc, time::Instant};

use dynamo_engine_api::KvCacheEventData;
use dynamo_tokens::LocalBlockHash;
use parking_lot::RwLock;

use super::{ApplyError, FrequencyWindow, IndexCounts, MatchBuffer, PrefixIndex, RadixTree, SharedIndex};
use crate::Slot;

/// A cheap handle on a [`RadixTree`] that threads share. Queries wait for the event that is being applied.
#[derive(Clone, Default)]
pub struct LockedRadixTree(Arc<RwLock<RadixTree>>);

impl LockedRadixTree {
    /// An empty tree that counts uses; see [`RadixTree::with_frequencies`].
    pub fn with_frequencies(window: FrequencyWindow, now: Instant) -> Self {
        Self(Arc::new(RwLock::new(RadixTree::with_frequencies(window, now))))
    }
}

impl PrefixIndex for LockedRadixTree {
    fn apply(&mut self, slot: Slot, event: &KvCacheEventData) -> Result<(), ApplyError> {
        self.0.write().apply(slot, event)
    }

    fn clear(&mut self, slot: Slot) {
        self.0.write().clear(slot);
    }

    fn find_matches(&self, local: &[LocalBlockHash], out: &mut MatchBuffer) {
        self.0.read().find_matches(local, out);
    }

    fn dump(&self, slot: Slot) -> Vec<KvCacheEventData> {
        self.0.read().dump(slot)
    }

    fn held_blocks(&self, slot: Slot) -> u32 {
        self.0.read().held_blocks(slot)
    }

    fn note_held_blocks(&self, out: &mut MatchBuffer) {
        self.0.read().note_held_blocks(out);
    }

    fn counts(&self) -> IndexCounts {
        self.0.read().counts()
    }
}

impl SharedIndex for LockedRadixTree {
    fn find_matches(&self, local: &[LocalBlockHash], out: &mut MatchBuffer) {
        PrefixIndex::find_matches(self, local, out);
    }

    fn find_matches_at(&self, local: &[LocalBlockHash], now: Instant, out: &mut MatchBuffer) {
        self.0.read().find_matches_at(local, now, out);
    }

    fn held_blocks(&self, slot: Slot) -> u32 {
        PrefixIndex::held_blocks(self, slot)
    }

    fn note_held_blocks(&self, out: &mut MatchBuffer) {
        PrefixIndex::note_held_blocks(self, out);
    }

    fn counts(&self) -> IndexCounts {
        PrefixIndex::counts(self)
    }
}
