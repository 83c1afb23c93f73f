//! Which block a slot means by a name.
//!
//! A block has a name of its own, that of whoever stored it first. Nearly always all slots use it; what else a slot
//! calls a block is an alias.

use super::{
    ApplyError, At, RunIndex,
    header::{ROOT, RunId},
    memory::Place,
    names::{AT_ONCE, hash},
};
use crate::{Slot, index::names::Left};

/// Blocks after which those that may have had their names are looked at.
const STRETCH: usize = 64;

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
    pub(super) fn list_names(&mut self, place: Place, len: u32) {
        let Self { names, columns, namesakes, .. } = self;
        debug_assert!(namesakes.is_empty(), "they are looked at after each stretch");
        for start in (0..len).step_by(STRETCH) {
            let count = (len - start).min(STRETCH as u32);
            let place = place + start;
            let checked = namesakes.len();
            names.insert_all(columns.names(place, count as usize), place, columns, |other, at| {
                columns.prefetch_name(other);
                namesakes.push((other, at));
            });
            let mut kept = checked;
            for at in checked..namesakes.len() {
                if columns.name(namesakes[at].0) == columns.name(namesakes[at].1) {
                    namesakes[kept] = namesakes[at];
                    kept += 1;
                }
            }
            namesakes.truncate(kept);
        }
        // One for each block that found others, however many.
        let mut last = None;
        for &(_, at) in namesakes.iter() {
            if last != Some(at) {
                self.doubled_names += 1;
                last = Some(at);
            }
        }
    }

    /// Takes blocks off the list of names, the last first.
    pub(super) fn unlist_names(&mut self, place: Place, len: u32) {
        let Self { names, columns, .. } = self;
        let mut place = place + len;
        for stretch in columns.names(place - len, len as usize).rchunks(AT_ONCE) {
            let mut hashes = [0; AT_ONCE];
            for (hash, &name) in hashes.iter_mut().zip(stretch) {
                *hash = super::names::hash(name);
                names.prefetch(*hash);
            }
            for (&hash, &name) in hashes[..stretch.len()].iter().zip(stretch).rev() {
                place -= 1;
                names.remove(hash, place, columns);
                if self.doubled_names > 0 && names.find(hash, |other| columns.name(other) == name).is_some() {
                    self.doubled_names -= 1;
                }
            }
        }
    }

    /// Lets a slot hold one block under a name that may be anything: another block's, or not the block's own.
    pub(super) fn hold_as(&mut self, slot: Slot, at: At, name: u64) -> Result<(), ApplyError> {
        let old = self.named(slot, name);
        if old == Some(at) {
            return Ok(());
        }
        self.room_for_holder(at.run, slot)?;
        let held = self.holds(slot, at);
        let is_nobodys = !held && !self.is_held(at);
        if let Some(old) = old {
            // First, so that the slot is never seen to hold both. What is below may go with it, but not this.
            self.pinned = Some(at);
            self.unname(slot, old, name);
            self.pinned = None;
        }
        self.hold(slot, at.run, at.offset, 1)?;
        let place = self.place(at);
        if is_nobodys && self.columns.name(place) != name {
            self.unlist_names(place, 1);
            self.columns.set_name(place, name);
            self.list_names(place, 1);
            self.namesakes.clear();
        }
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

    /// Whether a slot holds everything above a run.
    pub(super) fn is_reached(&self, run: RunId, slot: Slot) -> bool {
        let (parent, offset) = self.hangs_at(run);
        parent == ROOT || self.holding(parent, slot).whole() >= offset
    }
}
