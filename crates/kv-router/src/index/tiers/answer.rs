//! What a query finds below the devices.

use crate::{
    Slot,
    index::{Match, MatchBuffer},
};

/// What a slot has of a query when lower tiers count too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TierMatch {
    /// Who.
    pub slot: Slot,
    /// Leading blocks in device memory.
    pub device_blocks: u32,
    /// Leading blocks in device or host memory; at least `device_blocks`.
    pub host_blocks: u32,
    /// Leading blocks on any tier; at least `host_blocks`.
    pub any_blocks: u32,
}

impl MatchBuffer {
    /// Slots with blocks on lower tiers that belong to the query, by slot index. Some of them may have no block of it on
    /// the device; of slots that are not here all tiers have what the device has.
    pub fn lower_tiers(&self) -> &[TierMatch] {
        &self.lower
    }

    /// What one of the [`matches`](Self::matches) has, on the device and below.
    pub fn tiers_of(&self, found: &Match) -> TierMatch {
        let Match { slot, device_blocks } = *found;
        let on_device =
            TierMatch { slot, device_blocks, host_blocks: device_blocks, any_blocks: device_blocks };
        place(&self.lower, slot).map_or(on_device, |at| self.lower[at])
    }

    /// What a slot has of the query, on the device and below. It looks through all matches: for each of them there is
    /// [`Self::tiers_of`].
    pub fn tiers(&self, slot: Slot) -> TierMatch {
        self.tiers_of(&Match { slot, device_blocks: self.device_blocks(slot) })
    }

    /// Leading blocks of the query in external storage that workers share, whichever of them told of each block. A block
    /// is there as long as some rank that is known says so: a rank that leaves or is cleared takes what it alone told of,
    /// as soon as its events' writer has come to that.
    pub fn shared_blocks(&self) -> u32 {
        self.shared
    }

    /// Says what is in shared storage, for indexes outside of this crate.
    pub fn set_shared_blocks(&mut self, blocks: u32) {
        self.shared = blocks;
    }

    /// Adds what a slot has below; the answer is complete with [`Self::sort_lower`].
    pub(crate) fn push_lower(&mut self, found: TierMatch) {
        self.lower.push(found);
    }

    /// Brings what slots have below into the order in which it is looked for.
    pub(crate) fn sort_lower(&mut self) {
        self.lower.sort_unstable_by_key(|found| order(found.slot));
    }

    /// Lets lower tiers have at least what the device has.
    pub(crate) fn raise_lower(&mut self) {
        if self.lower.is_empty() {
            return;
        }
        for found in &self.matches {
            if let Some(at) = place(&self.lower, found.slot) {
                let tiers = &mut self.lower[at];
                tiers.device_blocks = tiers.device_blocks.max(found.device_blocks);
                tiers.host_blocks = tiers.host_blocks.max(tiers.device_blocks);
                tiers.any_blocks = tiers.any_blocks.max(tiers.host_blocks);
            }
        }
    }
}

fn place(lower: &[TierMatch], slot: Slot) -> Option<usize> {
    lower.binary_search_by_key(&order(slot), |found| order(found.slot)).ok()
}

/// The order of slots in an answer; of two owners of an index, that of their generations.
pub(super) fn order(slot: Slot) -> (usize, Slot) {
    (slot.index(), slot)
}
