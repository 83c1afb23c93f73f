//! Where blocks lie that were stored lately: an engine that decodes stores the next block behind one of them.

use super::{memory::Place, shared::small};

/// Sequences that one writer's engines decode at a time: 64 of 64 workers each.
const PLACES: usize = small(1 << 12, 1 << 2) as usize;

/// Places by the hash of their block's name. What is found has to be looked at: it may be another name's place, or lie
/// where nothing is any more.
#[derive(Default)]
pub(super) struct RecentBlocks(Vec<Place>);

impl RecentBlocks {
    #[inline]
    pub(super) fn note(&mut self, hash: u64, place: Place) {
        if self.0.is_empty() {
            self.0.resize(PLACES, 0);
        }
        self.0[hash as usize % PLACES] = place;
    }

    #[inline]
    pub(super) fn find(&self, hash: u64) -> Option<Place> {
        self.0.get(hash as usize % PLACES).copied().filter(|&place| place != 0)
    }

    pub(super) fn bytes(&self) -> usize {
        self.0.capacity() * size_of::<Place>()
    }
}
