//! What an index with many writers keeps of each slot: counters that readers look at, and names behind a mutex.

use std::sync::{
    OnceLock,
    atomic::{AtomicU32, AtomicUsize, Ordering},
};

use parking_lot::{Mutex, MutexGuard};

use super::{Match, MatchBuffer};
use crate::Slot;

/// Slots of the first segment; each further segment doubles their number.
const FIRST_SEGMENT: usize = 64;
/// Segments that all slots need.
const SEGMENTS: usize = (Slot::MAX_SLOTS / FIRST_SEGMENT).ilog2() as usize + 1;

/// The counters of a slot index.
pub(super) struct Counters {
    /// [`Slot::to_bits`] of the slot that the index belongs to.
    slot: AtomicU32,
    /// Blocks that it holds.
    blocks: AtomicU32,
    /// Goes up after each event that took something away, and before anything is stored after it: who read the same
    /// number before and after a look at several blocks saw blocks that were all held at one time.
    removals: AtomicU32,
    /// Held blocks may have ancestors that are not: at least as many as there are while any block can be seen.
    holes: AtomicU32,
}

impl Counters {
    pub(super) fn slot(&self) -> Slot {
        Slot::from_bits(self.slot.load(Ordering::SeqCst))
    }

    pub(super) fn set_slot(&self, slot: Slot) {
        self.slot.store(slot.to_bits(), Ordering::SeqCst);
    }

    pub(super) fn blocks(&self) -> u32 {
        self.blocks.load(Ordering::Relaxed)
    }

    /// Writers of one slot take turns, so a store is enough.
    pub(super) fn set_blocks(&self, blocks: u32) {
        self.blocks.store(blocks, Ordering::Relaxed);
    }

    pub(super) fn removed(&self) {
        self.removals.fetch_add(1, Ordering::SeqCst);
    }

    pub(super) fn set_holes(&self, holes: usize) {
        self.holes.store(u32::try_from(holes).unwrap_or(u32::MAX), Ordering::SeqCst);
    }

    pub(super) fn has_holes(&self) -> bool {
        self.holes.load(Ordering::SeqCst) > 0
    }
}

/// What a slot was like at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    index: u32,
    slot: u32,
    removals: u32,
}

struct Segment<N> {
    counters: Box<[Counters]>,
    names: Box<[Mutex<N>]>,
}

/// The states of all slots, by index. Places are never moved nor given back: 100 bytes or so for each index in use at
/// the same time.
pub(super) struct SlotStates<N> {
    segments: [OnceLock<Segment<N>>; SEGMENTS],
    /// One past the highest index that was asked for.
    len: AtomicUsize,
}

/// The segment of an index, and its place there.
fn locate(index: usize) -> (usize, usize) {
    let group = index / FIRST_SEGMENT;
    match group.checked_ilog2() {
        None => (0, index),
        Some(log) => (log as usize + 1, index - (FIRST_SEGMENT << log)),
    }
}

fn segment_len(segment: usize) -> usize {
    FIRST_SEGMENT << segment.saturating_sub(1)
}

impl<N: Default> SlotStates<N> {
    pub(super) fn new() -> Self {
        Self { segments: [const { OnceLock::new() }; SEGMENTS], len: AtomicUsize::new(0) }
    }

    /// The state of an index, made if it is not there.
    pub(super) fn get(&self, index: usize) -> (&Counters, &Mutex<N>) {
        let (number, at) = locate(index);
        let segment = self.segments[number].get_or_init(|| {
            let len = segment_len(number);
            let first = if number == 0 { 0 } else { len };
            let counters = |at| Counters {
                slot: AtomicU32::new(Slot::new((first + at) as u32, 0).to_bits()),
                blocks: AtomicU32::new(0),
                removals: AtomicU32::new(0),
                holes: AtomicU32::new(0),
            };
            Segment {
                counters: (0..len).map(counters).collect(),
                names: (0..len).map(|_| Mutex::default()).collect(),
            }
        });
        if index >= self.len.load(Ordering::Relaxed) {
            self.len.fetch_max(index + 1, Ordering::Release);
        }
        (&segment.counters[at], &segment.names[at])
    }

    /// The state of an index that was asked for before.
    pub(super) fn peek(&self, index: usize) -> Option<(&Counters, &Mutex<N>)> {
        let (number, at) = locate(index);
        let segment = self.segments.get(number)?.get()?;
        Some((&segment.counters[at], &segment.names[at]))
    }

    /// The counters of all indices that were asked for, in order.
    pub(super) fn counters(&self) -> impl Iterator<Item = &Counters> {
        let len = self.len.load(Ordering::Acquire);
        let segments = self.segments.iter().map_while(OnceLock::get);
        segments.flat_map(|segment| &segment.counters).take(len)
    }

    /// What a slot is like now. Take it before or while looking at the slot's first block.
    pub(super) fn stamp(&self, index: u32) -> Stamp {
        let (slot, removals) = self.peek(index as usize).map_or((0, 0), |(counters, _)| {
            (counters.slot.load(Ordering::SeqCst), counters.removals.load(Ordering::SeqCst))
        });
        Stamp { index, slot, removals }
    }

    pub(super) fn held_blocks(&self, slot: Slot) -> u32 {
        let state = self.peek(slot.index());
        state.map_or(0, |(counters, _)| if counters.slot() == slot { counters.blocks() } else { 0 })
    }

    pub(super) fn bytes(&self) -> usize {
        let segments = self.segments.iter().filter_map(OnceLock::get);
        segments.map(|segment| size_of_val(&*segment.counters) + size_of_val(&*segment.names)).sum()
    }

    /// Puts right what `out` says of slots that changed while they were looked at: `recount` says how long the run of
    /// a slot index is, and is asked while nobody changes the slot.
    pub(super) fn settle(&self, out: &mut MatchBuffer, mut recount: impl FnMut(u32, &N) -> u32) {
        // Taken out for the time, for `out` changes.
        let stamps = std::mem::take(&mut out.stamps);
        for stamp in &stamps {
            if self.stamp(stamp.index) == *stamp {
                continue;
            }
            let Some((counters, names)) = self.peek(stamp.index as usize) else { continue };
            let names = lock_soon(names);
            let (slot, device_blocks) = (counters.slot(), recount(stamp.index, &names));
            drop(names);
            out.matches.retain(|found| found.slot.index() != stamp.index as usize);
            if device_blocks > 0 {
                out.matches.push(Match { slot, device_blocks });
            }
        }
        out.stamps = stamps;
    }
}

/// Waits for an event to be over, which takes a microsecond or so, mostly without going to sleep.
fn lock_soon<N>(names: &Mutex<N>) -> MutexGuard<'_, N> {
    const TRIES: usize = 200;
    for _ in 0..TRIES {
        if let Some(names) = names.try_lock() {
            return names;
        }
        (0..8).for_each(|_| std::hint::spin_loop());
    }
    names.lock()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_index_has_a_place_of_its_own() {
        let mut seen = std::collections::HashSet::new();
        for index in (0..5000).chain([Slot::MAX_SLOTS - 1]) {
            let (segment, at) = locate(index);
            assert!(segment < SEGMENTS && at < segment_len(segment), "{index}");
            assert!(seen.insert((segment, at)));
        }
        let states = SlotStates::<()>::new();
        for index in [0, 63, 64, 127, 128, 300, 1000] {
            assert_eq!(states.get(index).0.slot(), Slot::new(index as u32, 0));
        }
        let listed: Vec<_> = states.counters().map(Counters::slot).collect();
        assert_eq!(listed, (0..1001).map(|index| Slot::new(index, 0)).collect::<Vec<_>>());
    }
}
