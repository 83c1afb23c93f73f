//! How often each block is stored. Engines keep several copies of a block, and tell of each.

use dynamo_engine_api::{ExternalBlockHash, KvCacheEventData, StorageTier};
use rustc_hash::FxHashMap;

/// Blocks that are counted on all tiers: 64 MiB, and as many blocks of sixteen tokens as 64 million tokens make, more
/// than a rank's memory holds. A block beyond it counts as stored once.
const MAX_COUNTED: usize = 1 << 22;

/// The blocks of one rank.
#[derive(Default)]
pub(super) struct Holdings {
    /// By tier; a tier without blocks takes no memory.
    counts: [FxHashMap<ExternalBlockHash, u32>; 4],
}

impl Holdings {
    /// Counts what is stored, and leaves of a removal those blocks of which no copy is left. A block that is not known
    /// is left too.
    ///
    /// A clear concerns all tiers.
    pub(super) fn apply(&mut self, tier: StorageTier, data: &mut KvCacheEventData) {
        match data {
            KvCacheEventData::Stored { blocks, .. } => {
                let all: usize = self.counts.iter().map(FxHashMap::len).sum();
                let counts = &mut self.counts[tier as usize];
                let room = MAX_COUNTED.saturating_sub(all) + counts.len();
                for block in blocks {
                    if let Some(count) = counts.get_mut(&block.block_hash) {
                        *count += 1;
                    } else if counts.len() < room {
                        counts.insert(block.block_hash, 1);
                    }
                }
            }
            KvCacheEventData::Removed { block_hashes } => {
                let counts = &mut self.counts[tier as usize];
                block_hashes.retain(|hash| take(counts, *hash));
                give_back(counts);
            }
            KvCacheEventData::Cleared => *self = Self::default(),
        }
    }
}

/// Whether it is gone.
fn take(counts: &mut FxHashMap<ExternalBlockHash, u32>, hash: ExternalBlockHash) -> bool {
    let Some(count) = counts.get_mut(&hash) else { return true };
    *count -= 1;
    let is_gone = *count == 0;
    if is_gone {
        counts.remove(&hash);
    }
    is_gone
}

fn give_back(counts: &mut FxHashMap<ExternalBlockHash, u32>) {
    if counts.capacity() > 1024 && counts.len() * 8 < counts.capacity() {
        counts.shrink_to(counts.len() * 2);
    }
}
