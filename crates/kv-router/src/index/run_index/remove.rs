//! Removed events, and what goes with the last holder.

use std::sync::atomic::Ordering::Release;

use dynamo_engine_api::ExternalBlockHash;

use super::{
    ApplyError, At, RunIndex,
    columns::UNIT,
    header::{EXTENT, ROOT, RunId, pair},
    holes::Bits,
    limbo::Retired,
};
use crate::Slot;

impl RunIndex {
    pub(super) fn remove(&mut self, slot: Slot, names: &[ExternalBlockHash]) -> Result<(), ApplyError> {
        let mut result = Ok(());
        let mut rest = names;
        while let Some(first) = rest.first() {
            let Some(at) = self.named(slot, first.0) else {
                result = Err(ApplyError::BlockNotFound);
                rest = &rest[1..];
                continue;
            };
            if !self.are_names_plain() {
                self.unname(slot, at, first.0);
                rest = &rest[1..];
                continue;
            }
            let (begin, end) = self.stretch(slot, at, rest);
            self.release(slot, at.run, begin, end);
            rest = &rest[(end - begin) as usize..];
        }
        result
    }

    /// The blocks of a run, from `at` towards its start or its end, that `names` lists one after the other and that
    /// the slot holds.
    fn stretch(&self, slot: Slot, at: At, names: &[ExternalBlockHash]) -> (u32, u32) {
        let run = self.shared.run(at.run);
        let (offset, len) = (at.offset as usize, run.len as usize);
        let stored = self.columns.names(run.place, len);
        if self.holes.get(at.run, slot).is_none() {
            let upwards = stored[..=offset].iter().rev().zip(names);
            let count = upwards.take_while(|(stored, name)| **stored == name.0).count();
            if count > 1 {
                return ((offset + 1 - count) as u32, at.offset + 1);
            }
        }
        let held = match self.holes.get(at.run, slot) {
            Some(bits) => bits.stretch(at.offset),
            None => self.holding(at.run, slot).blocks - at.offset,
        };
        let downwards = stored[offset..].iter().zip(names).take(held as usize);
        let count = downwards.take_while(|(stored, name)| **stored == name.0).count();
        (at.offset, at.offset + count as u32)
    }

    /// Takes blocks of a run, all of which it holds, from a slot.
    pub(super) fn release(&mut self, slot: Slot, run: RunId, begin: u32, end: u32) {
        let before = self.holding(run, slot);
        let mut after = before;
        if let Some(mut bits) = self.holes.take(run, slot) {
            bits.put(begin, end, false);
            after.blocks = bits.stretch(0);
            if after.blocks < bits.end() {
                self.holes.put(run, slot, bits);
            }
        } else {
            after.blocks = begin;
            if end < before.blocks {
                let mut bits = Bits::leading(before.blocks);
                bits.put(begin, end, false);
                self.holes.put(run, slot, bits);
            }
        }
        if after.blocks == 0 {
            after.is_cut_off = false;
        }
        if after != before {
            let turned = !before.is_cut_off && self.pass_on(slot, run, after.blocks, before.blocks, true);
            self.put_holding(run, slot, after);
            self.end_turn(turned);
        }
        self.count(slot, 0, end - begin);
        if end == self.len(run) {
            self.trim(run);
        }
    }

    /// Drops the blocks at the end of a run that nobody holds and that lead to nothing; then those before, in other
    /// runs.
    pub(super) fn trim(&mut self, mut run: RunId) {
        while run != ROOT {
            let (place, len) = {
                let found = self.shared.run(run);
                (found.place, found.len)
            };
            let kept = self.kept(run, len);
            if kept == len {
                return;
            }
            self.unlist_names(place + kept, len - kept);
            self.nodes -= (len - kept) as usize;
            if kept > 0 {
                self.shared.header(run)[EXTENT].store(pair(place, kept), Release);
                let epoch = self.shared.epochs.current();
                let (used, cold) = (kept.div_ceil(UNIT), &mut self.cold[run]);
                cold.epoch = epoch;
                let units = u32::from(std::mem::replace(&mut cold.units, used as u16));
                if units > used {
                    let place = place + used * UNIT;
                    self.retire(Retired::Blocks { place, units: units - used });
                }
                return;
            }
            self.unlist_child(run);
            self.shared.header(run)[EXTENT].store(pair(place, 0), Release);
            let units = u32::from(self.cold[run].units);
            let parent = self.disown(run);
            self.drop_list(run);
            self.retire(Retired::Blocks { place, units });
            self.retire(Retired::Run(run));
            run = parent;
        }
    }

    /// How many blocks of a run are held or lead to something.
    fn kept(&self, run: RunId, len: u32) -> u32 {
        let mut kept = self.last_offset(run);
        if let Some(pinned) = self.pinned.filter(|at| at.run == run) {
            kept = kept.max(pinned.offset + 1);
        }
        for holding in self.holders(run) {
            kept = kept.max(holding.blocks);
            if kept == len {
                return len;
            }
        }
        self.holes.of(run).iter().fold(kept, |kept, (_, bits)| kept.max(bits.end()))
    }
}
