//! Blocks by their place, and which of them are in the table of names.

use std::ops::Range;

use smallvec::SmallVec;

use super::{columns::Columns, memory::Place, names::AHEAD, shared::Shared};

/// What the table of names has to know of blocks.
pub(super) struct Blocks<'a> {
    pub(super) columns: &'a Columns,
    pub(super) shared: &'a Shared,
    /// Blocks of a run that are not listed yet, or not any more.
    pub(super) unlisted: Range<Place>,
    /// More that are not listed yet.
    pub(super) late: SmallVec<[Place; AHEAD]>,
    /// Blocks that are listed where they lay before their run moved.
    pub(super) moving: Range<Place>,
}

impl<'a> Blocks<'a> {
    pub(super) fn new(columns: &'a Columns, shared: &'a Shared, unlisted: Range<Place>) -> Self {
        Self { columns, shared, unlisted, late: SmallVec::new(), moving: 0..0 }
    }

    /// Whether there is a block, and it is listed. The place lies in a unit with one that is.
    pub(super) fn is_listed(&self, place: Place) -> bool {
        let is_not = self.unlisted.contains(&place) || self.late.contains(&place);
        self.moving.contains(&place) || !is_not && self.is_there(place)
    }

    fn is_there(&self, place: Place) -> bool {
        let run = self.shared.run(self.columns.run(place));
        place.wrapping_sub(run.place) < run.len
    }

    /// A block of a unit that has this name and for which `is_it` holds.
    #[inline]
    pub(super) fn named(
        columns: &Columns,
        unit: u32,
        name: u64,
        mut is_it: impl FnMut(Place) -> bool,
    ) -> Option<Place> {
        let names = columns.unit_names(unit);
        let first = unit * names.len() as u32;
        (first..).zip(names).find(|&(place, &other)| other == name && is_it(place)).map(|(place, _)| place)
    }
}
