//! Who holds how much of a run, as the writer changes it under the readers' eyes.
//!
//! Up to five holders are words of the header, more are a list elsewhere, hashed by slot. A word keeps its place in
//! the header or list for as long as its slot holds the run, so that no reader passes it by while it moves.

use std::sync::atomic::{
    AtomicU64,
    Ordering::{Relaxed, Release},
};

use super::{
    ApplyError, RunIndex,
    header::{HOLDERS, Holding, LIST, RunId, halves, pair, slot_of},
    limbo::Retired,
};
use crate::Slot;

/// Words of the smallest list.
const SMALLEST: u32 = 16;
/// Words of the largest: half a chunk of lists, for 24,000 holders of one run.
const LARGEST: u32 = 1 << 15;
/// Holders that come back from a list into the header; fewer than it has room for, so that they do not come and go.
const FEW: u16 = 3;

/// Where a slot's word is or would be in a list.
fn probe(list: &[AtomicU64], slot: Slot) -> &AtomicU64 {
    let mask = list.len() - 1;
    let mut at = (slot.index() * 0x9E37_79B1) >> 7 & mask;
    loop {
        let word = list[at].load(Relaxed);
        if word == 0 || slot_of(word) == slot {
            return &list[at];
        }
        at = (at + 1) & mask;
    }
}

impl RunIndex {
    fn word(&self, run: RunId, slot: Slot) -> Option<&AtomicU64> {
        let header = self.shared.header(run);
        match self.shared.holder_list(header) {
            None => header[HOLDERS..].iter().find(|word| {
                let word = word.load(Relaxed);
                word != 0 && slot_of(word) == slot
            }),
            Some(list) => Some(probe(list, slot)).filter(|word| word.load(Relaxed) != 0),
        }
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
        match self.shared.holder_list(header).map(<[_]>::len) {
            None if header[HOLDERS..].iter().any(|word| word.load(Relaxed) == 0) => Ok(()),
            None => self.relist(run, SMALLEST),
            Some(len) => {
                let cold = self.cold[run as usize];
                if (usize::from(cold.listed) + 1) * 4 <= len * 3 {
                    return Ok(());
                }
                let wanted = (u32::from(cold.holders) + 1) * 2;
                self.relist(run, wanted.next_power_of_two().max(SMALLEST))
            }
        }
    }

    /// Writes all holders into a list of `len` words, and then puts it in the place of the present one.
    #[cold]
    fn relist(&mut self, run: RunId, len: u32) -> Result<(), ApplyError> {
        if len > LARGEST {
            return Err(ApplyError::Full);
        }
        let place = self.new_list(len).ok_or(ApplyError::Full)?;
        let list = self.shared.lists.slice(place, len as usize);
        let header = self.shared.header(run);
        let old = self.shared.holder_list(header).unwrap_or(&header[HOLDERS..]);
        let mut holders = 0;
        for word in old {
            let word = word.load(Relaxed);
            if Holding::of(word).blocks > 0 {
                probe(list, slot_of(word)).store(word, Relaxed);
                holders += 1;
            }
        }
        self.replace_list(run, pair(place, len.trailing_zeros()));
        let epoch = self.shared.epochs.current();
        let cold = &mut self.cold[run as usize];
        (cold.holders, cold.listed) = (holders, holders);
        // Readers may look at the words in the header, which have to stay as they are.
        cold.epoch = epoch;
        Ok(())
    }

    fn replace_list(&mut self, run: RunId, list: u64) {
        let header = self.shared.header(run);
        let (place, bits) = halves(header[LIST].load(Relaxed));
        header[LIST].store(list, Release);
        if place != 0 {
            self.retire(Retired::List { place, words: 1 << bits });
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
                let free = match self.shared.holder_list(header) {
                    Some(list) => Some(probe(list, slot)),
                    None => header[HOLDERS..].iter().find(|word| word.load(Relaxed) == 0),
                };
                if let Some(free) = free {
                    free.store(new.word(slot), Release);
                }
                debug_assert!(free.is_some(), "there is room for a holder");
                (Holding::NONE, 1, 1)
            }
        };
        let state = &mut self.slots[slot.index()];
        state.cut_off = state.cut_off + u32::from(new.is_cut_off) - u32::from(old.is_cut_off);
        if is_listed {
            let cold = &mut self.cold[run as usize];
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
        let epoch = self.cold[run as usize].epoch;
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
