//! The arena of a tree's nodes: one node a block, in columns, in chunks that are given back when empty.
//!
//! A child that lies right behind its parent needs no entry in any table: events come in chains, so most do.

use dynamo_tokens::LocalBlockHash;
use parking_lot::Mutex;

use super::{
    block_uses::BlockUses,
    holders::{EMPTY, SetId},
};

/// The number of a node.
pub(super) type NodeId = u32;
/// The parent of first blocks; not a node.
pub(super) const ROOT: NodeId = NodeId::MAX;
/// In the parent column of an unused place.
const UNUSED: NodeId = NodeId::MAX - 1;

/// Nodes in a chunk: 57 KiB, which a small tree can bear and a large one seldom asks for.
const CHUNK: usize = 2048;
/// Chunks at most, so that no node gets a number with a meaning of its own.
const MAX_CHUNKS: usize = (UNUSED as usize) / CHUNK;

struct Chunk {
    local: [u64; CHUNK],
    ext: [u64; CHUNK],
    parent: [NodeId; CHUNK],
    set: [SetId; CHUNK],
    children: [u32; CHUNK],
    used: [u64; CHUNK / 64],
    /// Only in a tree that counts them; nodes that are not live have none.
    uses: Option<Box<Uses>>,
    live: u32,
    /// Where the search for a place goes on.
    cursor: u32,
    /// Listed in `Nodes::open`.
    is_open: bool,
}

/// The uses of a chunk's nodes. Those who ask have the tree in common, and count.
type Uses = Mutex<[BlockUses; CHUNK]>;

impl Chunk {
    /// Apart from its callers, whose every call would otherwise probe a stack frame of this size.
    #[cold]
    #[inline(never)]
    fn new(counts_uses: bool) -> Box<Self> {
        let uses = || Box::new(Mutex::new([BlockUses::NONE; CHUNK]));
        Box::new(Self {
            uses: counts_uses.then(uses),
            local: [0; CHUNK],
            ext: [0; CHUNK],
            parent: [UNUSED; CHUNK],
            set: [EMPTY; CHUNK],
            children: [0; CHUNK],
            used: [0; CHUNK / 64],
            live: 0,
            cursor: 0,
            is_open: true,
        })
    }

    /// An unused place at or after the cursor, around the end.
    fn place(&mut self) -> Option<usize> {
        const WORDS: usize = CHUNK / 64;
        let start = self.cursor as usize / 64;
        for step in 0..=WORDS {
            let word = (start + step) % WORDS;
            let mut free = !self.used[word];
            if step == 0 {
                free &= u64::MAX << (self.cursor % 64);
            }
            if free != 0 {
                return Some(word * 64 + free.trailing_zeros() as usize);
            }
        }
        None
    }
}

/// The nodes of one tree.
pub(super) struct Nodes {
    chunks: Vec<Option<Box<Chunk>>>,
    /// Chunks with an unused place.
    open: Vec<u32>,
    /// Numbers of chunks that were given back.
    vacant: Vec<u32>,
    live: usize,
    present: usize,
    counts_uses: bool,
}

fn split(id: NodeId) -> (usize, usize) {
    (id as usize / CHUNK, id as usize % CHUNK)
}

impl Nodes {
    pub(super) fn new(counts_uses: bool) -> Self {
        Self { chunks: Vec::new(), open: Vec::new(), vacant: Vec::new(), live: 0, present: 0, counts_uses }
    }

    pub(super) fn live(&self) -> usize {
        self.live
    }

    pub(super) fn bytes(&self) -> usize {
        let uses = if self.counts_uses { size_of::<Uses>() } else { 0 };
        self.present * (size_of::<Chunk>() + uses)
            + self.chunks.capacity() * size_of::<Option<Box<Chunk>>>()
            + (self.open.capacity() + self.vacant.capacity()) * size_of::<u32>()
    }

    fn chunk(&self, id: NodeId) -> (&Chunk, usize) {
        let (chunk, at) = split(id);
        (self.chunks[chunk].as_deref().expect("the id of a live node"), at)
    }

    fn chunk_mut(&mut self, id: NodeId) -> (&mut Chunk, usize) {
        let (chunk, at) = split(id);
        (self.chunks[chunk].as_deref_mut().expect("the id of a live node"), at)
    }

    pub(super) fn local(&self, id: NodeId) -> u64 {
        let (chunk, at) = self.chunk(id);
        chunk.local[at]
    }

    pub(super) fn ext(&self, id: NodeId) -> u64 {
        let (chunk, at) = self.chunk(id);
        chunk.ext[at]
    }

    pub(super) fn parent(&self, id: NodeId) -> NodeId {
        let (chunk, at) = self.chunk(id);
        chunk.parent[at]
    }

    pub(super) fn set(&self, id: NodeId) -> SetId {
        let (chunk, at) = self.chunk(id);
        chunk.set[at]
    }

    pub(super) fn children(&self, id: NodeId) -> u32 {
        let (chunk, at) = self.chunk(id);
        chunk.children[at]
    }

    pub(super) fn put_ext(&mut self, id: NodeId, ext: u64) {
        let (chunk, at) = self.chunk_mut(id);
        chunk.ext[at] = ext;
    }

    pub(super) fn put_set(&mut self, id: NodeId, set: SetId) {
        let (chunk, at) = self.chunk_mut(id);
        chunk.set[at] = set;
    }

    /// Whether `child` is found by its place behind `parent`, so that no table lists it.
    pub(super) fn is_behind(parent: NodeId, child: NodeId) -> bool {
        parent != ROOT && child == parent + 1
    }

    /// The child that lies right behind `parent`, if its local hash is `local`.
    pub(super) fn child_behind(&self, parent: NodeId, local: u64) -> Option<NodeId> {
        if parent == ROOT {
            return None;
        }
        let (chunk, at) = split(parent + 1);
        let chunk = self.chunks.get(chunk)?.as_deref()?;
        (chunk.parent[at] == parent && chunk.local[at] == local).then_some(parent + 1)
    }

    /// How many of `query` follow `id` one behind the other in its chunk, all held by `set`.
    pub(super) fn follow(&self, id: NodeId, set: SetId, query: &[LocalBlockHash]) -> usize {
        let (chunk, at) = self.chunk(id);
        let columns = chunk.parent[at + 1..].iter().zip(&chunk.local[at + 1..]).zip(&chunk.set[at + 1..]);
        let expected = (id..).zip(query);
        columns
            .zip(expected)
            .take_while(|&(((&parent, &local), &holders), (before, wanted))| {
                parent == before && local == wanted.0 && holders == set
            })
            .count()
    }

    /// Counts a use of `count` nodes from `id` on, all in its chunk. Adds to `before` how often each was used before,
    /// but for those that were not.
    pub(super) fn count_uses(&self, id: NodeId, count: usize, part: u32, before: &mut Vec<u32>) {
        let (chunk, at) = self.chunk(id);
        if let Some(uses) = &chunk.uses {
            let mut uses = uses.lock();
            let of_nodes = uses[at..at + count].iter_mut().map(|uses| uses.add(part));
            before.extend(of_nodes.filter(|&before| before > 0));
        }
    }

    /// A new node without holders and children, right behind its parent where that place is unused. `None` when all
    /// numbers are taken.
    pub(super) fn create(&mut self, parent: NodeId, local: u64, ext: u64) -> Option<NodeId> {
        let id = match self.place_behind(parent) {
            Some(id) => id,
            None => self.place_anywhere()?,
        };
        self.live += 1;
        let (chunk, at) = self.chunk_mut(id);
        chunk.local[at] = local;
        chunk.ext[at] = ext;
        chunk.parent[at] = parent;
        chunk.set[at] = EMPTY;
        chunk.children[at] = 0;
        chunk.used[at / 64] |= 1 << (at % 64);
        chunk.live += 1;
        chunk.cursor = ((at + 1) % CHUNK) as u32;
        if chunk.live as usize == CHUNK {
            chunk.is_open = false;
            let index = split(id).0 as u32;
            self.open.retain(|&other| other != index);
        }
        if parent != ROOT {
            let (chunk, at) = self.chunk_mut(parent);
            chunk.children[at] += 1;
        }
        Some(id)
    }

    fn place_behind(&self, parent: NodeId) -> Option<NodeId> {
        if parent == ROOT {
            return None;
        }
        let (chunk, at) = split(parent + 1);
        let chunk = self.chunks.get(chunk)?.as_deref()?;
        (chunk.used[at / 64] >> (at % 64) & 1 == 0).then_some(parent + 1)
    }

    fn place_anywhere(&mut self) -> Option<NodeId> {
        loop {
            let Some(&index) = self.open.last() else {
                let index = self.vacant.pop().or_else(|| {
                    (self.chunks.len() < MAX_CHUNKS).then(|| {
                        self.chunks.push(None);
                        self.chunks.len() as u32 - 1
                    })
                })?;
                self.chunks[index as usize] = Some(Chunk::new(self.counts_uses));
                self.present += 1;
                self.open.push(index);
                continue;
            };
            let place = self.chunks[index as usize].as_deref_mut().and_then(Chunk::place);
            if let Some(at) = place {
                return Some((index as usize * CHUNK + at) as NodeId);
            }
            self.open.pop();
        }
    }

    /// Gives a node without holders and children back; returns its parent, which has one child less.
    pub(super) fn remove(&mut self, id: NodeId) -> NodeId {
        let index = split(id).0;
        let (chunk, at) = self.chunk_mut(id);
        let parent = std::mem::replace(&mut chunk.parent[at], UNUSED);
        chunk.used[at / 64] &= !(1 << (at % 64));
        if let Some(uses) = &mut chunk.uses {
            uses.get_mut()[at] = BlockUses::NONE;
        }
        chunk.live -= 1;
        let (is_empty, was_open) = (chunk.live == 0, std::mem::replace(&mut chunk.is_open, true));
        self.live -= 1;
        if is_empty {
            self.chunks[index] = None;
            self.present -= 1;
            self.open.retain(|&other| other as usize != index);
            self.vacant.push(index as u32);
        } else if !was_open {
            self.open.push(index as u32);
        }
        if parent != ROOT {
            let (chunk, at) = self.chunk_mut(parent);
            chunk.children[at] -= 1;
        }
        if self.live == 0 {
            *self = Self::new(self.counts_uses);
        }
        parent
    }

    /// Counts a child that does not exist, so that nobody prunes `id`; `unpin` takes it back.
    pub(super) fn pin(&mut self, id: NodeId) {
        let (chunk, at) = self.chunk_mut(id);
        chunk.children[at] += 1;
    }

    pub(super) fn unpin(&mut self, id: NodeId) {
        let (chunk, at) = self.chunk_mut(id);
        chunk.children[at] -= 1;
    }

    /// The first node numbered `from` or higher whose holders' set is `wanted`. Unused places have the empty set.
    pub(super) fn next_with(&self, from: usize, wanted: impl Fn(SetId) -> bool) -> Option<NodeId> {
        let (first, at) = (from / CHUNK, from % CHUNK);
        for (index, chunk) in self.chunks.iter().enumerate().skip(first) {
            let Some(chunk) = chunk else { continue };
            let start = if index == first { at } else { 0 };
            if let Some(found) = chunk.set[start..].iter().position(|&set| wanted(set)) {
                return Some((index * CHUNK + start + found) as NodeId);
            }
        }
        None
    }

    #[cfg(test)]
    pub(super) fn limit(&self) -> usize {
        self.chunks.len() * CHUNK
    }

    #[cfg(test)]
    pub(super) fn if_live(&self, id: usize) -> Option<NodeId> {
        let chunk = self.chunks[id / CHUNK].as_deref()?;
        (chunk.parent[id % CHUNK] != UNUSED).then_some(id as NodeId)
    }
}
