//! Blocks that no request owns any more, but that somebody still touches.

use std::time::Duration;

use smallvec::SmallVec;

use crate::{BlockId, BlockPool};

/// Names a reader of a request's blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HoldId(pub(crate) u64);

#[derive(Clone, Copy, Debug)]
pub(crate) struct Hold {
    pub(crate) id: HoldId,
    pub(crate) deadline: Duration,
}

struct Entry {
    group: usize,
    blocks: Vec<BlockId>,
    /// Steps up to this one may touch them.
    until_step: u64,
    holds: SmallVec<[Hold; 1]>,
}

/// Their number is bounded by the pool: each entry has a block.
#[derive(Default)]
pub(crate) struct HeldBlocks {
    entries: Vec<Entry>,
    blocks: usize,
}

impl HeldBlocks {
    /// Keeps blocks until the step is committed and all holds are let go.
    pub(crate) fn keep(&mut self, group: usize, blocks: Vec<BlockId>, until_step: u64, holds: &[Hold]) {
        self.blocks += blocks.len();
        self.entries.push(Entry { group, blocks, until_step, holds: SmallVec::from_slice(holds) });
    }

    /// Blocks held, over all groups.
    pub(crate) fn len(&self) -> usize {
        self.blocks
    }

    /// Blocks of a group that only a step in flight keeps: they come back without anybody's help.
    pub(crate) fn returning(&self, group: usize) -> usize {
        let soon = |entry: &&Entry| entry.group == group && entry.holds.is_empty();
        self.entries.iter().filter(soon).map(|entry| entry.blocks.len()).sum()
    }

    pub(crate) fn let_go(&mut self, hold: HoldId) {
        for entry in &mut self.entries {
            entry.holds.retain(|other| other.id != hold);
        }
    }

    pub(crate) fn expire(&mut self, now: Duration) {
        for entry in &mut self.entries {
            entry.holds.retain(|hold| hold.deadline > now);
        }
    }

    pub(crate) fn next_deadline(&self) -> Option<Duration> {
        self.entries.iter().flat_map(|entry| &entry.holds).map(|hold| hold.deadline).min()
    }

    /// Gives back what nobody touches any more.
    pub(crate) fn release(&mut self, committed_step: u64, pool: &mut impl BlockPool) {
        if self.entries.is_empty() {
            return;
        }
        let blocks = &mut self.blocks;
        self.entries.retain(|entry| {
            let touched = entry.until_step > committed_step || !entry.holds.is_empty();
            if !touched {
                *blocks -= entry.blocks.len();
                pool.release(entry.group, &entry.blocks);
            }
            touched
        });
    }
}
