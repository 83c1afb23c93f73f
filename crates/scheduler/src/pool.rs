//! Where blocks come from.

use dynamo_tokens::{BlockSize, LocalBlockHash, SequenceHash, TokenId};

use crate::{BlockTable, RequestId};

/// A block's number within its group of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub u32);

/// Names a transfer of contents into blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LoadTicket(pub u64);

/// What a request would like to find in the cache.
#[derive(Clone, Copy, Debug)]
pub struct PrefixQuery<'a> {
    /// Whose, for pools that bring contents for one request alone.
    pub request: RequestId,
    /// The sequence hashes of the leading blocks, as many as may be taken from the cache.
    pub hashes: &'a [SequenceHash],
    /// The hashes of the same blocks' own tokens.
    pub local_hashes: &'a [LocalBlockHash],
    /// The same blocks' tokens.
    pub tokens: &'a [TokenId],
    /// Whether blocks may be promised whose contents are still on the way. Then the request is admitted with what is
    /// found, but for an undivided prefill of which nothing is on the way and that is too long for the step.
    pub may_load: bool,
}

/// Contents on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PendingLoad {
    /// Names the transfer.
    pub ticket: LoadTicket,
    /// Blocks in each table, after the ready ones, into which it writes.
    pub blocks: usize,
}

/// What was found: a prefix hit is what all groups can serve.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PrefixMatch {
    /// Leading blocks whose contents are there.
    pub ready: usize,
    /// Blocks after those whose contents are on the way.
    pub pending: Option<PendingLoad>,
}

/// How far a transfer is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadState {
    /// Still writing.
    Pending,
    /// Over, nothing writes any more.
    Done {
        /// Leading blocks of the load whose contents arrived; the rest are blocks without contents.
        arrived: usize,
    },
}

/// The identity of a block that became whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FullBlock {
    /// All tokens up to the end of the block.
    pub sequence_hash: SequenceHash,
    /// The block's own tokens.
    pub local_hash: LocalBlockHash,
    /// The block before it.
    pub parent: Option<SequenceHash>,
    /// Its place in the sequence, from 0.
    pub index: usize,
}

/// A change in what a pool has cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockChange {
    /// A block's contents can be found from now on.
    Stored(FullBlock),
    /// They can't any more.
    Removed(SequenceHash),
}

/// Blocks of one model: counted ids in a simulator, memory in an engine.
///
/// A model has one or more *groups* (full attention, sliding window, recurrent state), numbered from 0. A block is
/// referenced once for each table that it is in; [`match_prefix`](Self::match_prefix), [`allocate`](Self::allocate)
/// and [`register`](Self::register) add references, [`release`](Self::release) takes them back.
pub trait BlockPool {
    /// Tokens per block.
    fn block_size(&self) -> BlockSize;

    /// How many groups there are, at least one.
    fn groups(&self) -> usize {
        1
    }

    /// Tokens that a position of this group can look back on, itself included; `None` for all.
    fn window(&self, group: usize) -> Option<usize> {
        let _ = group;
        None
    }

    /// Blocks that there are in a group.
    fn capacity(&self, group: usize) -> usize;

    /// Blocks that [`allocate`](Self::allocate) could give now, evicting what nobody uses.
    fn available(&self, group: usize) -> usize;

    /// Puts the longest known prefix into the (empty) tables, one per group. With a pending load the tables hold its
    /// blocks as well; each table then ends at the same block.
    fn match_prefix(&mut self, query: PrefixQuery<'_>, tables: &mut [BlockTable]) -> PrefixMatch;

    /// How far a load is. After [`LoadState::Done`] the ticket is spent.
    fn poll_load(&mut self, ticket: LoadTicket) -> LoadState;

    /// Gives a load up; the ticket is spent. Returns the leading blocks that arrived. The others will be released
    /// soon, and the pool keeps them to itself until nothing writes into them any more.
    fn cancel_load(&mut self, ticket: LoadTicket) -> usize;

    /// Appends `count` blocks to `out` and returns true, or none and returns false.
    fn allocate(&mut self, group: usize, count: usize, out: &mut Vec<BlockId>) -> bool;

    /// Says what a block now contains. Returns the block to use from here on: the same one, or one that has the same
    /// contents already. In that case a reference to the other was added, and the caller releases the one that it
    /// passed as soon as nothing reads it.
    fn register(&mut self, group: usize, block: BlockId, contents: FullBlock) -> BlockId;

    /// As [`register`](Self::register), with the block's own tokens, for pools that tell others of them.
    fn register_with_tokens(
        &mut self,
        group: usize,
        block: BlockId,
        contents: FullBlock,
        tokens: &[TokenId],
    ) -> BlockId {
        let _ = tokens;
        self.register(group, block, contents)
    }

    /// Takes back one reference to each block; they come in the order of their sequence.
    fn release(&mut self, group: usize, blocks: &[BlockId]);

    /// Moves what was stored and removed since the last call to the end of `out`, in order.
    fn take_changes(&mut self, out: &mut Vec<BlockChange>);
}
