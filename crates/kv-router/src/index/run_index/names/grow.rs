//! Parts that get more lines, or fewer.

use super::{
    super::{
        blocks::Blocks,
        columns::UNIT,
        lanes::{Level, Line, Plainly, Work, at_best_level},
        regions::{Memory, Piece},
    },
    FREE, FULL, GONE, HARDLY_FULL, MAX_LINES, MAX_UNIT_BITS, PARTS, SPILLED, SPLIT_BITS, hash,
    part::Part,
};

impl Part {
    /// The blocks of the unit of an entry whose names choose this part and the entry's bits, those that are not listed
    /// included: the hashes of all, and a bit for each that does.
    #[inline(always)]
    fn candidates(&self, entry: u32, blocks: &Blocks<'_>) -> ([u64; UNIT as usize], u32) {
        let hashes = blocks.columns.unit_names(entry & self.units).map(hash);
        let is_here = |hash| u32::from((hash >> (64 - self.number_bits)) as u32 == self.number);
        let mut here = hashes.iter().enumerate().fold(0, |bits, (at, &hash)| bits | is_here(hash) << at);
        let mut candidates = 0;
        while here != 0 {
            let at = here.trailing_zeros();
            here &= here - 1;
            let is_it = (self.tag(hashes[at as usize % UNIT as usize]) ^ entry) & !SPILLED & !self.units == 0;
            candidates |= u32::from(is_it) << at;
        }
        (hashes, candidates)
    }

    /// The hash of the block that an entry stands for, if it can stand for one only.
    #[inline(always)]
    fn only(&self, entry: u32, blocks: &Blocks<'_>) -> Option<u64> {
        let (hashes, candidates) = self.candidates(entry, blocks);
        candidates.is_power_of_two().then(|| hashes[candidates.trailing_zeros() as usize % UNIT as usize])
    }

    /// The entries that are not in their own lines, each with the number of its own; none if that cannot be told, because
    /// an entry may be another block's, which is in its own line.
    fn spilled(&self, blocks: &Blocks<'_>) -> Option<Vec<(u32, usize)>> {
        let mut spilled = Vec::with_capacity(self.lines.len());
        let mut unknown = Vec::with_capacity(self.lines.len() / 4);
        let is_full = |line: &Line| line.equal(u32::MAX, FREE) == 0;
        let before = |line: usize| if line == 0 { self.lines.len() - 1 } else { line - 1 };
        let last = self.lines.len() - 1;
        let mut full = [is_full(&self.lines[before(last)]), is_full(&self.lines[last])];
        for (line, entries) in self.lines.iter().enumerate() {
            let mut found = entries.equal(SPILLED, SPILLED);
            while found != 0 {
                let entry = entries.at(found);
                found &= found - 1;
                if entry == GONE {
                    continue;
                }
                if full[0] {
                    // It may have come from further away.
                    blocks.columns.prefetch_names(entry & self.units);
                    unknown.push(entry);
                } else {
                    spilled.push((entry & !SPILLED, before(line)));
                }
            }
            full = [full[1], is_full(entries)];
        }
        for entry in unknown {
            spilled.push((entry & !SPILLED, self.home(self.only(entry, blocks)?)));
        }
        Some(spilled)
    }

    /// Half as many lines, with the same.
    #[cold]
    pub(super) fn halve(&mut self, blocks: &Blocks<'_>, memory: &Memory) {
        let count = self.lines.len() / 2;
        let spilled = if count > 0 && self.shift < 32 { self.spilled(blocks) } else { None };
        let Some(spilled) = spilled else {
            return self.rebuild(count, self.unit_bits(), blocks, memory);
        };
        let lines = std::mem::replace(&mut self.lines, memory.take(count));
        self.shift += 1;
        (self.entries, self.gone) = (0, 0);
        self.count_room();
        let at_home = (0..).zip(lines.iter()).flat_map(|(home, line)| line.0.map(|entry| (entry, home)));
        let at_home = at_home.filter(|&(entry, _)| entry != FREE && entry & SPILLED == 0);
        for (entry, home) in at_home.chain(spilled) {
            self.put::<Plainly>(home / 2, entry & !self.units, entry & self.units, |_| {});
        }
    }

    /// All entries into `count` lines, by their names.
    #[cold]
    fn rebuild(&mut self, count: usize, unit_bits: u32, blocks: &Blocks<'_>, memory: &Memory) {
        let new = Self::with_lines(self.number, self.number_bits.into(), count, unit_bits, memory);
        let old = std::mem::replace(self, new);
        old.each(blocks, |hash, unit| self.insert(hash, unit));
        debug_assert_eq!(self.entries, old.entries, "each entry stands for one listed block");
    }

    /// An empty part.
    fn with_lines(number: u32, number_bits: u32, count: usize, unit_bits: u32, memory: &Memory) -> Self {
        let lines = memory.take(count);
        let units = !(u32::MAX << unit_bits);
        let mut new = Self { lines, base: count as u32, units, ..Self::new(number, number_bits) };
        new.count_room();
        new
    }

    /// The hash and the unit of each block listed in this part.
    #[inline(always)]
    fn each(&self, blocks: &Blocks<'_>, mut found: impl FnMut(u64, u32)) {
        /// Lines whose names are asked for ahead: some dozens of misses, as many as a core has under way.
        const AHEAD: usize = 3;
        let is_one = |entry: &&u32| **entry != FREE && **entry != GONE;
        // Entries that stand for several blocks.
        let mut shared = Vec::new();
        for line in 0..self.lines.len() + AHEAD {
            if let Some(ahead) = self.lines.get(line) {
                let units = ahead.0.iter().filter(is_one).map(|&entry| entry & self.units);
                units.for_each(|unit| blocks.columns.prefetch_names(unit));
            }
            let Some(now) = line.checked_sub(AHEAD) else { continue };
            for &entry in self.lines[now].0.iter().filter(is_one) {
                if let Some(hash) = self.only(entry, blocks) {
                    found(hash, entry & self.units);
                } else if !shared.contains(&(entry & !SPILLED)) {
                    shared.push(entry & !SPILLED);
                    let (hashes, candidates) = self.candidates(entry, blocks);
                    for (at, hash) in (0..).zip(hashes) {
                        if candidates >> at & 1 == 1 && blocks.is_listed((entry & self.units) * UNIT + at) {
                            found(hash, entry & self.units);
                        }
                    }
                }
            }
        }
    }

    /// Room for more entries, or for larger units' numbers.
    #[cold]
    fn grow(&mut self, count: usize, unit_bits: u32, blocks: &Blocks<'_>, memory: &Memory) {
        /// Hash bits that an entry must have beyond those that choose its line: for one new block in three, names are
        /// then looked at in vain.
        const BITS_LEFT: u32 = 5;
        let (bits, doubled) = (31 - unit_bits, 32 - u32::from(self.shift));
        if count == self.lines.len() && unit_bits > self.unit_bits() && doubled + 2 < bits {
            let hash_bits = !self.units;
            self.units = !(u32::MAX << unit_bits);
            let kept = !(self.units & hash_bits);
            self.lines.iter_mut().flat_map(|line| &mut line.0).for_each(|entry| *entry &= kept);
        } else if count == self.lines.len() * 2 && doubled + 1 + BITS_LEFT <= bits {
            at_best_level(Double { part: self, unit_bits, blocks, memory });
        } else {
            self.rebuild(count, unit_bits, blocks, memory);
        }
    }
}

/// Makes room for one more entry, of this unit, in a part or in those that it becomes.
#[cold]
pub(super) fn make_room(
    parts: &mut Vec<Part>,
    number: usize,
    unit: u32,
    blocks: &Blocks<'_>,
    memory: &Memory,
) {
    let part = &mut parts[number];
    let lines = part.lines.len();
    let is_full = part.entries >= part.room && part.entries as usize >= lines * HARDLY_FULL;
    let count = if is_full { lines_above(part.number as usize, lines) } else { lines };
    // A bit more than now needed: numbers are twice as large when the part doubles the next time, so that parts
    // change this one by one, with their size.
    let unit_bits = part.unit_bits().max(32 - unit.leading_zeros() + 1).min(MAX_UNIT_BITS);
    if count > MAX_LINES && number < PARTS {
        split(parts, number, unit_bits, blocks, memory);
    } else {
        part.grow(count, unit_bits, blocks, memory);
    }
}

/// Many parts in the place of one, each with room for one more entry.
fn split(parts: &mut Vec<Part>, number: usize, unit_bits: u32, blocks: &Blocks<'_>, memory: &Memory) {
    let first = parts.len();
    let whole = &mut parts[number];
    let split = Part { split_into: first as u32, ..Part::new(whole.number, whole.number_bits.into()) };
    let old = std::mem::replace(whole, split);
    let number_bits = u32::from(old.number_bits) + SPLIT_BITS;
    let part_of = |hash: u64| (hash >> (64 - number_bits)) as usize % (1 << SPLIT_BITS);
    let mut names = Vec::with_capacity(old.entries as usize);
    let mut counts = [0; 1 << SPLIT_BITS];
    old.each(blocks, |hash, unit| {
        names.push((hash, unit));
        counts[part_of(hash)] += 1;
    });
    debug_assert_eq!(names.len(), old.entries as usize, "each entry stands for one listed block");
    parts.extend((0..).zip(counts).map(|(part, count)| {
        let number = old.number << SPLIT_BITS | part;
        let lines = lines_above(number as usize, count / FULL);
        Part::with_lines(number, number_bits, lines, unit_bits, memory)
    }));
    for (hash, unit) in names {
        parts[first + part_of(hash)].insert(hash, unit);
    }
}

/// Twice as many lines for a part. Few names are looked at.
struct Double<'a, 'b> {
    part: &'a mut Part,
    unit_bits: u32,
    blocks: &'a Blocks<'b>,
    memory: &'a Memory,
}

impl Work for Double<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Level>(self) {
        let Self { part, unit_bits, blocks, memory } = self;
        let Some(spilled) = part.spilled(blocks) else {
            return part.rebuild(part.lines.len() * 2, unit_bits, blocks, memory);
        };
        let mut lines: Piece<Line> = memory.take(part.lines.len() * 2);
        let next_bit = 1 << (part.shift - 2);
        let old_units = std::mem::replace(&mut part.units, !(u32::MAX << unit_bits));
        // Without bits that were the hash's, and are the unit's now.
        let kept = !(part.units & !old_units);
        for (line, two) in part.lines.iter().zip(lines.as_chunks_mut::<2>().0) {
            line.split::<L>(next_bit, kept, two);
        }
        part.lines = lines;
        part.shift -= 1;
        part.entries -= spilled.len() as u32;
        part.gone = 0;
        part.count_room();
        for (entry, home) in spilled {
            let half = usize::from(entry & next_bit != 0);
            let entry = entry & kept;
            part.put::<L>(home * 2 + half, entry & !part.units, entry & part.units, |_| {});
        }
    }
}

/// The next larger size of a part in lines: from sixteen on, by its number, eight to fifteen times a power of two.
/// What grows beyond that has its lines chosen by the hash anew, while there are few names to look at.
fn lines_above(part: usize, lines: usize) -> usize {
    const STEPS: usize = 8;
    if lines < STEPS {
        return (lines * 2).max(1);
    }
    let mut grown = 2 * (STEPS + part % STEPS);
    while grown <= lines {
        grown *= 2;
    }
    grown
}
