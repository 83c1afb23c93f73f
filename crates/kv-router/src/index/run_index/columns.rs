//! What is kept of each block: its local hash, for readers; its name and its run, for the writer.

use std::sync::atomic::Ordering::Relaxed;

use super::{
    header::RunId,
    memory::{Place, Unseen, Words, prefetch},
    regions::{Memory, Piece},
    shared::small,
    space::Space,
};

/// 16,384 blocks in a chunk: 264 KiB, which a small index can bear.
const CHUNK_BITS: u32 = small(14, 9);
const CHUNK: usize = 1 << CHUNK_BITS;
/// Chunks at most: 2^28 blocks, 5 GB, beyond what one router can be told of.
const CHUNKS: usize = small(1 << 14, 2) as usize;
/// Blocks at most, room between runs included.
pub(super) const MAX_BLOCKS: usize = CHUNK * CHUNKS;
/// Blocks that are handed out together: a cache line of local hashes. Smaller ones cost a longer owner column, larger
/// ones leave more room unused behind each run.
pub(super) const UNIT: u32 = 8;
/// Blocks of a run at most: what fits into any chunk, the first unit of which may be reserved.
pub(super) const MAX_RUN: u32 = CHUNK as u32 - UNIT;

/// The local hashes, which readers share.
pub(super) type Locals = Words<CHUNK_BITS, CHUNKS>;

struct Chunk {
    names: Piece<u64>,
    /// By unit.
    runs: Piece<RunId>,
}

/// The writer's columns, and who uses which part of all of them.
pub(super) struct Columns {
    space: Space,
    chunks: Vec<Option<Chunk>>,
    memory: Memory,
}

impl Columns {
    pub(super) fn new(max_blocks: usize, memory: &Memory) -> Self {
        let max_chunks = max_blocks.div_ceil(CHUNK).min(CHUNKS);
        Self {
            space: Space::new(CHUNK as u32 / UNIT, max_chunks),
            chunks: Vec::new(),
            memory: memory.clone(),
        }
    }

    /// Room for `units`, for a run. `None` when full.
    pub(super) fn take(&mut self, units: u32, run: RunId, locals: &Locals) -> Option<Place> {
        let taken = self.space.take(units)?;
        if let Some(index) = taken.new_chunk {
            locals.add_chunk(index);
            if self.chunks.len() <= index {
                self.chunks.resize_with(index + 1, || None);
            }
            let (names, runs) = (self.memory.take(CHUNK), self.memory.take(CHUNK / UNIT as usize));
            self.chunks[index] = Some(Chunk { names, runs });
        }
        let place = taken.unit * UNIT;
        self.set_run(place, units, run);
        Some(place)
    }

    /// Takes the `units` behind a run's last one, if they are free.
    pub(super) fn extend(&mut self, end: Place, units: u32, run: RunId) -> bool {
        let extended = self.space.extend(end / UNIT, units);
        if extended {
            self.set_run(end, units, run);
        }
        extended
    }

    /// Gives room back that no reader looks at any more.
    pub(super) fn give(&mut self, place: Place, units: u32, locals: &Locals, unseen: &Unseen) {
        if let Some(index) = self.space.give(place / UNIT, units) {
            self.chunks[index] = None;
            while self.chunks.last().is_some_and(Option::is_none) {
                self.chunks.pop();
            }
            locals.drop_chunk(index, unseen);
        }
    }

    fn set_run(&mut self, place: Place, units: u32, run: RunId) {
        let (chunk, at) = self.chunk_mut(place);
        chunk.runs[at / UNIT as usize..][..units as usize].fill(run);
    }

    fn chunk(&self, place: Place) -> (&Chunk, usize) {
        let chunk = self.chunks[place as usize / CHUNK].as_ref();
        (chunk.expect("a place that was given out lies in a chunk"), place as usize % CHUNK)
    }

    fn chunk_mut(&mut self, place: Place) -> (&mut Chunk, usize) {
        let chunk = self.chunks[place as usize / CHUNK].as_mut();
        (chunk.expect("a place that was given out lies in a chunk"), place as usize % CHUNK)
    }

    #[inline]
    pub(super) fn name(&self, place: Place) -> u64 {
        let (chunk, at) = self.chunk(place);
        chunk.names[at]
    }

    /// The name at a place that was given out at some time.
    #[inline]
    pub(super) fn name_if_there(&self, place: Place) -> Option<u64> {
        let chunk = self.chunks.get(place as usize / CHUNK)?.as_ref()?;
        Some(chunk.names[place as usize % CHUNK])
    }

    /// The names of the blocks that were handed out together, a cache line; those of blocks that are gone included.
    #[inline]
    pub(super) fn unit_names(&self, unit: u32) -> &[u64; UNIT as usize] {
        let (chunk, at) = self.chunk(unit * UNIT);
        chunk.names[at..].first_chunk().expect("a chunk is whole units")
    }

    #[inline]
    pub(super) fn prefetch_names(&self, unit: u32) {
        let (chunk, at) = self.chunk(unit * UNIT);
        prefetch(&chunk.names[at]);
    }

    pub(super) fn set_name(&mut self, place: Place, name: u64) {
        let (chunk, at) = self.chunk_mut(place);
        chunk.names[at] = name;
    }

    /// The names of a stretch within a run.
    #[inline]
    pub(super) fn names(&self, place: Place, len: usize) -> &[u64] {
        let (chunk, at) = self.chunk(place);
        &chunk.names[at..at + len]
    }

    #[inline]
    pub(super) fn names_mut(&mut self, place: Place, len: usize) -> &mut [u64] {
        let (chunk, at) = self.chunk_mut(place);
        &mut chunk.names[at..at + len]
    }

    /// The run to which a place was given.
    #[inline]
    pub(super) fn run(&self, place: Place) -> RunId {
        let (chunk, at) = self.chunk(place);
        chunk.runs[at / UNIT as usize]
    }

    /// Copies a stretch to where nobody looks yet.
    pub(super) fn copy(&mut self, from: Place, to: Place, len: usize, locals: &Locals) {
        let (source, target) = (locals.slice(from, len), locals.slice(to, len));
        for (source, target) in source.iter().zip(target) {
            target.store(source.load(Relaxed), Relaxed);
        }
        let (from_chunk, to_chunk) = (from as usize / CHUNK, to as usize / CHUNK);
        let (from, to) = (from as usize % CHUNK, to as usize % CHUNK);
        if from_chunk == to_chunk {
            let (chunk, _) = self.chunk_mut((to_chunk * CHUNK) as Place);
            chunk.names.copy_within(from..from + len, to);
        } else if let Ok([Some(source), Some(target)]) = self.chunks.get_disjoint_mut([from_chunk, to_chunk])
        {
            target.names[to..to + len].copy_from_slice(&source.names[from..from + len]);
        }
    }

    /// Bytes beside those of the index's memory.
    pub(super) fn bytes(&self) -> usize {
        self.space.bytes()
            + self.chunks.capacity() * size_of::<Option<Chunk>>()
            + Locals::directory_bytes(self.space.limit())
    }
}
