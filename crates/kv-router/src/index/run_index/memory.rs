//! Memory that readers look at while the writer writes: chunks of 64-bit words that never move.
//!
//! All words are atomics. A stretch that was written before it was published, and that is not written again while a
//! reader may look at it, may also be read as plain words ([`Words::frozen`]), which compilers turn into vectors.
#![allow(
    unsafe_code,
    reason = "chunks are found through atomic pointers, and frozen words are read as plain ones"
)]

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use parking_lot::Mutex;

#[cfg(not(loom))]
use super::regions::Piece;
use super::{
    atomics::{AtomicPtr, AtomicU64},
    regions::Memory,
};

/// The number of a word: chunk and position within it.
pub(super) type Place = u32;

/// The promise that what is given back now was taken out of everybody's sight before the oldest reader that is under
/// way began.
pub(super) struct Unseen(());

impl Unseen {
    /// # Safety
    /// It must be so, for all that is given back with it.
    pub(super) unsafe fn promise() -> Self {
        Self(())
    }
}

/// Words of a cache line.
const LINE: usize = 8;
/// Lines of a stretch that is about to be read: those that are asked for at once, and those that come closer meanwhile.
const AT_ONCE: usize = 2;
const SOON: usize = 10;

#[cfg(not(loom))]
type Chunk = Piece<AtomicU64>;
#[cfg(loom)]
type Chunk = Box<[AtomicU64]>;

/// `CHUNKS` chunks at most, of 2^`BITS` words each. A stretch never crosses the border of a chunk.
pub(super) struct Words<const BITS: u32, const CHUNKS: usize> {
    /// Zeroed pages until they are used: a large directory costs nothing before.
    chunks: Box<[AtomicPtr<AtomicU64>]>,
    /// What the chunks lie in.
    pieces: Mutex<Vec<Chunk>>,
    memory: Memory,
    /// Chunks that were dropped: who comes too late is told so by loom, and finds no other's memory.
    #[cfg(loom)]
    dropped: Mutex<Vec<Chunk>>,
    /// What was read as plain words.
    #[cfg(loom)]
    copies: Mutex<Vec<Box<[u64]>>>,
}

#[cfg(not(loom))]
fn new_directory(chunks: usize) -> Box<[AtomicPtr<AtomicU64>]> {
    let directory = Box::<[AtomicPtr<AtomicU64>]>::new_zeroed_slice(chunks);
    // SAFETY: all zeros is the null pointer.
    unsafe { directory.assume_init() }
}

#[cfg(loom)]
fn new_directory(chunks: usize) -> Box<[AtomicPtr<AtomicU64>]> {
    (0..chunks).map(|_| AtomicPtr::new(std::ptr::null_mut())).collect()
}

#[cfg(not(loom))]
fn new_chunk(memory: &Memory, len: usize) -> Chunk {
    memory.take(len)
}

#[cfg(loom)]
fn new_chunk(_: &Memory, len: usize) -> Chunk {
    (0..len).map(|_| AtomicU64::default()).collect()
}

impl<const BITS: u32, const CHUNKS: usize> Words<BITS, CHUNKS> {
    /// Words in a chunk.
    pub(super) const LEN: usize = 1 << BITS;

    pub(super) fn new(memory: &Memory) -> Self {
        Self {
            chunks: new_directory(CHUNKS),
            pieces: Mutex::default(),
            memory: memory.clone(),
            #[cfg(loom)]
            dropped: Mutex::default(),
            #[cfg(loom)]
            copies: Mutex::default(),
        }
    }

    /// Makes a chunk of zeros. Only the writer calls it, for a chunk that is not there.
    pub(super) fn add_chunk(&self, chunk: usize) {
        debug_assert!(self.chunks[chunk].load(Relaxed).is_null());
        let mut pieces = self.pieces.lock();
        if pieces.len() <= chunk {
            pieces.resize_with(chunk + 1, Chunk::default);
        }
        pieces[chunk] = new_chunk(&self.memory, Self::LEN);
        self.chunks[chunk].store(pieces[chunk].as_ptr().cast_mut(), Release);
    }

    /// Gives a chunk back in which nothing is in use. Only the writer calls it.
    pub(super) fn drop_chunk(&self, chunk: usize, _: &Unseen) {
        self.chunks[chunk].store(std::ptr::null_mut(), Relaxed);
        let mut pieces = self.pieces.lock();
        let gone = std::mem::take(&mut pieces[chunk]);
        #[cfg(not(loom))]
        drop(gone);
        #[cfg(loom)]
        self.end(gone);
        while pieces.last().is_some_and(|piece| piece.is_empty()) {
            pieces.pop();
        }
    }

    #[cfg(loom)]
    fn end(&self, mut gone: Chunk) {
        gone.iter_mut().for_each(AtomicU64::end);
        self.dropped.lock().push(gone);
    }

    /// Whether a place lies in a chunk. Only the writer asks.
    #[inline]
    pub(super) fn is_there(&self, place: Place) -> bool {
        !self.chunks[(place >> BITS) as usize].load(Relaxed).is_null()
    }

    fn chunk(&self, place: Place) -> &[AtomicU64] {
        let words = self.chunks[(place >> BITS) as usize].load(Acquire);
        assert!(!words.is_null(), "a place that was given out lies in a chunk");
        // SAFETY: not null, so made by `add_chunk` with this length. Its piece lives while anybody may use a place in it:
        // places come from what is published to pinned readers, or from the writer itself (see `drop_chunk`).
        unsafe { std::slice::from_raw_parts(words, Self::LEN) }
    }

    /// A stretch of words.
    #[inline]
    pub(super) fn slice(&self, place: Place, len: usize) -> &[AtomicU64] {
        let at = place as usize & (Self::LEN - 1);
        &self.chunk(place)[at..at + len]
    }

    /// Asks for the first lines of a place, which may not be in use any more.
    #[inline]
    pub(super) fn prefetch(&self, place: Place) {
        if cfg!(loom) {
            // A hint changes nothing that there is to find out.
            return;
        }
        let words = self.chunks[(place >> BITS) as usize].load(Relaxed);
        let at = words.wrapping_add(place as usize & (Self::LEN - 1));
        (0..AT_ONCE).for_each(|line| prefetch_at(at.wrapping_add(line * LINE)));
        (AT_ONCE..SOON).for_each(|line| prefetch_closer(at.wrapping_add(line * LINE)));
    }

    /// Asks for the line of a place.
    #[inline]
    pub(super) fn prefetch_line(&self, place: Place) {
        if cfg!(loom) {
            return;
        }
        let words = self.chunks[(place >> BITS) as usize].load(Relaxed);
        prefetch_at(words.wrapping_add(place as usize & (Self::LEN - 1)));
    }

    /// `N` words.
    #[inline]
    pub(super) fn array<const N: usize>(&self, place: Place) -> &[AtomicU64; N] {
        self.slice(place, N).first_chunk().expect("a slice of this length")
    }

    /// A stretch as plain words.
    ///
    /// # Safety
    /// The words were written before the caller found the place, and are not written for as long as the result is
    /// used.
    #[inline]
    pub(super) unsafe fn frozen(&self, place: Place, len: usize) -> &[u64] {
        let words = self.slice(place, len);
        #[cfg(loom)]
        return self.copy(words);
        // SAFETY: an atomic has the layout of its integer; the caller says that nobody writes.
        #[cfg(not(loom))]
        unsafe {
            std::slice::from_raw_parts(words.as_ptr().cast(), words.len())
        }
    }

    /// What is in loom's words, which are larger; word by word, as whoever reads them plainly may.
    #[cfg(loom)]
    fn copy(&self, words: &[AtomicU64]) -> &[u64] {
        let mut copies = self.copies.lock();
        copies.push(words.iter().map(AtomicU64::load_plainly).collect());
        let copy: *const [u64] = &*copies[copies.len() - 1];
        // SAFETY: a copy stays where it is, and as it is, for as long as this lives.
        unsafe { &*copy }
    }

    /// Bytes of the directory's pages up to the chunk `limit`.
    pub(super) fn directory_bytes(limit: usize) -> usize {
        const PAGE: usize = 4096;
        (limit * size_of::<AtomicPtr<AtomicU64>>()).next_multiple_of(PAGE)
    }
}

/// Asks for the cache line of something that will be needed soon.
#[inline]
pub(crate) fn prefetch<T>(target: &T) {
    prefetch_at(target);
}

/// The same for what is needed later: it comes as far as the second cache, where more can be under way at once.
#[inline]
fn prefetch_closer<T>(target: *const T) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: a hint, which may name any address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(target.cast());
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = target;
}

#[inline]
fn prefetch_at<T>(target: *const T) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: a hint, which may name any address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(target.cast());
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = target;
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    #[test]
    fn words_keep_their_place_while_chunks_come_and_go() {
        let words = Words::<4, 8>::new(&Memory::new());
        words.add_chunk(0);
        words.slice(3, 2)[1].store(7, Relaxed);
        words.add_chunk(5);
        words.array::<8>(5 << 4)[0].store(8, Relaxed);
        // SAFETY: nobody writes.
        assert_eq!(unsafe { words.frozen(3, 3) }, [0, 7, 0]);
        // SAFETY: nobody reads.
        words.drop_chunk(5, &unsafe { Unseen::promise() });
        words.add_chunk(5);
        assert_eq!(words.slice(5 << 4, 1)[0].load(Relaxed), 0, "a new chunk is zeros");
        assert_eq!(words.slice(4, 1)[0].load(Relaxed), 7);
    }
}
