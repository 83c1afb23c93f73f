//! A slot that holds nothing any more.

use super::{
    RunIndex,
    header::{Holding, RunId},
};
use crate::Slot;

impl RunIndex {
    /// The runs of which a slot holds something, ascending.
    pub(super) fn runs_of(&self, slot: Slot) -> Vec<RunId> {
        let holds = |&run: &RunId| self.holding(run, slot).blocks > 0 || self.holes.get(run, slot).is_some();
        self.run_ids().filter(|&run| self.len(run) > 0).filter(holds).collect()
    }

    /// Takes everything from a slot. Reads the header of every run.
    pub(super) fn clear_slot(&mut self, slot: Slot) {
        if self.slots[slot.index()].blocks == 0 {
            return;
        }
        if !self.aliases.is_empty() {
            self.aliases.clear(slot.index() as u32);
        }
        for run in self.runs_of(slot) {
            let leading = self.holding(run, slot).blocks;
            let held = self.holes.take(run, slot).map_or(leading, |bits| bits.count());
            self.put_holding(run, slot, Holding::NONE);
            self.count(slot, 0, held);
            self.trim(run);
        }
    }
}
