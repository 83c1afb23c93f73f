//! Who holds how much of a run, as the writer changes it under the readers' eyes.
//!
//! Up to five holders are words of the header, more are a list elsewhere. A word keeps its place in
//! the header or list for as long as its slot holds the run, so that no reader passes it by while it moves.

use std::sync::atomic::Ordering::{Relaxed, Release};

use super::{
    ApplyError, RunIndex,
    atomics::AtomicU64,
    header::{HEADER, HOLDERS, Holding, LIST, RunId, halves, pair, slot_of},
    limbo::Retired,
    shared::Shared,
};
use crate::Slot;

/// Holders in the smallest list.
const SMALLEST: u32 = 8;
/// Holders in the largest: more slots than that on one block are more than a router serves.
const LARGEST: u32 = 1 << 15;
/// Holders that come back from a list into the header; fewer than it has room for, so that they do not come and go.
const FEW: u16 = 3;

/// A list of holders: their words one after the other, for readers, and where whose word is, for the writer, in
/// a hash table of 16-bit positions, twice as long.
#[derive(Clone, Copy)]
struct List<'a> {
    words: &'a [AtomicU64],
    index: &'a [AtomicU64],
}

/// Words of memory for a list of `len` holders.
fn memory(len: u32) -> u32 {
    len + len / 2
}

impl<'a> List<'a> {
    fn of(memory: &'a [AtomicU64]) -> Self {
        let (words, index) = memory.split_at(memory.len() / 3 * 2);
        Self { words, index }
    }

    /// A slot's word.
    fn find(self, slot: Slot) -> Option<&'a AtomicU64> {
        let mut found = None;
        self.probe(slot, |at| {
            let word = &self.words[at];
            if slot_of(word.load(Relaxed)) == slot {
                found = Some(word);
            }
            found.is_some()
        });
        found
    }

    /// Puts a slot's word behind the `listed` ones.
    fn push(self, listed: usize, word: u64) {
        let place = self.probe(slot_of(word), |_| false);
        let entry = &self.index[place / 4];
        entry.store(entry.load(Relaxed) | (listed as u64 + 1) << (place % 4 * 16), Relaxed);
        self.words[listed].store(word, Release);
    }

    /// Calls `is_it` with the positions that may be the slot's, and returns where in the index the search ended.
    fn probe(self, slot: Slot, mut is_it: impl FnMut(usize) -> bool) -> usize {
        let mask = self.index.len() * 4 - 1;
        let mut place = (slot.index() * 0x9E37_79B1) >> 7 & mask;
        loop {
            let entry = (self.index[place / 4].load(Relaxed) >> (place % 4 * 16)) as u16;
            if entry == 0 || is_it(usize::from(entry) - 1) {
                return place;
            }
            place = (place + 1) & mask;
        }
    }
}

fn list_of<'a>(shared: &'a Shared, header: &[AtomicU64; HEADER]) -> Option<List<'a>> {
    match halves(header[LIST].load(Relaxed)) {
        (0, _) => None,
        (place, bits) => Some(List::of(shared.lists.slice(place, memory(1 << bits) as usize))),
    }
}

/// The word of a slot among a run's holders.
#[inline]
pub(super) fn word_of<'a>(
    shared: &'a Shared,
    header: &'a [AtomicU64; HEADER],
    slot: Slot,
) -> Option<&'a AtomicU64> {
    match list_of(shared, header) {
        None => header[HOLDERS..].iter().find(|word| {
            let word = word.load(Relaxed);
            word != 0 && slot_of(word) == slot
        }),
        Some(list) => list.find(slot),
    }
}

impl RunIndex {
    fn list(&self, run: RunId) -> Option<List<'_>> {
        list_of(&self.shared, self.shared.header(run))
    }

    pub(super) fn word(&self, run: RunId, slot: Slot) -> Option<&AtomicU64> {
        word_of(&self.shared, self.shared.header(run), slot)
    }

    /// What a slot holds of a run, holes apart.
    pub(super) fn holding(&self, run: RunId, slot: Slot) -> Holding {
        self.word(run, slot).map_or(Holding::NONE, |word| Holding::of(word.load(Relaxed)))
    }

    /// All that hold leading blocks of a run.
    pub(super) fn holders(&self, run: RunId) -> impl Iterator<Item = Holding> + '_ {
        let header = self.shared.header(run);
        let words = self.shared.holder_list(header).unwrap_or(&header[HOLDERS..]);
        words.iter().map(|word| Holding::of(word.load(Relaxed))).filter(|holding| holding.blocks > 0)
    }

    /// Makes sure that `put_holding` finds room for one more holder.
    pub(super) fn room_for_holder(&mut self, run: RunId, slot: Slot) -> Result<(), ApplyError> {
        if self.word(run, slot).is_some() {
            return Ok(());
        }
        let header = self.shared.header(run);
        let cold = self.cold[run];
        match self.list(run) {
            None if header[HOLDERS..].iter().any(|word| word.load(Relaxed) == 0) => Ok(()),
            None => self.relist(run, SMALLEST),
            Some(list) if usize::from(cold.listed) < list.words.len() => Ok(()),
            Some(_) => {
                // A quarter more than there are, so that some may leave and others come before the next time.
                let wanted = u32::from(cold.holders) * 5 / 4 + 1;
                self.relist(run, wanted.next_power_of_two().max(SMALLEST))
            }
        }
    }

    /// Writes all holders into a list for `len`, and then puts it in the place of the present one.
    #[cold]
    fn relist(&mut self, run: RunId, len: u32) -> Result<(), ApplyError> {
        if len > LARGEST {
            return Err(ApplyError::Full);
        }
        let place = self.new_list(memory(len)).ok_or(ApplyError::Full)?;
        let list = List::of(self.shared.lists.slice(place, memory(len) as usize));
        let header = self.shared.header(run);
        let old = self.shared.holder_list(header).unwrap_or(&header[HOLDERS..]);
        let mut holders = 0;
        for word in old {
            let word = word.load(Relaxed);
            if Holding::of(word).blocks > 0 {
                list.push(holders, word);
                holders += 1;
            }
        }
        self.replace_list(run, pair(place, len.trailing_zeros()));
        let epoch = self.shared.epochs.current();
        let cold = &mut self.cold[run];
        (cold.holders, cold.listed) = (holders as u16, holders as u16);
        // Readers may look at the words in the header, which have to stay as they are.
        cold.epoch = epoch;
        Ok(())
    }

    fn replace_list(&mut self, run: RunId, list: u64) {
        let header = self.shared.header(run);
        let (place, bits) = halves(header[LIST].load(Relaxed));
        header[LIST].store(list, Release);
        if place != 0 {
            self.retire(Retired::List { place, words: memory(1 << bits) });
        }
    }

    /// Says what a slot holds of a run from now on; if that is something, there must be room for it.
    pub(super) fn put_holding(&mut self, run: RunId, slot: Slot, new: Holding) {
        let header = self.shared.header(run);
        let is_listed = header[LIST].load(Relaxed) != 0;
        let (old, mut holders, mut listed) = match self.word(run, slot) {
            Some(word) => {
                let old = Holding::of(word.load(Relaxed));
                let empty = if is_listed { Holding::NONE.word(slot) } else { 0 };
                word.store(if new.blocks > 0 { new.word(slot) } else { empty }, Release);
                (old, i32::from(new.blocks > 0) - i32::from(old.blocks > 0), 0)
            }
            None if new.blocks == 0 => return,
            None => {
                if let Some(list) = self.list(run) {
                    list.push(self.cold[run].listed.into(), new.word(slot));
                } else {
                    let free = header[HOLDERS..].iter().find(|word| word.load(Relaxed) == 0);
                    debug_assert!(free.is_some(), "there is room for a holder");
                    if let Some(free) = free {
                        free.store(new.word(slot), Release);
                    }
                }
                (Holding::NONE, 1, 1)
            }
        };
        let state = &mut self.slots[slot.index()];
        state.cut_off = state.cut_off + u32::from(new.is_cut_off) - u32::from(old.is_cut_off);
        if is_listed {
            let cold = &mut self.cold[run];
            holders += i32::from(cold.holders);
            listed += cold.listed;
            (cold.holders, cold.listed) = (holders as u16, listed);
            if new.blocks == 0 && cold.holders <= FEW {
                self.unlist(run);
            }
        }
    }

    /// Gives back the list of a run that is gone.
    pub(super) fn drop_list(&mut self, run: RunId) {
        if self.shared.header(run)[LIST].load(Relaxed) != 0 {
            // Whoever looks into the header now finds what was there before the list, which may be older than the
            // query. The run has no holders, so there is nothing to find.
            for word in &self.shared.header(run)[HOLDERS..] {
                word.store(0, Relaxed);
            }
            self.replace_list(run, 0);
        }
    }

    /// Back into the header, unless readers may still look at what was in it before.
    #[cold]
    fn unlist(&mut self, run: RunId) {
        let epoch = self.cold[run].epoch;
        if !self.has_passed(epoch) {
            return;
        }
        let header = self.shared.header(run);
        let Some(list) = self.shared.holder_list(header) else { return };
        let mut words =
            list.iter().map(|word| word.load(Relaxed)).filter(|&word| Holding::of(word).blocks > 0);
        for place in &header[HOLDERS..] {
            place.store(words.next().unwrap_or(0), Relaxed);
        }
        self.replace_list(run, 0);
    }
}
