//! Which block a slot means by a name.
//!
//! A block has a name of its own, that of whoever stored it first. Nearly always all slots use it; what else a slot
//! calls a block is an alias.

use std::ops::Range;

use super::{
    ApplyError, At, RunIndex,
    blocks::Blocks,
    columns::UNIT,
    header::{HEADER, ROOT, RunId},
    memory::Place,
    names::{AHEAD, hash},
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
        let hash = hash(name);
        if let Some(place) = self.recent.find(hash)
            && self.columns.name_if_there(place) == Some(name)
            && let Some(at) = self.held_at(slot, place)
        {
            return Some(at);
        }
        let mut found = None;
        self.names.find(hash, |unit| {
            Blocks::named(&self.columns, unit, name, |place| {
                found = self.held_at(slot, place);
                found.is_some()
            })
        });
        if found.is_none() && !self.aliases.is_empty() {
            found = self.aliases.node(slot.index() as u32, name).map(At::of);
        }
        found
    }

    /// The block at a place, if there is one that the slot holds under its own name.
    fn held_at(&self, slot: Slot, place: Place) -> Option<At> {
        let run = self.columns.run(place);
        if !self.shared.headers.is_there(run * HEADER as u32) {
            return None;
        }
        // One that is gone may lie before its run's new place; nobody holds it there.
        let at = At { run, offset: place.wrapping_sub(self.shared.run(run).place) };
        let is_it = self.holds(slot, at) && self.aliases.uses_own(at.key(), slot.index() as u32);
        is_it.then_some(at)
    }

    /// Whether a name that is a block's own can stand for no other block of any slot.
    pub(super) fn are_names_plain(&self) -> bool {
        self.doubled_names == 0 && self.aliases.is_empty()
    }

    /// Lists blocks of a run under the names in their column, and takes down those whose names others have already.
    pub(super) fn list_names(&mut self, place: Place, len: u32) {
        let Self { names, columns, namesakes, suspects, .. } = self;
        debug_assert!(namesakes.is_empty() && suspects.is_empty(), "they are looked at after each stretch");
        let new = place..place + len;
        let listed = names.insert_few(new.clone(), columns, |unit, at| suspects.push((unit, at)));
        if listed < new.end || !suspects.is_empty() {
            self.list_rest(new, listed);
        }
    }

    /// Lists the `new` blocks from `listed` on, and looks whose names others have already.
    #[inline(never)]
    pub(super) fn list_rest(&mut self, new: Range<Place>, listed: Place) {
        let Self { names, columns, shared, namesakes, suspects, .. } = self;
        let mut blocks = Blocks::new(columns, shared, listed..new.end);
        names.insert_all(&mut blocks, |unit, at| {
            columns.prefetch_names(unit);
            suspects.push((unit, at));
        });
        for (unit, at) in suspects.drain(..) {
            let name = columns.name(at);
            let others = (unit * UNIT..).zip(columns.unit_names(unit));
            for (other, _) in others.filter(|&(other, named)| *named == name && other != at) {
                if new.contains(&other) {
                    // Of two new ones, whichever was put in first, the one behind is the namesake of the other.
                    namesakes.push((other.min(at), other.max(at)));
                } else if blocks.is_listed(other) {
                    namesakes.push((other, at));
                }
            }
        }
        namesakes.sort_unstable_by_key(|&(other, at)| (at, other));
        namesakes.dedup();
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
        let Self { names, columns, shared, .. } = self;
        let end = place + len;
        let mut place = end;
        let mut blocks = Blocks::new(columns, shared, end..end);
        for stretch in columns.names(end - len, len as usize).rchunks(AHEAD) {
            let mut hashes = [0; AHEAD];
            for (hash, &name) in hashes.iter_mut().zip(stretch) {
                *hash = super::names::hash(name);
                names.prefetch(*hash);
            }
            for (&hash, &name) in hashes[..stretch.len()].iter().zip(stretch).rev() {
                place -= 1;
                blocks.unlisted.start = place;
                names.remove(hash, place, &blocks);
                if self.doubled_names > 0 {
                    let is_it = |unit| Blocks::named(columns, unit, name, |other| blocks.is_listed(other));
                    if names.find(hash, is_it).is_some() {
                        self.doubled_names -= 1;
                    }
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
