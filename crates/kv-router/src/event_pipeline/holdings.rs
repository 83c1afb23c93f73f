//! How often each block is stored. Engines keep several copies of a block, and tell of each.

use dynamo_engine_api::{ExternalBlockHash, KvCacheEventData};
use rustc_hash::FxHashMap;

/// Blocks that are counted: 64 MiB, and as many blocks of sixteen tokens as 64 million tokens make, more than a rank's
/// memory holds. A block beyond it counts as stored once.
const MAX_COUNTED: usize = 1 << 22;

/// The blocks of one rank.
#[derive(Default)]
pub(super) struct Holdings {
    counts: FxHashMap<ExternalBlockHash, u32>,
}

impl Holdings {
    /// Counts what is stored, and leaves of a removal those blocks of which no copy is left. A block that is not known
    /// is left too.
    pub(super) fn apply(&mut self, data: &mut KvCacheEventData) {
        match data {
            KvCacheEventData::Stored { blocks, .. } => {
                for block in blocks {
                    if let Some(count) = self.counts.get_mut(&block.block_hash) {
                        *count += 1;
                    } else if self.counts.len() < MAX_COUNTED {
                        self.counts.insert(block.block_hash, 1);
                    }
                }
            }
            KvCacheEventData::Removed { block_hashes } => {
                block_hashes.retain(|hash| self.take(*hash));
                self.give_back();
            }
            KvCacheEventData::Cleared => self.counts = FxHashMap::default(),
        }
    }

    /// Whether it is gone.
    fn take(&mut self, hash: ExternalBlockHash) -> bool {
        let Some(count) = self.counts.get_mut(&hash) else { return true };
        *count -= 1;
        let is_gone = *count == 0;
        if is_gone {
            self.counts.remove(&hash);
        }
        is_gone
    }

    fn give_back(&mut self) {
        if self.counts.capacity() > 1024 && self.counts.len() * 8 < self.counts.capacity() {
            self.counts.shrink_to(self.counts.len() * 2);
        }
    }
}
