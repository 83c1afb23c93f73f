//! Which blocks hold a sequence.

use crate::BlockId;

/// The blocks of one sequence in one group, in order. Leading ones may be gone (out of a sliding window).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BlockTable {
    first: usize,
    blocks: Vec<BlockId>,
}

impl BlockTable {
    /// The index, within the sequence, of the first block that is still there.
    pub fn first(&self) -> usize {
        self.first
    }

    /// Blocks of the sequence up to the end of the table, those that are gone included.
    pub fn end(&self) -> usize {
        self.first + self.blocks.len()
    }

    /// The blocks that are there, the first of them at [`first`](Self::first).
    pub fn blocks(&self) -> &[BlockId] {
        &self.blocks
    }

    /// The block at an index within the sequence.
    pub fn get(&self, index: usize) -> Option<BlockId> {
        self.blocks.get(index.checked_sub(self.first)?).copied()
    }

    /// For pools: starts an empty table at a later block, for a group that does not need those before.
    pub fn skip_to(&mut self, first: usize) {
        debug_assert!(self.blocks.is_empty());
        self.first = first;
    }

    /// For pools: the list to append to.
    pub fn blocks_mut(&mut self) -> &mut Vec<BlockId> {
        &mut self.blocks
    }

    pub(crate) fn replace(&mut self, index: usize, block: BlockId) {
        let index = index - self.first;
        self.blocks[index] = block;
    }

    /// Cuts the blocks from `index` on off, in order.
    pub(crate) fn cut(&mut self, index: usize) -> Vec<BlockId> {
        let at = index.saturating_sub(self.first).min(self.blocks.len());
        self.blocks.split_off(at)
    }

    /// Takes the blocks before `index` away, in order.
    pub(crate) fn drop_before(&mut self, index: usize) -> Vec<BlockId> {
        let count = index.saturating_sub(self.first).min(self.blocks.len());
        self.first += count;
        self.blocks.drain(..count).collect()
    }

    /// Empties the table.
    pub(crate) fn take(&mut self) -> Vec<BlockId> {
        self.first = 0;
        std::mem::take(&mut self.blocks)
    }
}
