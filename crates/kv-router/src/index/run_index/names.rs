//! Blocks by their own name: 4 bytes an entry, for the writer alone.
//!
//! An entry is the unit in which the block lies, and as many bits of the name's hash as are left; which of the unit's
//! eight blocks it is, is seen from their names, which are one cache line. So two entries may be the same, and stand for
//! either block. Lines of 16 entries are probed one after the other, a line at a time; an entry that found its own line
//! full is marked. There are many parts, each of which grows alone and at another time than the others: no event has to
//! wait for more than one or two of them, and the table as a whole is never half empty. A part that is too large for that
//! becomes sixteen.

use std::ops::Range;

use self::{
    grow::make_room,
    insert::{InsertAll, put_late},
    part::Part,
};
use super::{
    blocks::Blocks,
    columns::{Columns, UNIT},
    lanes::{LANES, Plainly, at_best_level},
    memory::{Place, prefetch},
    regions::Memory,
};

mod grow;
mod insert;
mod part;

/// Parts to begin with: 1,024.
const PART_BITS: u32 = 10;
const PARTS: usize = 1 << PART_BITS;
/// Lines of a part at most, unless it is one of those that a part became: 13,000 names, of which each may be a miss when
/// they are looked at.
const MAX_LINES: usize = 960;
/// What a part becomes that needs more: sixteen.
const SPLIT_BITS: u32 = 4;
/// Entries that a line has on average when its part grows. Fuller ones spill into one another.
const FULL: usize = 14;
/// A part with fewer than this many entries a line is not full of them, but of marks where entries were.
const HARDLY_FULL: usize = 12;
/// Bits of a unit's number to begin with; the more hash bits are left, the fewer blocks are looked at in vain.
const MIN_UNIT_BITS: u32 = 13;
/// As many as units can be numbered with.
const MAX_UNIT_BITS: u32 = 25;
/// Names whose lines are asked for ahead: as many misses as a core has under way, or a few more.
pub(super) const AHEAD: usize = 16;
/// Names for which nothing is asked for ahead.
const FEW: usize = 3;
/// In an entry that is not in its own line.
const SPILLED: u32 = 1 << 31;
const FREE: u32 = 0;
/// Where an entry was in a full line, so that others may have passed it. No block lies in unit 0.
const GONE: u32 = SPILLED;

/// Spreads names that are not hashes themselves.
#[inline]
pub(super) fn hash(name: u64) -> u64 {
    let product = u128::from(name ^ 0x2545_F491_4F6C_DD1D) * 0x9E37_79B9_7F4A_7C15_u128;
    let hash = (product >> 64) as u64 ^ product as u64;
    #[cfg(test)]
    let hash = hash & HASH_BITS.get();
    hash
}

#[cfg(test)]
thread_local! {
    /// Fewer bits than all let entries be the same that stand for different blocks.
    pub(super) static HASH_BITS: std::cell::Cell<u64> = const { std::cell::Cell::new(u64::MAX) };
}

/// The number of the part in which a name is.
#[inline(always)]
fn part_of(parts: &[Part], hash: u64) -> usize {
    let number = (hash >> (64 - PART_BITS)) as usize;
    match parts[number].split_into {
        0 => number,
        first => part_behind(first, hash),
    }
}

/// A call, so that all the rest does not wait to see which of the two it is.
#[cold]
#[inline(never)]
fn part_behind(first: u32, hash: u64) -> usize {
    first as usize + (hash >> (64 - PART_BITS - SPLIT_BITS)) as usize % (1 << SPLIT_BITS)
}

#[inline(always)]
fn unit(place: Place) -> u32 {
    place / UNIT
}

/// A multimap from hashes of names to units.
pub(super) struct NameTable {
    /// Empty until the first entry. Behind those that were there first lie those that some of them became.
    parts: Vec<Part>,
    len: usize,
    memory: Memory,
}

impl NameTable {
    pub(super) fn new(memory: &Memory) -> Self {
        Self { parts: Vec::new(), len: 0, memory: memory.clone() }
    }

    /// Asks for the line of a name that will be inserted, removed or looked up soon.
    #[inline]
    pub(super) fn prefetch(&self, hash: u64) {
        if self.parts.is_empty() {
            return;
        }
        let part = &self.parts[part_of(&self.parts, hash)];
        if let Some(line) = part.lines.get(part.home(hash)) {
            prefetch(line);
        }
    }

    /// Lists the first of a few blocks, as far as that is put into lines with room. Returns how far it came; `seen` is as
    /// for [`Self::insert_all`].
    #[inline]
    pub(super) fn insert_few(
        &mut self,
        places: Range<Place>,
        columns: &Columns,
        mut seen: impl FnMut(u32, Place),
    ) -> Place {
        if places.len() > FEW || self.parts.is_empty() {
            return places.start;
        }
        for place in places.clone() {
            let hash = hash(columns.name(place));
            let number = part_of(&self.parts, hash);
            let part = &mut self.parts[number];
            if part.is_too_small(unit(place))
                || !part.put_at_home::<Plainly>(part.home(hash), part.tag(hash), unit(place), |other| {
                    seen(other, place);
                })
            {
                return place;
            }
            self.len += 1;
        }
        places.end
    }

    /// Lists the blocks of `blocks.unlisted` one after the other. `seen` is told of units where there may be a block with
    /// the same name as the one that is told with it.
    pub(super) fn insert_all(&mut self, blocks: &mut Blocks<'_>, seen: impl FnMut(u32, Place)) {
        let Self { parts, memory, .. } = self;
        if parts.is_empty() {
            *parts = (0..PARTS as u32).map(|number| Part::new(number, PART_BITS)).collect();
        }
        self.len += blocks.unlisted.len();
        if blocks.unlisted.len() <= FEW {
            blocks.late.extend(blocks.unlisted.clone());
            blocks.unlisted.start = blocks.unlisted.end;
            put_late::<Plainly>(parts, memory, blocks, seen);
        } else {
            at_best_level(InsertAll { parts, memory, blocks, seen });
        }
    }

    /// What `is_it` finds in a unit with a block listed under `hash`.
    #[inline]
    pub(super) fn find(&self, hash: u64, is_it: impl FnMut(u32) -> Option<Place>) -> Option<Place> {
        if self.parts.is_empty() {
            return None;
        }
        self.parts[part_of(&self.parts, hash)].find(hash, is_it)
    }

    /// Takes a block off the list; it is among those that `blocks` has as not listed.
    #[inline]
    pub(super) fn remove(&mut self, hash: u64, place: Place, blocks: &Blocks<'_>) {
        if self.parts.is_empty() {
            return;
        }
        let number = part_of(&self.parts, hash);
        let part = &mut self.parts[number];
        let Some(at) = part.position(hash, unit(place)) else {
            debug_assert!(false, "a block that is removed was listed");
            return;
        };
        part.vacate(at);
        self.len -= 1;
        let (entries, lines) = (part.entries as usize, part.lines.len());
        if entries * 4 < lines * LANES && lines > 1 {
            // The size in this part's own series below the present one.
            part.halve(blocks, &self.memory);
        }
        if self.len == 0 {
            *self = Self::new(&self.memory);
        }
    }

    /// Lists a block that moved under its new place.
    #[inline]
    pub(super) fn replace(&mut self, hash: u64, old: Place, new: Place, blocks: &Blocks<'_>) {
        if self.parts.is_empty() {
            return;
        }
        let number = part_of(&self.parts, hash);
        let part = &mut self.parts[number];
        let Some(at) = part.position(hash, unit(old)) else {
            debug_assert!(false, "a block that moves was listed");
            return;
        };
        if unit(new) <= part.units {
            let entry = &mut part.lines[at.line].0[at.lane];
            *entry = *entry & !part.units | unit(new);
        } else {
            part.vacate(at);
            make_room(&mut self.parts, number, unit(new), blocks, &self.memory);
            let number = part_of(&self.parts, hash);
            self.parts[number].insert(hash, unit(new));
        }
    }

    #[cfg(test)]
    #[cfg(not(loom))]
    pub(super) fn has_split(&self) -> bool {
        self.parts.len() > PARTS
    }

    #[cfg(test)]
    #[cfg(not(loom))]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Bytes beside those of the index's memory.
    pub(super) fn bytes(&self) -> usize {
        self.parts.capacity() * size_of::<Part>()
    }
}
