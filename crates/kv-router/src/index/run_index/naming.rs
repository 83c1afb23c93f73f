//! Which block a slot means by a name.
//!
//! A block has a name of its own, that of whoever stored it first. Nearly always all slots use it; what else a slot
//! calls a block is an alias.

use super::{
    ApplyError, At, RunIndex,
    header::{Holding, RunId},
    memory::Place,
    names::hash,
};
use crate::{Slot, index::names::Left};

impl RunIndex {
    pub(super) fn at(&self, place: Place) -> At {
        let run = self.columns.run(place);
        At { run, offset: place - self.shared.run(run).place }
    }

    pub(super) fn place(&self, at: At) -> Place {
        self.shared.run(at.run).place + at.offset
    }

    pub(super) fn holds(&self, slot: Slot, at: At) -> bool {
        at.offset < self.holding(at.run, slot).blocks
            || self.holes.get(at.run, slot).is_some_and(|bits| bits.has(at.offset))
    }

    fn is_held(&self, at: At) -> bool {
        self.holders(at.run).any(|holding| at.offset < holding.blocks)
            || self.holes.of(at.run).iter().any(|(_, bits)| bits.has(at.offset))
    }

    /// The block that a slot calls `name`.
    pub(super) fn named(&self, slot: Slot, name: u64) -> Option<At> {
        let mut found = None;
        self.names.find(hash(name), |place| {
            if self.columns.name(place) != name {
                return false;
            }
            let at = self.at(place);
            let is_it = self.holds(slot, at) && self.aliases.uses_own(at.key(), slot.index() as u32);
            if is_it {
                found = Some(at);
            }
            is_it
        });
        if found.is_none() && !self.aliases.is_empty() {
            found = self.aliases.node(slot.index() as u32, name).map(At::of);
        }
        found
    }

    /// Whether a name that is a block's own can stand for no other block of any slot.
    pub(super) fn are_names_plain(&self) -> bool {
        self.doubled_names == 0 && self.aliases.is_empty()
    }

    /// Lists blocks of a run under the names in their column.
    pub(super) fn list_names(&mut self, run: RunId, place: Place, offset: u32, len: u32) {
        /// Lines asked for ahead: about as many misses as a core has under way.
        const AHEAD: usize = 12;
        let Self { names, columns, namesakes, .. } = self;
        let count = len as usize;
        let of_blocks = columns.names(place, count);
        for name in &of_blocks[..AHEAD.min(count)] {
            names.prefetch(hash(*name));
        }
        let before = namesakes.len();
        for (number, &name) in of_blocks.iter().enumerate() {
            if let Some(&ahead) = of_blocks.get(number + AHEAD) {
                names.prefetch(hash(ahead));
            }
            let at = place + number as u32;
            names.insert(hash(name), at, columns, |other| {
                columns.prefetch_name(other);
                namesakes.push((other, at));
            });
        }
        namesakes.retain(|&(other, at)| columns.name(other) == columns.name(at));
        debug_assert!(before == 0, "they are looked at after each stretch");
        // One for each block that found others, however many.
        let mut last = None;
        for &(_, at) in namesakes.iter() {
            if last != Some(at) {
                self.doubled_names += 1;
                last = Some(at);
            }
        }
        let _ = (run, offset);
    }

    /// Takes blocks off the list of names, in the order of a removal.
    pub(super) fn unlist_names(&mut self, place: Place, len: u32) {
        const AHEAD: usize = 12;
        let Self { names, columns, .. } = self;
        let count = len as usize;
        let of_blocks = columns.names(place, count);
        for name in of_blocks.iter().rev().take(AHEAD) {
            names.prefetch(hash(*name));
        }
        for number in (0..count).rev() {
            if let Some(ahead) = number.checked_sub(AHEAD) {
                names.prefetch(hash(of_blocks[ahead]));
            }
            let name = of_blocks[number];
            names.remove(hash(name), place + number as u32, columns);
            if self.doubled_names > 0 && names.find(hash(name), |other| columns.name(other) == name).is_some()
            {
                self.doubled_names -= 1;
            }
        }
    }

    /// Lets a slot hold one block under a name that may be anything: another block's, or not the block's own.
    pub(super) fn hold_as(
        &mut self,
        slot: Slot,
        at: At,
        name: u64,
        is_whole: bool,
    ) -> Result<(), ApplyError> {
        let old = self.named(slot, name);
        if old == Some(at) {
            return Ok(());
        }
        let held = self.holds(slot, at);
        let is_nobodys = !held && !self.is_held(at);
        self.hold(slot, at.run, at.offset, 1, is_whole)?;
        let place = self.place(at);
        if is_nobodys && self.columns.name(place) != name {
            self.unlist_names(place, 1);
            self.columns.set_name(place, name);
            self.list_names(at.run, place, at.offset, 1);
            self.namesakes.clear();
        }
        if let Some(old) = old {
            self.unname(slot, old, name);
        }
        // The run of `at` stays where it is: the slot holds it.
        let index = slot.index() as u32;
        if self.columns.name(place) != name {
            self.aliases.add(at.key(), index, name, held);
        } else if held {
            self.aliases.add_own(at.key(), index);
        }
        Ok(())
    }

    /// Takes from a slot a name that stands for `at`.
    pub(super) fn unname(&mut self, slot: Slot, at: At, name: u64) {
        let index = slot.index() as u32;
        if !self.aliases.is_empty() {
            let is_own = self.columns.name(self.place(at)) == name && self.aliases.uses_own(at.key(), index);
            if self.aliases.remove(at.key(), index, name, is_own) == Left::Names {
                return;
            }
        }
        self.release(slot, at.run, at.offset, at.offset + 1);
    }

    /// New blocks of a slot took names that stood for others: those lose them.
    pub(super) fn move_names(&mut self, slot: Slot) {
        while let Some((other, place)) = self.namesakes.pop() {
            let name = self.columns.name(place);
            let at = self.at(other);
            let index = slot.index() as u32;
            if self.holds(slot, at) && self.aliases.uses_own(at.key(), index) {
                // The room of a run that goes away with this is not used again before the list is done.
                self.unname(slot, at, name);
            }
        }
    }

    /// Whether a slot's holding makes it count at the end of a run's first `blocks`.
    pub(super) fn is_whole(&self, run: RunId, slot: Slot, blocks: u32) -> bool {
        let holding: Holding = self.holding(run, slot);
        blocks == 0 || holding.whole() >= blocks
    }
}
