//! Which cached block goes first.

use dynamo_scheduler::BlockId;

/// An order over blocks that nobody uses. Blocks of one released sequence are inserted deepest first.
pub trait EvictionOrder: Send + 'static {
    /// Nobody uses the block any more. It is not in the order.
    fn insert(&mut self, block: BlockId);
    /// Somebody uses it again. It is in the order.
    fn remove(&mut self, block: BlockId);
    /// Takes the next victim.
    fn pop(&mut self) -> Option<BlockId>;
    /// Blocks in the order.
    fn len(&self) -> usize;
    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

const NONE: u32 = u32::MAX;

/// The block that was released first goes first; of one sequence the deepest, so that what is left is a prefix.
#[derive(Debug)]
pub struct LeastRecentlyUsed {
    /// Per block: the one released before and after it.
    links: Vec<(u32, u32)>,
    oldest: u32,
    newest: u32,
    len: usize,
}

impl LeastRecentlyUsed {
    /// For blocks numbered below `capacity`.
    pub fn new(capacity: u32) -> Self {
        Self { links: vec![(NONE, NONE); capacity as usize], oldest: NONE, newest: NONE, len: 0 }
    }
}

impl EvictionOrder for LeastRecentlyUsed {
    fn insert(&mut self, block: BlockId) {
        self.links[block.0 as usize] = (self.newest, NONE);
        match self.newest {
            NONE => self.oldest = block.0,
            newest => self.links[newest as usize].1 = block.0,
        }
        self.newest = block.0;
        self.len += 1;
    }

    fn remove(&mut self, block: BlockId) {
        let (before, after) = self.links[block.0 as usize];
        match before {
            NONE => self.oldest = after,
            before => self.links[before as usize].1 = after,
        }
        match after {
            NONE => self.newest = before,
            after => self.links[after as usize].0 = before,
        }
        self.len -= 1;
    }

    fn pop(&mut self) -> Option<BlockId> {
        let block = BlockId(self.oldest);
        (self.len > 0).then(|| {
            self.remove(block);
            block
        })
    }

    fn len(&self) -> usize {
        self.len
    }
}
