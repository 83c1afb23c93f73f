//! Where the large arrays of an index lie: regions that the system can back with one large page each.
//!
//! Every block that is looked up lies on another page, so that with small pages nearly every look-up has to find out
//! where its page is, too. An index takes its first megabytes from the allocator, piece by piece, and stays small while
//! it is; what comes beyond lies in regions.
#![allow(unsafe_code, reason = "arrays of plain words in memory from the allocator")]

use std::{
    alloc::{Layout, alloc, alloc_zeroed, dealloc, handle_alloc_error},
    ops::{Deref, DerefMut},
    ptr::NonNull,
    sync::{Arc, atomic::AtomicU64},
};

use parking_lot::Mutex;

use super::{lanes::Line, space::Space};

/// The size of a large page where that is usual.
const REGION: usize = 1 << 21;
/// What regions are handed out in.
const UNIT: usize = 512;
/// Regions at most: 128 GiB, more than the largest index has use for.
const REGIONS: usize = 1 << 16;
/// Bytes that come from the allocator before there is a region.
const FIRST: usize = 2 * REGION;
/// The largest piece that a region is asked for: two of them fit.
const LARGEST: usize = REGION / 2;
const ALIGNMENT: usize = 64;
/// What goes back to the system while the rest of its region is in use: a part of what columns are made of.
const SLICE: usize = REGION / 64;
const SLICE_UNITS: u32 = (SLICE / UNIT) as u32;

/// Types of which all bits zero are a value, and that need no more alignment than a cache line.
///
/// # Safety
/// That has to be so; nothing may have to be dropped.
pub(super) unsafe trait Plain {}
// SAFETY: plain numbers.
unsafe impl Plain for u32 {}
// SAFETY: plain numbers.
unsafe impl Plain for u64 {}
// SAFETY: an atomic number is like a number.
unsafe impl Plain for AtomicU64 {}
// SAFETY: plain numbers, aligned to a cache line.
unsafe impl Plain for Line {}

/// The memory of one index.
#[derive(Clone)]
pub(super) struct Memory(Arc<Mutex<Regions>>);

struct Regions {
    space: Space,
    regions: Vec<Option<Region>>,
    /// Bytes of pieces that lie in none.
    elsewhere: usize,
}

struct Region {
    at: NonNull<u8>,
    /// From here on all is as it came from the system: zeros.
    touched: u32,
    /// Slices that went back to the system, a bit each.
    absent: u64,
}

// SAFETY: it is memory, which belongs to nobody's thread.
unsafe impl Send for Region {}

/// An array, zeros at first, that gives its memory back when it is dropped.
pub(super) struct Piece<T: Plain> {
    at: NonNull<T>,
    len: usize,
    /// In which unit of the regions it lies; 0 if elsewhere.
    unit: u32,
    memory: Option<Memory>,
}

// SAFETY: it is the only owner of its elements.
unsafe impl<T: Plain + Send> Send for Piece<T> {}
// SAFETY: it gives out what a shared slice gives out.
unsafe impl<T: Plain + Sync> Sync for Piece<T> {}

impl Region {
    const LAYOUT: Layout = match Layout::from_size_align(REGION, REGION) {
        Ok(layout) => layout,
        Err(_) => panic!("a power of two"),
    };

    fn new() -> Self {
        // SAFETY: the layout is not empty.
        let at = NonNull::new(unsafe { alloc(Self::LAYOUT) });
        let Some(at) = at else { handle_alloc_error(Self::LAYOUT) };
        // Zeros come in the place of what these pages hold.
        // SAFETY: they are whole pages that nobody uses yet.
        let is_zero = unsafe { advice::forget(at, REGION) };
        advice::want_large_page(at, REGION, true);
        let touched = if is_zero { 0 } else { (REGION / UNIT) as u32 };
        Self { at, touched, absent: 0 }
    }

    /// Gives the memory of a slice back, in which nothing is in use.
    fn forget(&mut self, slice: u32) {
        // SAFETY: the slice lies within the region.
        let at = unsafe { self.at.add(slice as usize * SLICE) };
        // SAFETY: whole pages that nobody uses.
        let is_absent = unsafe { advice::forget(at, SLICE) };
        self.absent |= u64::from(is_absent) << slice;
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // The allocator may keep the memory for other purposes, which would not ask for a large page.
        // SAFETY: nobody uses what is in it any more.
        unsafe { advice::forget(self.at, REGION) };
        advice::want_large_page(self.at, REGION, false);
        // SAFETY: it was allocated with this layout.
        unsafe { dealloc(self.at.as_ptr(), Self::LAYOUT) };
    }
}

/// What the system is told about pages. Where it cannot be told, all is slower or larger, nothing else.
#[cfg(all(target_os = "linux", not(miri)))]
mod advice {
    use std::ptr::NonNull;

    use rustix::mm::{Advice, madvise};

    /// Gives pages back, so that zeros are in them when they are used again; says whether that is so.
    ///
    /// # Safety
    /// Nobody uses what is in them.
    pub(super) unsafe fn forget(at: NonNull<u8>, bytes: usize) -> bool {
        // SAFETY: as the caller says.
        unsafe { madvise(at.as_ptr().cast(), bytes, Advice::LinuxDontNeed) }.is_ok()
    }

    pub(super) fn want_large_page(at: NonNull<u8>, bytes: usize, is_wanted: bool) {
        let advice = if is_wanted { Advice::LinuxHugepage } else { Advice::LinuxNoHugepage };
        // SAFETY: it changes no contents.
        let _ = unsafe { madvise(at.as_ptr().cast(), bytes, advice) };
    }
}

#[cfg(not(all(target_os = "linux", not(miri))))]
mod advice {
    use std::ptr::NonNull;

    pub(super) unsafe fn forget(_: NonNull<u8>, _: usize) -> bool {
        false
    }

    pub(super) fn want_large_page(_: NonNull<u8>, _: usize, _: bool) {}
}

impl Memory {
    pub(super) fn new() -> Self {
        let space = Space::new((REGION / UNIT) as u32, REGIONS);
        Self(Arc::new(Mutex::new(Regions { space, regions: Vec::new(), elsewhere: 0 })))
    }

    /// An array of zeros.
    pub(super) fn take<T: Plain>(&self, len: usize) -> Piece<T> {
        const { assert!(align_of::<T>() <= ALIGNMENT && !std::mem::needs_drop::<T>()) };
        let bytes = len * size_of::<T>();
        if bytes == 0 {
            return Piece::default();
        }
        let mut regions = self.0.lock();
        let memory = Some(self.clone());
        if regions.elsewhere + bytes > FIRST
            && bytes <= LARGEST
            && let Some((at, unit)) = regions.take(bytes)
        {
            return Piece { at: at.cast(), len, unit, memory };
        }
        regions.elsewhere += bytes;
        let layout = Piece::<T>::layout(len);
        // SAFETY: the layout is not empty.
        let Some(at) = NonNull::new(unsafe { alloc_zeroed(layout) }) else { handle_alloc_error(layout) };
        Piece { at: at.cast(), len, unit: 0, memory }
    }

    /// Bytes, those included of regions in which nothing is now, unless they went back to the system.
    pub(super) fn bytes(&self) -> usize {
        let regions = self.0.lock();
        regions.elsewhere + regions.space.present() * REGION - regions.absent_bytes()
            + regions.space.bytes()
            + regions.regions.capacity() * size_of::<Option<Region>>()
            + size_of::<Mutex<Regions>>()
    }
}

impl Regions {
    fn take(&mut self, bytes: usize) -> Option<(NonNull<u8>, u32)> {
        let units = bytes.div_ceil(UNIT) as u32;
        let taken = self.space.take(units)?;
        let (index, first) = (taken.unit as usize / (REGION / UNIT), taken.unit % (REGION / UNIT) as u32);
        if taken.new_chunk.is_some() {
            if self.regions.len() <= index {
                self.regions.resize_with(index + 1, || None);
            }
            self.regions[index] = Some(Region::new());
        }
        let region = self.regions[index].as_mut()?;
        // SAFETY: the unit lies within the region.
        let at = unsafe { region.at.add(first as usize * UNIT) };
        if region.touched > first {
            // SAFETY: the units are within the region, and nobody's but the caller's.
            unsafe { at.write_bytes(0, units as usize * UNIT) };
        }
        region.touched = region.touched.max(first + units);
        for slice in first / SLICE_UNITS..=(first + units - 1) / SLICE_UNITS {
            region.absent &= !(1 << slice);
        }
        Some((at, taken.unit))
    }

    fn give(&mut self, unit: u32, bytes: usize) {
        let units = bytes.div_ceil(UNIT) as u32;
        if let Some(index) = self.space.give(unit, units) {
            self.regions[index] = None;
            self.regions.truncate(self.space.limit());
            self.regions.shrink_to_fit();
            return;
        }
        let index = unit as usize / (REGION / UNIT);
        let (base, first) = (unit - unit % (REGION / UNIT) as u32, unit % (REGION / UNIT) as u32);
        let Some(region) = &mut self.regions[index] else { return };
        for slice in first / SLICE_UNITS..=(first + units - 1) / SLICE_UNITS {
            if self.space.is_free(base + slice * SLICE_UNITS, SLICE_UNITS) {
                region.forget(slice);
            }
        }
    }

    fn absent_bytes(&self) -> usize {
        let absent = self.regions.iter().flatten().map(|region| region.absent.count_ones() as usize);
        absent.sum::<usize>() * SLICE
    }
}

impl<T: Plain> Piece<T> {
    fn layout(len: usize) -> Layout {
        let layout = Layout::array::<T>(len).and_then(|layout| layout.align_to(ALIGNMENT));
        layout.expect("far below the size of all memory")
    }
}

impl<T: Plain> Default for Piece<T> {
    fn default() -> Self {
        Self { at: NonNull::dangling(), len: 0, unit: 0, memory: None }
    }
}

impl<T: Plain> Deref for Piece<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: `len` elements that were zeros at first, and are this piece's alone.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.len) }
    }
}

impl<T: Plain> DerefMut for Piece<T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and borrowed alone.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.len) }
    }
}

impl<T: Plain> Drop for Piece<T> {
    fn drop(&mut self) {
        let Some(memory) = &self.memory else { return };
        let mut regions = memory.0.lock();
        let bytes = self.len * size_of::<T>();
        if self.unit != 0 {
            regions.give(self.unit, bytes);
        } else {
            regions.elsewhere -= bytes;
            // SAFETY: it was allocated with this layout.
            unsafe { dealloc(self.at.as_ptr().cast(), Self::layout(self.len)) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every so manieth word is looked at: Miri would need minutes for all.
    const WORDS: usize = if cfg!(miri) { 997 } else { 1 };

    #[test]
    fn pieces_are_zeros_also_where_others_were() {
        let memory = Memory::new();
        let empty = memory.bytes();
        let mut pieces: Vec<Piece<u64>> = Vec::new();
        for round in 0..3 {
            for number in 0..200 {
                let mut piece = memory.take::<u64>(1 + number * 100);
                assert!(piece.iter().step_by(WORDS).all(|&word| word == 0), "round {round}, piece {number}");
                assert_eq!(piece.as_ptr() as usize % ALIGNMENT, 0);
                piece.iter_mut().step_by(WORDS).for_each(|word| *word = u64::MAX);
                pieces.push(piece);
            }
            let held: usize = pieces.iter().map(|piece| piece.len() * 8).sum();
            assert!(held > FIRST && memory.bytes() >= held && memory.bytes() < held * 2 + 2 * REGION);
            // Every other one goes, so that there is room between those that stay.
            let mut number = 0;
            pieces.retain(|_| {
                number += 1;
                number % 2 == 0 && round < 2
            });
        }
        assert_eq!(memory.bytes(), empty);
    }

    #[test]
    fn what_is_given_back_within_a_region_goes_back_to_the_system() {
        let memory = Memory::new();
        let _first = memory.take::<u64>(FIRST / 8);
        let mut pieces: Vec<Piece<u64>> = (0..15).map(|_| memory.take(SLICE / 8)).collect();
        pieces.iter_mut().for_each(|piece| piece.fill(7));
        let full = memory.bytes();
        pieces.truncate(1);
        if cfg!(all(target_os = "linux", not(miri))) {
            assert!(memory.bytes() <= full - 13 * SLICE);
        }
        pieces.extend((0..14).map(|_| memory.take(SLICE / 8)));
        assert_eq!(memory.bytes(), full);
        assert!(pieces[0].iter().all(|&word| word == 7) && pieces[14].iter().all(|&word| word == 0));
    }

    #[test]
    fn what_is_larger_than_a_region_lies_elsewhere() {
        let memory = Memory::new();
        let large = memory.take::<u32>(REGION);
        let small = memory.take::<Line>(1);
        assert!(large.unit == 0 && small.unit != 0);
        drop(large);
        assert_eq!(small[0].0, [0; 16]);
        assert_eq!(memory.take::<u32>(0).len(), 0);
    }
}
