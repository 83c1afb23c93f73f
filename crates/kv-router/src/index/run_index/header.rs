//! The header of a run: one cache line that says where its blocks lie, where it hangs, and who holds how much of it.
//!
//! A run is a stretch of blocks that follow one another. What lies at an offset of a run never changes while a reader
//! may look at it; nor does a run's number, nor where it hangs. So a holder's word, which has the slot and how many of
//! the run's first blocks it holds, is true on its own at the moment it is read.

use super::columns::{MAX_BLOCKS, UNIT};
use crate::Slot;

/// The number of a run; that of its header.
pub(super) type RunId = u32;
/// Where first blocks hang; not a run.
pub(super) const ROOT: RunId = 0;

/// Words of a header.
pub(super) const HEADER: usize = 8;
/// Where the blocks lie (high half) and how many there are; both change at once.
pub(super) const EXTENT: usize = 0;
/// The run that this one hangs at (high half), and how many of its blocks come before.
pub(super) const ORIGIN: usize = 1;
/// Where the holders are listed if they are not in the header: place of the list and the logarithm of its length; 0 if
/// they are.
pub(super) const LIST: usize = 2;
/// The first of the holders in the header.
pub(super) const HOLDERS: usize = 3;

pub(super) const fn pair(high: u32, low: u32) -> u64 {
    (high as u64) << 32 | low as u64
}

pub(super) const fn halves(word: u64) -> (u32, u32) {
    ((word >> 32) as u32, word as u32)
}

/// What one slot has of a run: its leading blocks, in one word. The low half is negative if the slot lacks a block
/// between the root and the run, so that the holding counts for no query.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Holding {
    /// Leading blocks of the run.
    pub(super) blocks: u32,
    /// A block above the run is missing.
    pub(super) is_cut_off: bool,
}

const CUT_OFF: u32 = 1 << 31;

impl Holding {
    pub(super) const NONE: Self = Self { blocks: 0, is_cut_off: false };

    /// Blocks that count for a query.
    pub(super) fn whole(self) -> u32 {
        if self.is_cut_off { 0 } else { self.blocks }
    }

    /// The word in a list of holders. One without blocks keeps its place in the list.
    pub(super) fn word(self, slot: Slot) -> u64 {
        let cut_off = if self.is_cut_off || self.blocks == 0 { CUT_OFF } else { 0 };
        pair(slot.to_bits(), cut_off | self.blocks)
    }

    pub(super) fn of(word: u64) -> Self {
        let low = word as u32;
        let blocks = low & !CUT_OFF;
        Self { blocks, is_cut_off: blocks > 0 && low & CUT_OFF != 0 }
    }
}

/// Whose word it is.
pub(super) fn slot_of(word: u64) -> Slot {
    Slot::from_bits((word >> 32) as u32)
}

/// Blocks that count for a query, from a holder's word; none if it is not positive.
#[inline]
pub(super) fn counting(word: u64) -> i32 {
    word as u32 as i32
}

/// An entry of the table of children: bits of the hash, where the run's blocks began when it was last moved, in units,
/// and its number. Who finds it asks for header and blocks at once.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct ChildEntry(pub(super) u64);

impl ChildEntry {
    /// An unused entry.
    pub(super) const NONE: Self = Self(0);
    const RUN_BITS: u32 = 24;
    const UNIT_BITS: u32 = 25;
    const TAG: u64 = u64::MAX << (Self::RUN_BITS + Self::UNIT_BITS);
    /// Runs that there can be: more than the largest table of children has room for.
    pub(super) const MAX_RUNS: u32 = 1 << Self::RUN_BITS;

    pub(super) fn new(hash: u64, place: u32, run: RunId) -> Self {
        const { assert!(MAX_BLOCKS / UNIT as usize <= 1 << Self::UNIT_BITS) };
        let unit = u64::from(place / UNIT);
        Self(hash << (64 - 15) | unit << Self::RUN_BITS | u64::from(run))
    }

    pub(super) fn run(self) -> RunId {
        self.0 as u32 & (Self::MAX_RUNS - 1)
    }

    pub(super) fn place(self) -> u32 {
        ((self.0 >> Self::RUN_BITS) as u32 & ((1 << Self::UNIT_BITS) - 1)) * UNIT
    }

    #[inline]
    pub(super) fn may_be(self, hash: u64) -> bool {
        (self.0 ^ hash << (64 - 15)) & Self::TAG == 0
    }
}
