//! Blocks by their own name: 4 bytes an entry, for the writer alone.
//!
//! An entry is the block's place and as many bits of the name's hash as are left. Lines of 16 entries are probed one
//! after the other, a line at a time; an entry that found its own line full is marked, so that the line in which it
//! went on can be closed again behind it when something is removed. There are many parts, each of which grows alone
//! and at another time than the others: no event has to wait for more than one or two of them, and the table as a
//! whole is never half empty.

use super::{
    columns::Columns,
    lanes::{LANES, Line},
    memory::{Place, prefetch},
};

/// 1,024: at 10^8 blocks one part is rebuilt in a millisecond.
const PART_BITS: u32 = 10;
const PARTS: usize = 1 << PART_BITS;
/// Entries that a line has on average when its part grows. Fuller ones spill into one another.
const FULL: usize = 14;
/// Bits of a place to begin with; the more hash bits are left, the fewer blocks are looked at in vain.
const MIN_PLACE_BITS: u32 = 16;
/// As many as blocks can be numbered with.
const MAX_PLACE_BITS: u32 = 28;
/// Names whose lines are asked for together: as many misses as a core has under way, or a few more.
pub(super) const AT_ONCE: usize = 16;
/// In an entry that is not in its own line.
const SPILLED: u32 = 1 << 31;
const FREE: u32 = 0;

/// Spreads names that are not hashes themselves.
#[inline]
pub(super) fn hash(name: u64) -> u64 {
    let product = u128::from(name ^ 0x2545_F491_4F6C_DD1D) * 0x9E37_79B9_7F4A_7C15_u128;
    (product >> 64) as u64 ^ product as u64
}

/// The hash of a name chooses a part by its upper bits, and by the next ones a number between 0 and the part's `base`
/// of lines: the whole of it, and the first `doubled` bits of its fraction, are the line; the fraction's first bits are
/// in the entry. So the line after the next doubling is known from the entry, without a look at the name.
struct Part {
    lines: Box<[Line]>,
    base: u32,
    doubled: u32,
    entries: u32,
    place_bits: u32,
}

/// A multimap from hashes of names to places.
pub(super) struct NameTable {
    /// None until the first entry.
    parts: Vec<Part>,
    len: usize,
    lines: usize,
}

#[derive(Clone, Copy)]
struct At {
    line: usize,
    lane: usize,
}

impl Part {
    fn new() -> Self {
        Self { lines: Box::default(), base: 0, doubled: 0, entries: 0, place_bits: MIN_PLACE_BITS }
    }

    /// The number that the hash chooses, with 32 bits of fraction.
    #[inline]
    fn number(&self, hash: u64) -> u64 {
        let middle = (hash >> (32 - PART_BITS)) as u32;
        u64::from(middle) * u64::from(self.base)
    }

    #[inline]
    fn home(&self, hash: u64) -> usize {
        (self.number(hash) >> (32 - self.doubled)) as usize
    }

    /// Whether it has to grow before `more` are put in, of which all but one may turn out to be elsewhere.
    #[inline]
    fn is_full(&self, more: usize) -> bool {
        let (entries, lines) = (self.entries as usize, self.lines.len());
        entries >= lines * FULL || entries + more > lines * LANES
    }

    fn tag_mask(&self) -> u32 {
        !SPILLED & (u32::MAX << self.place_bits)
    }

    #[inline]
    fn tag(&self, hash: u64) -> u32 {
        (self.number(hash) as u32 >> 1) & self.tag_mask()
    }

    fn place(&self, entry: u32) -> Place {
        entry & !(u32::MAX << self.place_bits)
    }

    fn next(&self, line: usize) -> usize {
        if line + 1 == self.lines.len() { 0 } else { line + 1 }
    }

    /// Puts an entry in. `seen` is told of the places with the same bits.
    #[inline]
    fn insert(&mut self, hash: u64, place: Place, seen: impl FnMut(Place)) {
        self.put(self.home(hash), self.tag(hash), place, seen);
    }

    #[inline(always)]
    fn put(&mut self, mut line: usize, mut tag: u32, place: Place, mut seen: impl FnMut(Place)) {
        let (mask, places) = (self.tag_mask() | SPILLED, !(u32::MAX << self.place_bits));
        self.entries += 1;
        loop {
            let entries = &mut self.lines[line];
            let free = entries.equal(u32::MAX, FREE);
            // Unused entries look like those whose bits are all 0.
            let mut same = entries.equal(mask, tag) & !free;
            while same != 0 {
                seen(entries.0[same.trailing_zeros() as usize % LANES] & places);
                same &= same - 1;
            }
            if free != 0 {
                entries.0[free.trailing_zeros() as usize % LANES] = tag | place;
                return;
            }
            line = self.next(line);
            tag |= SPILLED;
        }
    }

    /// A place among those with the same bits for which `is_it` holds.
    #[inline]
    fn find(&self, hash: u64, mut is_it: impl FnMut(Place) -> bool) -> Option<Place> {
        if self.entries == 0 {
            return None;
        }
        let tag = self.tag(hash);
        let (home, mask) = (self.home(hash), self.tag_mask() | SPILLED);
        let (mut line, mut spilled) = (home, 0);
        loop {
            let entries = &self.lines[line];
            let mut same = entries.equal(mask, tag | spilled);
            while same != 0 {
                let entry = entries.0[same.trailing_zeros() as usize];
                if entry != FREE && is_it(self.place(entry)) {
                    return Some(self.place(entry));
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

    /// Where the entry of a place is.
    #[inline]
    fn position(&self, hash: u64, place: Place) -> Option<At> {
        if self.entries == 0 {
            return None;
        }
        let home = self.home(hash);
        let (mut line, mut entry) = (home, self.tag(hash) | place);
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

    /// Empties an entry. If others may have passed its full line, one of them comes back in its stead.
    #[inline]
    fn vacate(&mut self, at: At, columns: &Columns) {
        self.entries -= 1;
        let is_open = self.lines[at.line].equal(u32::MAX, FREE) != 0;
        self.lines[at.line].0[at.lane] = FREE;
        if !is_open {
            self.refill(at, columns);
        }
    }

    #[cold]
    fn refill(&mut self, mut hole: At, columns: &Columns) {
        let count = self.lines.len();
        let mut line = self.next(hole.line);
        while line != hole.line {
            let behind = (line + count - hole.line) % count;
            let mut spilled = self.lines[line].equal(SPILLED, SPILLED);
            let mut moved = None;
            while spilled != 0 && moved.is_none() {
                let lane = spilled.trailing_zeros() as usize;
                spilled &= spilled - 1;
                let entry = self.lines[line].0[lane];
                let home = self.home(hash(columns.name(self.place(entry))));
                if (line + count - home) % count >= behind {
                    let mark = if home == hole.line { 0 } else { SPILLED };
                    self.lines[hole.line].0[hole.lane] = entry & !SPILLED | mark;
                    moved = Some(At { line, lane });
                }
            }
            let was_open = self.lines[line].equal(u32::MAX, FREE) != 0;
            if let Some(from) = moved {
                self.lines[from.line].0[from.lane] = FREE;
                hole = from;
            }
            if was_open {
                // Nothing passed this line.
                return;
            }
            line = self.next(line);
        }
    }

    /// Twice as many lines. Only the names of entries that are not in their own line are looked at.
    #[cold]
    fn double(&mut self, place_bits: u32, columns: &Columns) {
        let mut lines = vec![Line::EMPTY; self.lines.len() * 2].into_boxed_slice();
        let (old_places, next_bit) = (self.place_bits, SPILLED >> 1 >> self.doubled);
        self.place_bits = place_bits;
        let kept = self.tag_mask() | !(u32::MAX << old_places);
        let mut spilled = Vec::new();
        for (line, two) in self.lines.iter().zip(lines.chunks_exact_mut(2)) {
            let mut filled = [0; 2];
            for entry in line.0 {
                if entry & SPILLED != 0 {
                    let place = entry & !(u32::MAX << old_places);
                    columns.prefetch_name(place);
                    spilled.push(place);
                } else if entry != FREE {
                    let half = usize::from(entry & next_bit != 0);
                    two[half].0[filled[half]] = entry & kept;
                    filled[half] += 1;
                }
            }
        }
        self.lines = lines;
        self.doubled += 1;
        self.entries -= spilled.len() as u32;
        for place in spilled {
            self.insert(hash(columns.name(place)), place, |_| {});
        }
    }

    /// All entries into `count` lines, by their names.
    #[cold]
    fn rebuild(&mut self, count: usize, place_bits: u32, columns: &Columns) {
        /// Lines whose names are asked for ahead: some dozens of misses, as many as a core has under way.
        const AHEAD: usize = 3;
        let lines = vec![Line::EMPTY; count].into_boxed_slice();
        let new = Self { lines, base: count as u32, doubled: 0, entries: 0, place_bits };
        let old = std::mem::replace(self, new);
        for line in 0..old.lines.len() + AHEAD {
            if let Some(ahead) = old.lines.get(line) {
                for entry in ahead.0.iter().filter(|&&entry| entry != FREE) {
                    columns.prefetch_name(old.place(*entry));
                }
            }
            let Some(now) = line.checked_sub(AHEAD) else { continue };
            for entry in old.lines[now].0.iter().filter(|&&entry| entry != FREE) {
                let place = old.place(*entry);
                self.insert(hash(columns.name(place)), place, |_| {});
            }
        }
    }

    /// Room for more entries, or for larger places.
    #[cold]
    fn grow(&mut self, count: usize, place_bits: u32, columns: &Columns) {
        /// Hash bits that an entry must have beyond those that choose its line: for one new block in three, a name is
        /// then looked at in vain.
        const BITS_LEFT: u32 = 5;
        let bits = 31 - place_bits;
        if count == self.lines.len() && self.doubled + 2 < bits {
            let hash_bits = u32::MAX << self.place_bits;
            self.place_bits = place_bits;
            let kept = SPILLED | self.tag_mask() | !hash_bits;
            self.lines.iter_mut().flat_map(|line| &mut line.0).for_each(|entry| *entry &= kept);
        } else if count == self.lines.len() * 2 && self.doubled + 1 + BITS_LEFT <= bits {
            self.double(place_bits, columns);
        } else {
            self.rebuild(count, place_bits, columns);
        }
    }
}

/// Lines of a part: from eight on, by its number, a different multiple of a power of two.
fn lines_above(part: usize, lines: usize) -> usize {
    const SMALL: usize = 8;
    if lines < SMALL {
        return (lines * 2).max(1);
    }
    // Evenly over the logarithms between one power of two and the next, in sixteenths.
    const STEPS: [usize; 8] = [128, 140, 152, 166, 181, 197, 215, 235];
    let mut grown = STEPS[part % STEPS.len()] * SMALL / 128;
    while grown <= lines {
        grown *= 2;
    }
    grown
}

impl NameTable {
    pub(super) fn new() -> Self {
        Self { parts: Vec::new(), len: 0, lines: 0 }
    }

    fn part(hash: u64) -> usize {
        (hash >> (64 - PART_BITS)) as usize
    }

    /// Asks for the line of a name that will be inserted, removed or looked up soon.
    #[inline]
    pub(super) fn prefetch(&self, hash: u64) {
        if let Some(part) = self.parts.get(Self::part(hash))
            && let Some(line) = part.lines.get(part.home(hash))
        {
            prefetch(line);
        }
    }

    /// Lists a block. `seen` is told of blocks that may have the same name.
    #[inline]
    pub(super) fn insert(&mut self, hash: u64, place: Place, columns: &Columns, seen: impl FnMut(Place)) {
        let index = self.room_for(hash, place, 1, columns);
        self.parts[index].insert(hash, place, seen);
        self.len += 1;
    }

    /// Makes room for `more` blocks like this; says in which part.
    #[inline]
    fn room_for(&mut self, hash: u64, place: Place, more: usize, columns: &Columns) -> usize {
        if self.parts.is_empty() {
            self.parts = (0..PARTS).map(|_| Part::new()).collect();
        }
        let index = Self::part(hash);
        let part = &self.parts[index];
        if part.is_full(more) || place >> part.place_bits != 0 {
            self.make_room(index, place, more, columns);
        }
        index
    }

    /// Lists blocks one after the other, the first at `place`. `seen` is told of blocks that may have the same name as
    /// the other one.
    #[inline]
    pub(super) fn insert_all(
        &mut self,
        names: &[u64],
        mut place: Place,
        columns: &Columns,
        mut seen: impl FnMut(Place, Place),
    ) {
        let mut prepared = [(0u32, 0u32, 0u32); AT_ONCE];
        for stretch in names.chunks(AT_ONCE) {
            let last = place + stretch.len() as u32 - 1;
            let mut number = 0;
            while number < stretch.len() {
                let hash = hash(stretch[number]);
                let lines = self.lines;
                // Each may be in the same part as all before it.
                let index = self.room_for(hash, last, number + 1, columns);
                if self.lines != lines && number > 0 {
                    // Those of this part before it have other lines now.
                    number = 0;
                    continue;
                }
                let part = &self.parts[index];
                let home = part.home(hash);
                prefetch(&part.lines[home]);
                prepared[number] = (index as u32, home as u32, part.tag(hash));
                number += 1;
            }
            for &(index, home, tag) in &prepared[..stretch.len()] {
                self.parts[index as usize].put(home as usize, tag, place, |other| seen(other, place));
                place += 1;
            }
            self.len += stretch.len();
        }
    }

    #[cold]
    fn make_room(&mut self, index: usize, place: Place, more: usize, columns: &Columns) {
        let part = &mut self.parts[index];
        let before = part.lines.len();
        let count = if part.is_full(more) { lines_above(index, before) } else { before };
        // A bit more than now needed: places are twice as large when the part doubles the next time, so that parts
        // change this one by one, with their size.
        let place_bits = part.place_bits.max(32 - place.leading_zeros() + 1).min(MAX_PLACE_BITS);
        part.grow(count, place_bits, columns);
        self.lines += count - before;
    }

    /// A block listed under `hash` for which `is_it` holds.
    #[inline]
    pub(super) fn find(&self, hash: u64, is_it: impl FnMut(Place) -> bool) -> Option<Place> {
        self.parts.get(Self::part(hash))?.find(hash, is_it)
    }

    /// Takes a block off the list. Its name must still be in the columns, as those of all others.
    #[inline]
    pub(super) fn remove(&mut self, hash: u64, place: Place, columns: &Columns) {
        let Some(part) = self.parts.get_mut(Self::part(hash)) else { return };
        let Some(at) = part.position(hash, place) else {
            debug_assert!(false, "a block that is removed was listed");
            return;
        };
        part.vacate(at, columns);
        self.len -= 1;
        let (entries, lines) = (part.entries as usize, part.lines.len());
        if entries * 4 < lines * LANES && lines > 1 {
            self.shrink(Self::part(hash), columns);
        }
        if self.len == 0 {
            *self = Self::new();
        }
    }

    #[cold]
    fn shrink(&mut self, index: usize, columns: &Columns) {
        let part = &mut self.parts[index];
        let before = part.lines.len();
        // The size in this part's own series below the present one.
        let count = if part.entries == 0 { 0 } else { before / 2 };
        if count < before {
            part.rebuild(count, part.place_bits, columns);
            self.lines -= before - count;
        }
    }

    /// Lists a block that moved under its new place.
    #[inline]
    pub(super) fn replace(&mut self, hash: u64, old: Place, new: Place, columns: &Columns) {
        let index = Self::part(hash);
        let Some(part) = self.parts.get_mut(index) else { return };
        let Some(at) = part.position(hash, old) else {
            debug_assert!(false, "a block that moves was listed");
            return;
        };
        if new >> part.place_bits == 0 {
            let entry = &mut part.lines[at.line].0[at.lane];
            *entry = *entry & (u32::MAX << part.place_bits) | new;
        } else {
            part.vacate(at, columns);
            self.len -= 1;
            self.insert(hash, new, columns, |_| {});
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn bytes(&self) -> usize {
        self.lines * size_of::<Line>() + self.parts.capacity() * size_of::<Part>()
    }
}
