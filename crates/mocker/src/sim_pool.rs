//! The simulator's blocks: numbers, and what they would contain.

use std::time::Duration;

use dynamo_scheduler::{
    BlockChange, BlockId, BlockPool, BlockTable, FullBlock, LoadState, LoadTicket, PendingLoad, PrefixMatch,
    PrefixQuery, RequestId,
};
use dynamo_tokens::{BlockSize, SequenceHash, TokenId};
use rustc_hash::FxHashMap;

use crate::loads::{Load, Loads};
use crate::{EvictionOrder, LeastRecentlyUsed, TransferTime};

#[derive(Clone, Copy, Debug, Default)]
struct Block {
    references: u32,
    /// Set while the block can be found by its contents.
    contents: Option<SequenceHash>,
}

/// Blocks of one group, with or without prefix caching. It loads what was [promised](Self::promise) to a request.
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
    loads: Loads,
    /// Loaded blocks in use whose contents another block had by then: that one is in use as long, so that what follows
    /// them never outlives it.
    twins: FxHashMap<BlockId, BlockId>,
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
            loads: Loads::default(),
            twins: FxHashMap::default(),
        }
    }

    /// Loads take this long; without, no time.
    pub fn set_transfer_time(&mut self, transfer: TransferTime) {
        self.loads.set_transfer(transfer);
    }

    /// Says what time it is, since the caller's origin. What was promised is on its way from the time of admission on.
    pub fn set_now(&mut self, now: Duration) {
        self.loads.set_now(now);
    }

    /// When the next load arrives.
    pub fn next_load_due(&self) -> Option<Duration> {
        self.loads.next_due()
    }

    /// Another engine gives the first `blocks` blocks of a request away, which are loaded, as far as they are not cached,
    /// when the request is admitted. What is still promised when the request ends is to be
    /// [withdrawn](Self::withdraw).
    pub fn promise(&mut self, request: RequestId, blocks: usize) {
        self.loads.promise(request, blocks);
    }

    /// Takes a promise back, if there is one.
    pub fn withdraw(&mut self, request: RequestId) {
        self.loads.take_promise(request);
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

    fn dereference(&mut self, id: BlockId) {
        let block = &mut self.blocks[id.0 as usize];
        block.references -= 1;
        if block.references > 0 {
            return;
        }
        if block.contents.is_some() {
            self.idle.insert(id);
            return;
        }
        self.free.push(id.0);
        if !self.twins.is_empty()
            && let Some(twin) = self.twins.remove(&id)
        {
            self.dereference(twin);
        }
    }

    /// Begins to load what is promised to a request beyond its `ready` blocks.
    fn load(&mut self, query: &PrefixQuery<'_>, ready: usize, table: &mut BlockTable) -> Option<PendingLoad> {
        let end = self.loads.take_promise(query.request).min(query.hashes.len());
        let count = end.checked_sub(ready).filter(|&count| count > 0)?;
        let mut blocks = Vec::with_capacity(count);
        if !self.allocate(0, count, &mut blocks) {
            return None;
        }
        table.blocks_mut().extend_from_slice(&blocks);
        let contents = |index: usize| FullBlock {
            sequence_hash: query.hashes[index],
            local_hash: query.local_hashes[index],
            parent: index.checked_sub(1).map(|parent| query.hashes[parent]),
            index,
        };
        let known = if self.prefix_caching { ready..end } else { 0..0 };
        let size = self.block_size.get();
        let tokens = match &self.tokens {
            Some(_) => query.tokens[known.start * size..known.end * size].to_vec(),
            None => Vec::new(),
        };
        let contents = known.map(contents).collect();
        let ticket = self.loads.start(Load { blocks, contents, tokens });
        Some(PendingLoad { ticket, blocks: count })
    }

    /// What a load brought can be found from now on.
    fn arrive(&mut self, load: &Load) {
        let size = self.block_size.get();
        for (at, (&block, &contents)) in load.blocks.iter().zip(&load.contents).enumerate() {
            let tokens = load.tokens.get(at * size..(at + 1) * size).unwrap_or_default();
            let used = self.register_with_tokens(0, block, contents, tokens);
            if used != block {
                self.twins.insert(block, used);
            }
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
        let pending = if query.may_load { self.load(&query, ready, &mut tables[0]) } else { None };
        PrefixMatch { ready, pending }
    }

    fn poll_load(&mut self, ticket: LoadTicket) -> LoadState {
        if self.loads.is_under_way(ticket) {
            return LoadState::Pending;
        }
        let Some(load) = self.loads.end(ticket) else { return LoadState::Done { arrived: 0 } };
        self.arrive(&load);
        LoadState::Done { arrived: load.blocks.len() }
    }

    /// A simulated transfer ends at once, and has brought nothing.
    fn cancel_load(&mut self, ticket: LoadTicket) -> usize {
        self.loads.end(ticket);
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
            self.dereference(id);
        }
    }

    fn take_changes(&mut self, out: &mut Vec<BlockChange>) {
        out.append(&mut self.changes);
    }
}
