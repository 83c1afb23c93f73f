//! One part of the table: lines of entries, probed one after the other.

use super::{
    super::{
        lanes::{Level, Line, Plainly},
        memory::Place,
        regions::Piece,
    },
    FREE, FULL, GONE, MIN_UNIT_BITS, PART_BITS, SPILLED, SPLIT_BITS,
};

/// The hash of a name chooses a part by its upper bits, and by those behind the longest number of a part a number between 0 and the part's `base`
/// of lines: the whole of it, and the first bits of its fraction, one for each doubling, are the line; the fraction's
/// first bits are in the entry. So the line after the next doubling is known from the entry, without a look at the name.
///
/// It fills a cache line.
#[repr(align(64))]
pub(super) struct Part {
    pub(super) lines: Piece<Line>,
    pub(super) base: u32,
    /// 32 less the doublings since it had `base` lines.
    pub(super) shift: u16,
    /// How many of a hash's upper bits are the part's number.
    pub(super) number_bits: u16,
    /// The bits of an entry that are its unit.
    pub(super) units: u32,
    pub(super) entries: u32,
    /// Marks where entries were.
    pub(super) gone: u32,
    /// With this many entries it is full.
    pub(super) room: u32,
    /// Its number, the upper bits of its names' hashes.
    pub(super) number: u32,
    /// Where the parts are that it became; 0 if it is one itself.
    pub(super) split_into: u32,
}

#[derive(Clone, Copy)]
pub(super) struct At {
    pub(super) line: usize,
    pub(super) lane: usize,
}

impl Part {
    pub(super) fn new(number: u32, number_bits: u32) -> Self {
        Self {
            lines: Piece::default(),
            base: 0,
            shift: 32,
            number_bits: number_bits as u16,
            units: !(u32::MAX << MIN_UNIT_BITS),
            entries: 0,
            gone: 0,
            room: 0,
            number,
            split_into: 0,
        }
    }

    /// The line that the hash chooses, with 32 bits of fraction.
    #[inline(always)]
    pub(super) fn fraction(&self, hash: u64) -> u64 {
        let middle = (hash >> (32 - PART_BITS - SPLIT_BITS)) as u32;
        u64::from(middle) * u64::from(self.base)
    }

    #[inline(always)]
    pub(super) fn home(&self, hash: u64) -> usize {
        (self.fraction(hash) >> self.shift) as usize
    }

    #[inline(always)]
    pub(super) fn tag(&self, hash: u64) -> u32 {
        (self.fraction(hash) as u32 >> 1) & !self.units
    }

    /// Whether it has to grow before a block of this unit is put in.
    #[inline(always)]
    pub(super) fn is_too_small(&self, unit: u32) -> bool {
        self.entries >= self.room || unit > self.units
    }

    pub(super) fn unit_bits(&self) -> u32 {
        self.units.count_ones()
    }

    pub(super) fn count_room(&mut self) {
        self.room = (self.lines.len() * FULL) as u32 - self.gone;
    }

    pub(super) fn next(&self, line: usize) -> usize {
        if line + 1 == self.lines.len() { 0 } else { line + 1 }
    }

    /// Puts an entry in. `seen` is told of the units with the same bits.
    #[inline(always)]
    pub(super) fn put<L: Level>(&mut self, home: usize, tag: u32, unit: u32, mut seen: impl FnMut(u32)) {
        if !self.put_at_home::<L>(home, tag, unit, &mut seen) {
            self.put_behind::<L>(home, tag, unit, seen);
        }
    }

    /// The same if there is room in the entry's own line, or else nothing.
    #[inline(always)]
    pub(super) fn put_at_home<L: Level>(
        &mut self,
        home: usize,
        tag: u32,
        unit: u32,
        mut seen: impl FnMut(u32),
    ) -> bool {
        let units = self.units;
        let entries = &mut self.lines[home];
        let (free, mut same) = entries.free_and_equal::<L>(!units, tag);
        if free == 0 {
            return false;
        }
        self.entries += 1;
        while same != 0 {
            seen(entries.at(same) & units);
            same &= same - 1;
        }
        *entries.at_mut(free) = tag | unit;
        true
    }

    /// The same where the entry's own line is full.
    #[inline(always)]
    pub(super) fn put_behind<L: Level>(
        &mut self,
        home: usize,
        tag: u32,
        unit: u32,
        mut seen: impl FnMut(u32),
    ) {
        self.entries += 1;
        let entries = &self.lines[home];
        let (_, mut same) = entries.free_and_equal::<L>(!self.units, tag);
        while same != 0 {
            seen(entries.at(same) & self.units);
            same &= same - 1;
        }
        let is_gone = entries.equal(u32::MAX, GONE);
        let mut hole = (is_gone != 0).then_some((home, is_gone, 0));
        let mut line = self.next(home);
        loop {
            let entries = &self.lines[line];
            let (free, mut same) = entries.free_and_equal::<L>(!self.units, tag | SPILLED);
            while same != 0 {
                let other = entries.at(same) & self.units;
                if other != 0 {
                    seen(other);
                }
                same &= same - 1;
            }
            if hole.is_none() {
                let is_unused = if free != 0 { free } else { entries.equal(u32::MAX, GONE) };
                hole = (is_unused != 0).then_some((line, is_unused, SPILLED));
            }
            // Behind a line with room there is nothing that found no room in its own.
            if let Some((line, is_unused, spilled)) = hole
                && (free != 0 || line == home)
            {
                let entry = self.lines[line].at_mut(is_unused);
                if *entry == GONE {
                    self.gone -= 1;
                    self.room += 1;
                }
                *entry = tag | spilled | unit;
                return;
            }
            line = self.next(line);
        }
    }

    #[inline]
    pub(super) fn insert(&mut self, hash: u64, unit: u32) {
        self.put::<Plainly>(self.home(hash), self.tag(hash), unit, |_| {});
    }

    /// What `is_it` finds in one of the units with the same bits.
    #[inline]
    pub(super) fn find(&self, hash: u64, mut is_it: impl FnMut(u32) -> Option<Place>) -> Option<Place> {
        if self.entries == 0 {
            return None;
        }
        let tag = self.tag(hash);
        let (home, mask) = (self.home(hash), !self.units);
        let (mut line, mut spilled) = (home, 0);
        loop {
            let entries = &self.lines[line];
            let mut same = entries.equal(mask, tag | spilled);
            while same != 0 {
                let unit = entries.at(same) & self.units;
                if unit != 0
                    && let Some(place) = is_it(unit)
                {
                    return Some(place);
                }
                same &= same - 1;
            }
            line = self.next(line);
            if entries.equal(u32::MAX, FREE) != 0 || line == home {
                return None;
            }
            spilled = SPILLED;
        }
    }

    /// Where an entry for a name in a unit is.
    #[inline]
    pub(super) fn position(&self, hash: u64, unit: u32) -> Option<At> {
        if self.entries == 0 {
            return None;
        }
        let home = self.home(hash);
        let (mut line, mut entry) = (home, self.tag(hash) | unit);
        loop {
            let entries = &self.lines[line];
            let same = entries.equal(u32::MAX, entry);
            if same != 0 {
                return Some(At { line, lane: same.trailing_zeros() as usize });
            }
            line = self.next(line);
            if entries.equal(u32::MAX, FREE) != 0 || line == home {
                return None;
            }
            entry |= SPILLED;
        }
    }

    /// Empties an entry, and leaves a mark if others may have passed its full line.
    #[inline]
    pub(super) fn vacate(&mut self, at: At) {
        self.entries -= 1;
        let is_open = |line: &Line| line.equal(u32::MAX, FREE) != 0;
        let next = &self.lines[self.next(at.line)];
        let was_passed =
            !is_open(&self.lines[at.line]) && (!is_open(next) || next.equal(SPILLED, SPILLED) != 0);
        self.gone += u32::from(was_passed);
        self.room -= u32::from(was_passed);
        self.lines[at.line].0[at.lane] = if was_passed { GONE } else { FREE };
    }
}
