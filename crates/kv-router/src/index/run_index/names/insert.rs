//! Many blocks put in one after the other, each line asked for some time before.

use super::{
    super::{
        blocks::Blocks,
        lanes::{Level, Work},
        memory::{Place, prefetch},
        regions::Memory,
    },
    AHEAD,
    grow::make_room,
    hash,
    part::Part,
    part_of, unit,
};

/// Puts in the blocks of `blocks.unlisted`.
pub(super) struct InsertAll<'a, 'b, F> {
    pub(super) parts: &'a mut Vec<Part>,
    pub(super) memory: &'a Memory,
    pub(super) blocks: &'a mut Blocks<'b>,
    pub(super) seen: F,
}

/// Where an entry will go.
#[derive(Clone, Copy, Default)]
struct Prepared {
    part: u32,
    line: u32,
    tag: u32,
}

impl Prepared {
    /// Asks for the line, too.
    #[inline(always)]
    fn new(parts: &[Part], name: u64) -> Self {
        let hash = hash(name);
        let number = part_of(parts, hash);
        let part = &parts[number];
        let line = part.home(hash);
        if let Some(line) = part.lines.get(line) {
            prefetch(line);
        }
        Self { part: number as u32, line: line as u32, tag: part.tag(hash) }
    }
}

impl<F: FnMut(u32, Place)> Work for InsertAll<'_, '_, F> {
    type Output = ();

    #[inline(always)]
    fn run<L: Level>(self) {
        let Self { parts: table, memory, blocks, mut seen } = self;
        let mut parts = table.as_mut_slice();
        let columns = blocks.columns;
        let first = blocks.unlisted.start;
        let names = columns.names(first, blocks.unlisted.len());
        let mut prepared = [Prepared::default(); AHEAD];
        for (prepared, &name) in prepared.iter_mut().zip(names) {
            *prepared = Prepared::new(parts, name);
        }
        let mut later = names.iter().skip(AHEAD);
        for (number, place) in (0..names.len()).zip(first..) {
            let unit = unit(place);
            let mut to = prepared[number % AHEAD];
            if parts[to.part as usize].is_too_small(unit) {
                blocks.unlisted.start = place;
                make_room(table, to.part as usize, unit, blocks, memory);
                parts = table.as_mut_slice();
                prepare_again(parts, names, number, &mut prepared);
                to = prepared[number % AHEAD];
            }
            if let Some(&name) = later.next() {
                prepared[number % AHEAD] = Prepared::new(parts, name);
            }
            let part = &mut parts[to.part as usize];
            if !part.put_at_home::<L>(to.line as usize, to.tag, unit, |other| seen(other, place)) {
                // The line behind is not here yet.
                prefetch(&part.lines[part.next(to.line as usize)]);
                blocks.late.push(place);
                if blocks.late.len() == AHEAD {
                    blocks.unlisted.start = place + 1;
                    let has_grown = put_late::<L>(table, memory, blocks, &mut seen);
                    parts = table.as_mut_slice();
                    if has_grown {
                        prepare_again(parts, names, number + 1, &mut prepared);
                    }
                }
            }
        }
        blocks.unlisted.start = blocks.unlisted.end;
        put_late::<L>(table, memory, blocks, &mut seen);
    }
}

/// Parts that grew have other lines for what comes from `number` on.
#[cold]
fn prepare_again(parts: &[Part], names: &[u64], number: usize, prepared: &mut [Prepared; AHEAD]) {
    for (number, &name) in names.iter().enumerate().skip(number).take(AHEAD) {
        prepared[number % AHEAD] = Prepared::new(parts, name);
    }
}

/// Puts in what found its line full. Says whether a part grew.
#[inline(always)]
pub(super) fn put_late<L: Level>(
    parts: &mut Vec<Part>,
    memory: &Memory,
    blocks: &mut Blocks<'_>,
    mut seen: impl FnMut(u32, Place),
) -> bool {
    let mut has_grown = false;
    while let Some(&place) = blocks.late.last() {
        let hash = hash(blocks.columns.name(place));
        let mut number = part_of(parts, hash);
        if parts[number].is_too_small(unit(place)) {
            make_room(parts, number, unit(place), blocks, memory);
            number = part_of(parts, hash);
            has_grown = true;
        }
        let part = &mut parts[number];
        part.put::<L>(part.home(hash), part.tag(hash), unit(place), |other| seen(other, place));
        blocks.late.pop();
    }
    has_grown
}
