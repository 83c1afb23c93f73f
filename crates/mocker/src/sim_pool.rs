//! The simulator's blocks: numbers, and what they would contain.

use dynamo_scheduler::{
    BlockChange, BlockId, BlockPool, BlockTable, FullBlock, LoadState, LoadTicket, PrefixMatch, PrefixQuery,
};
use dynamo_tokens::{BlockSize, SequenceHash, TokenId};
use rustc_hash::FxHashMap;

use crate::{EvictionOrder, LeastRecentlyUsed};

#[derive(Clone, Copy, Debug, Default)]
struct Block {
    references: u32,
    /// Set while the block can be found by its contents.
    contents: Option<SequenceHash>,
}

/// Blocks of one group, with or without prefix caching. It never loads.
#[derive(Debug)]
pub struct SimPool<O = LeastRecentlyUsed> {
    block_size: BlockSize,
    prefix_caching: bool,
    blocks: Vec<Block>,
    /// Blocks without contents that nobody uses.
    free: Vec<u32>,
    cached: FxHashMap<SequenceHash, BlockId>,
    /// Blocks with contents that nobody uses.
    idle: O,
    changes: Vec<BlockChange>,
    /// Of the stored blocks in `changes`, if anybody wants them.
    tokens: Option<Vec<TokenId>>,
}

impl SimPool {
    /// `capacity` blocks that are evicted least recently used first.
    pub fn new(block_size: BlockSize, capacity: u32, prefix_caching: bool) -> Self {
        Self::with_order(block_size, capacity, prefix_caching, LeastRecentlyUsed::new(capacity))
    }
}

impl<O: EvictionOrder> SimPool<O> {
    /// `capacity` blocks that are evicted in the given, empty order.
    pub fn with_order(block_size: BlockSize, capacity: u32, prefix_caching: bool, order: O) -> Self {
        Self {
            block_size,
            prefix_caching,
            blocks: vec![Block::default(); capacity as usize],
            free: (0..capacity).rev().collect(),
            cached: FxHashMap::default(),
            idle: order,
            changes: Vec::new(),
            tokens: None,
        }
    }

    /// Blocks that are in a table, or held.
    pub fn active_blocks(&self) -> usize {
        self.blocks.len() - self.free.len() - self.idle.len()
    }

    /// Blocks that can be found by their contents, in use or not.
    pub fn cached_blocks(&self) -> usize {
        self.cached.len()
    }

    /// Blocks that hold something: in use, or cached.
    pub fn used_blocks(&self) -> usize {
        self.blocks.len() - self.free.len()
    }

    /// The contents that can be found, in no order.
    pub fn contents(&self) -> impl Iterator<Item = SequenceHash> {
        self.cached.keys().copied()
    }

    /// Forgets all contents that nobody uses.
    pub fn clear_idle(&mut self) {
        while let Some(block) = self.idle.pop() {
            self.forget(block);
            self.free.push(block.0);
        }
    }

    /// Whether there are changes to take.
    pub fn has_changes(&self) -> bool {
        !self.changes.is_empty()
    }

    /// Keeps the tokens of stored blocks from now on, until they are taken.
    pub fn keep_tokens(&mut self) {
        self.tokens = Some(Vec::new());
    }

    /// Moves the tokens of the blocks stored since the last call to the end of `out`: those of the changes that
    /// [`take_changes`](BlockPool::take_changes) gives, in their order.
    pub fn take_tokens(&mut self, out: &mut Vec<TokenId>) {
        if let Some(tokens) = &mut self.tokens {
            out.append(tokens);
        }
    }

    fn forget(&mut self, block: BlockId) {
        if let Some(contents) = self.blocks[block.0 as usize].contents.take() {
            self.cached.remove(&contents);
            self.changes.push(BlockChange::Removed(contents));
        }
    }

    fn refer(&mut self, id: BlockId) {
        let block = &mut self.blocks[id.0 as usize];
        block.references += 1;
        if block.references == 1 && block.contents.is_some() {
            self.idle.remove(id);
        }
    }
}

impl<O: EvictionOrder> BlockPool for SimPool<O> {
    fn block_size(&self) -> BlockSize {
        self.block_size
    }

    fn capacity(&self, _group: usize) -> usize {
        self.blocks.len()
    }

    fn available(&self, _group: usize) -> usize {
        self.free.len() + self.idle.len()
    }

    fn match_prefix(&mut self, query: PrefixQuery<'_>, tables: &mut [BlockTable]) -> PrefixMatch {
        let mut ready = 0;
        for hash in query.hashes {
            let Some(&block) = self.cached.get(hash) else { break };
            self.refer(block);
            tables[0].blocks_mut().push(block);
            ready += 1;
        }
        PrefixMatch { ready, pending: None }
    }

    fn poll_load(&mut self, _ticket: LoadTicket) -> LoadState {
        LoadState::Done { arrived: 0 }
    }

    fn cancel_load(&mut self, _ticket: LoadTicket) -> usize {
        0
    }

    fn allocate(&mut self, group: usize, count: usize, out: &mut Vec<BlockId>) -> bool {
        if self.available(group) < count {
            return false;
        }
        for _ in 0..count {
            let block = match self.free.pop() {
                Some(id) => BlockId(id),
                None => {
                    let victim = self.idle.pop().expect("enough blocks are free or idle");
                    self.forget(victim);
                    victim
                }
            };
            self.blocks[block.0 as usize].references = 1;
            out.push(block);
        }
        true
    }

    fn register(&mut self, _group: usize, block: BlockId, contents: FullBlock) -> BlockId {
        if !self.prefix_caching {
            return block;
        }
        if let Some(&other) = self.cached.get(&contents.sequence_hash) {
            if other != block {
                self.refer(other);
            }
            return other;
        }
        self.cached.insert(contents.sequence_hash, block);
        self.blocks[block.0 as usize].contents = Some(contents.sequence_hash);
        self.changes.push(BlockChange::Stored(contents));
        block
    }

    fn register_with_tokens(
        &mut self,
        group: usize,
        block: BlockId,
        contents: FullBlock,
        tokens: &[TokenId],
    ) -> BlockId {
        let before = self.changes.len();
        let used = self.register(group, block, contents);
        if let Some(kept) = &mut self.tokens
            && self.changes.len() > before
        {
            kept.extend_from_slice(tokens);
        }
        used
    }

    fn release(&mut self, _group: usize, blocks: &[BlockId]) {
        for &id in blocks.iter().rev() {
            let block = &mut self.blocks[id.0 as usize];
            block.references -= 1;
            if block.references > 0 {
                continue;
            }
            if block.contents.is_some() {
                self.idle.insert(id);
            } else {
                self.free.push(id.0);
            }
        }
    }

    fn take_changes(&mut self, out: &mut Vec<BlockChange>) {
        out.append(&mut self.changes);
    }
}
