//! The arena of a shared tree: nodes in chunks, a lock to each chunk.

use std::sync::{
    OnceLock,
    atomic::{AtomicU32, AtomicUsize, Ordering},
};

use dynamo_tokens::LocalBlockHash;
use parking_lot::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::index::shared_sets::{HoldersRef, is_same};

/// The number of a node.
pub(super) type NodeId = u32;
/// The parent of first blocks; not a node.
pub(super) const ROOT: NodeId = NodeId::MAX;

/// Nodes in a chunk, 32 KiB of them: a lock for most of a prompt.
const CHUNK: usize = 1024;
/// Chunk numbers in a page, and pages. Together somewhat fewer nodes than there are numbers.
const PAGE: usize = 2048;
const PAGES: usize = 2046;
/// Chunks that are filled at the same time, so that lanes seldom meet at one.
const STRIPES: usize = 8;

pub(super) struct Chunk {
    pub(super) local: [u64; CHUNK],
    pub(super) parent: [NodeId; CHUNK],
    /// The parent's generation: the parent's number alone may have come to mean another node.
    pub(super) parent_generation: [u32; CHUNK],
    pub(super) generation: [u32; CHUNK],
    pub(super) children: [u32; CHUNK],
    pub(super) sets: [HoldersRef; CHUNK],
    used: [u64; CHUNK / 64],
    live: u32,
    /// Where the search for a place goes on.
    cursor: u32,
    /// Where it is listed as having places.
    stripe: u8,
    is_listed: bool,
}

impl Chunk {
    #[cold]
    #[inline(never)]
    fn new(stripe: usize) -> Box<Self> {
        Box::new(Self {
            local: [0; CHUNK],
            parent: [ROOT; CHUNK],
            parent_generation: [0; CHUNK],
            generation: [0; CHUNK],
            children: [0; CHUNK],
            sets: [const { None }; CHUNK],
            used: [0; CHUNK / 64],
            live: 0,
            cursor: 0,
            stripe: stripe as u8,
            is_listed: true,
        })
    }

    pub(super) fn is_used(&self, at: usize) -> bool {
        self.used[at / 64] >> (at % 64) & 1 == 1
    }

    /// Whether nobody holds the node and nothing follows it.
    pub(super) fn is_useless(&self, at: usize) -> bool {
        self.sets[at].is_none() && self.children[at] == 0
    }

    /// An unused place at or after the cursor, around the end.
    fn place(&self) -> Option<usize> {
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

    /// Whether the node right behind `at` is its child `local`. `id` is the number of the node at `at`.
    pub(super) fn has_child_behind(&self, at: usize, id: NodeId, local: u64) -> bool {
        at + 1 < CHUNK && self.parent[at + 1] == id && self.local[at + 1] == local && self.is_used(at + 1)
    }

    pub(super) fn is_free_behind(&self, at: usize) -> bool {
        at + 1 < CHUNK && !self.is_used(at + 1)
    }

    /// How many of `query` follow the node `id` at `at` one behind the other, all with its holders.
    pub(super) fn follow(&self, at: usize, id: NodeId, query: &[LocalBlockHash]) -> usize {
        let set = &self.sets[at];
        let columns = self.parent[at + 1..].iter().zip(&self.local[at + 1..]).zip(&self.sets[at + 1..]);
        let expected = (id..).zip(query);
        columns
            .zip(expected)
            .take_while(|&(((&parent, &local), holders), (before, wanted))| {
                parent == before && local == wanted.0 && is_same(holders, set)
            })
            .count()
    }
}

/// A chunk's place in the directory.
pub(super) struct Cell {
    chunk: Option<Box<Chunk>>,
    /// The next node here gets it. It outlives the chunk, so that no node is taken for an earlier one.
    next_generation: u32,
}

impl Cell {
    pub(super) fn chunk(&self) -> Option<&Chunk> {
        self.chunk.as_deref()
    }

    /// The chunk of a node that is known to be there.
    pub(super) fn chunk_mut(&mut self) -> &mut Chunk {
        self.chunk.as_deref_mut().expect("the chunk of a live node")
    }

    /// A node without holders and children at an unused place; who holds the lock must give it either.
    pub(super) fn create(&mut self, at: usize, parent: NodeId, parent_generation: u32, local: u64) {
        let generation = self.next_generation;
        self.next_generation = generation.wrapping_add(1);
        let chunk = self.chunk_mut();
        chunk.local[at] = local;
        chunk.parent[at] = parent;
        chunk.parent_generation[at] = parent_generation;
        chunk.generation[at] = generation;
        chunk.children[at] = 0;
        chunk.used[at / 64] |= 1 << (at % 64);
        chunk.live += 1;
        chunk.cursor = ((at + 1) % CHUNK) as u32;
    }
}

pub(super) type Read<'a> = RwLockReadGuard<'a, Cell>;
pub(super) type Write<'a> = RwLockWriteGuard<'a, Cell>;

type Page = Box<[RwLock<Cell>]>;

/// Chunk numbers of one stripe.
#[derive(Default)]
struct Listed {
    /// With an unused place, most of them.
    open: Vec<u32>,
    /// Given back.
    vacant: Vec<u32>,
}

/// The nodes of one tree. Who holds the lock of a chunk takes no other one: only those of the lists and of the sets.
pub(super) struct SharedNodes {
    pages: Box<[OnceLock<Page>]>,
    listed: [Mutex<Listed>; STRIPES],
    /// Chunk numbers given out so far.
    chunks: AtomicU32,
    present: AtomicUsize,
}

/// The chunk of a node.
pub(super) fn chunk_of(id: NodeId) -> u32 {
    id / CHUNK as u32
}

/// Where in its chunk a node is.
pub(super) fn place_of(id: NodeId) -> usize {
    id as usize % CHUNK
}

/// The number of the node at a place.
fn id_of(chunk: u32, at: usize) -> NodeId {
    chunk * CHUNK as u32 + at as u32
}

/// Whether `child` is found by its place behind `parent`, so that no table lists it.
pub(super) fn is_behind(parent: NodeId, child: NodeId) -> bool {
    parent != ROOT && child == parent + 1 && place_of(child) != 0
}

impl SharedNodes {
    pub(super) fn new() -> Self {
        Self {
            pages: (0..PAGES).map(|_| OnceLock::new()).collect(),
            listed: Default::default(),
            chunks: AtomicU32::new(0),
            present: AtomicUsize::new(0),
        }
    }

    fn cell(&self, chunk: u32) -> &RwLock<Cell> {
        let page = self.pages[chunk as usize / PAGE].get_or_init(|| {
            (0..PAGE).map(|_| RwLock::new(Cell { chunk: None, next_generation: 0 })).collect()
        });
        &page[chunk as usize % PAGE]
    }

    /// The chunk of a node, which may have become another one's, or nobody's.
    pub(super) fn read(&self, id: NodeId) -> Read<'_> {
        self.cell(chunk_of(id)).read()
    }

    pub(super) fn write(&self, id: NodeId) -> Write<'_> {
        self.cell(chunk_of(id)).write()
    }

    /// An unused place, and its chunk's lock. `None` when all numbers are taken.
    pub(super) fn open_place(&self, slot: u32) -> Option<(NodeId, Write<'_>)> {
        let stripe = slot as usize % STRIPES;
        loop {
            let open = self.listed[stripe].lock().open.last().copied();
            let Some(number) = open else { return self.new_chunk(stripe) };
            let mut cell = self.cell(number).write();
            // Given back since: it is no longer on the list, or it is there anew.
            let Some(chunk) = cell.chunk.as_deref_mut().filter(|chunk| chunk.is_listed) else { continue };
            if let Some(at) = chunk.place() {
                return Some((id_of(number, at), cell));
            }
            chunk.is_listed = false;
            self.listed[chunk.stripe as usize].lock().open.retain(|&other| other != number);
        }
    }

    #[cold]
    fn new_chunk(&self, stripe: usize) -> Option<(NodeId, Write<'_>)> {
        let vacant = self.listed.iter().find_map(|listed| listed.lock().vacant.pop());
        let number = match vacant {
            Some(number) => number,
            None => {
                let more = |next: u32| (next < (PAGE * PAGES) as u32).then_some(next + 1);
                self.chunks.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?
            }
        };
        let mut cell = self.cell(number).write();
        cell.chunk = Some(Chunk::new(stripe));
        self.present.fetch_add(1, Ordering::Relaxed);
        self.listed[stripe].lock().open.push(number);
        Some((id_of(number, 0), cell))
    }

    /// Gives the node at `at` back, which must be useless and found by no table.
    pub(super) fn free(&self, number: u32, cell: &mut Write<'_>, at: usize) {
        let chunk = cell.chunk_mut();
        chunk.used[at / 64] &= !(1 << (at % 64));
        chunk.parent[at] = ROOT;
        chunk.live -= 1;
        let stripe = chunk.stripe as usize;
        if chunk.live == 0 {
            cell.chunk = None;
            self.present.fetch_sub(1, Ordering::Relaxed);
            let mut listed = self.listed[stripe].lock();
            listed.open.retain(|&other| other != number);
            listed.vacant.push(number);
        } else if !chunk.is_listed {
            chunk.is_listed = true;
            self.listed[stripe].lock().open.push(number);
        }
    }

    /// Nodes that there are; looks at every chunk.
    pub(super) fn live(&self) -> usize {
        let chunks = 0..self.chunks.load(Ordering::Relaxed);
        chunks.map(|number| self.cell(number).read().chunk().map_or(0, |chunk| chunk.live as usize)).sum()
    }

    pub(super) fn bytes(&self) -> usize {
        let pages = self.pages.iter().filter(|page| page.get().is_some()).count();
        let lists = self.listed.iter().map(|listed| {
            let listed = listed.lock();
            (listed.open.capacity() + listed.vacant.capacity()) * size_of::<u32>()
        });
        self.present.load(Ordering::Relaxed) * size_of::<Chunk>()
            + pages * PAGE * size_of::<RwLock<Cell>>()
            + size_of_val(&*self.pages)
            + lists.sum::<usize>()
    }

    #[cfg(test)]
    pub(super) fn live_ids(&self) -> Vec<NodeId> {
        let chunks = 0..self.chunks.load(Ordering::Relaxed);
        let live = |number| {
            let cell = self.cell(number).read();
            let places = (0..CHUNK).filter(|&at| cell.chunk().is_some_and(|chunk| chunk.is_used(at)));
            places.map(|at| id_of(number, at)).collect::<Vec<_>>()
        };
        chunks.flat_map(live).collect()
    }
}
