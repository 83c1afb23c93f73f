//! The table of children, as the writer changes it under the readers' eyes.
//!
//! Entries never move within a table; one that is gone leaves a mark that readers pass over. A part that is full of
//! entries and marks is written anew elsewhere, and then put in the place of the old one by one word.

use std::sync::atomic::Ordering::{Relaxed, Release};

use super::{
    ApplyError, RunIndex,
    atomics::AtomicU64,
    columns::UNIT,
    header::{ChildEntry, ORIGIN, ROOT, RunId, halves, pair},
    limbo::Retired,
    shared::{CHILD_PARTS, child_hash, child_part},
};

/// What was a child.
const GONE: u64 = 1 << 63;
/// Words of the smallest table.
const SMALLEST: u32 = UNIT;
/// Words of the largest, half a chunk of lists.
const LARGEST: u32 = 1 << 15;

/// How full the parts are.
pub(super) struct ChildTable {
    parts: Vec<Part>,
}

#[derive(Clone, Copy, Default)]
struct Part {
    /// Children.
    live: u32,
    /// Children and marks.
    used: u32,
}

impl ChildTable {
    pub(super) fn new() -> Self {
        Self { parts: vec![Part::default(); CHILD_PARTS] }
    }

    pub(super) fn bytes(&self) -> usize {
        self.parts.capacity() * size_of::<Part>()
    }
}

impl RunIndex {
    fn child_words(&self, part: usize) -> (u32, u32) {
        match halves(self.shared.children[part].load(Relaxed)) {
            (0, _) => (0, 0),
            (place, bits) => (place, 1 << bits),
        }
    }

    /// Makes room for one more child with this hash, before anything else is changed for it.
    pub(super) fn room_for_child(&mut self, hash: u64) -> Result<(), ApplyError> {
        let part = child_part(hash);
        let Part { live, used } = self.children.parts[part];
        let (place, words) = self.child_words(part);
        if (used + 1) * 8 <= words * 5 {
            return Ok(());
        }
        // Twice what is live, so that the next time is as far away as there are entries.
        let wanted = ((live + 1) * 2).next_power_of_two().max(SMALLEST);
        if wanted > LARGEST {
            return Err(ApplyError::Full);
        }
        let new = self.new_list(wanted).ok_or(ApplyError::Full)?;
        let (old, target) =
            (self.shared.lists.slice(place, words as usize), self.shared.lists.slice(new, wanted as usize));
        for entry in old {
            let entry = ChildEntry(entry.load(Relaxed));
            if entry.run() != ROOT {
                put(target, self.hash_of(entry.run()), entry.0);
            }
        }
        self.shared.children[part].store(pair(new, wanted.trailing_zeros()), Release);
        self.children.parts[part].used = live;
        if words > 0 {
            self.retire(Retired::List { place, words });
        }
        Ok(())
    }

    fn hash_of(&self, run: RunId) -> u64 {
        let found = self.shared.run(run);
        let (parent, offset) = halves(found.header[ORIGIN].load(Relaxed));
        let first = self.shared.locals.slice(found.place, 1)[0].load(Relaxed);
        child_hash(parent, offset, first)
    }

    /// Lets readers find a child, for which there is room.
    pub(super) fn list_child(&mut self, run: RunId) {
        let hash = self.hash_of(run);
        let part = child_part(hash);
        let (place, words) = self.child_words(part);
        let entry = ChildEntry::new(hash, self.shared.run(run).place, run);
        let is_new = put(self.shared.lists.slice(place, words as usize), hash, entry.0);
        let part = &mut self.children.parts[part];
        part.live += 1;
        part.used += u32::from(is_new);
    }

    /// Says where the blocks of a child went.
    pub(super) fn relist_child(&mut self, run: RunId) {
        let hash = self.hash_of(run);
        let (place, words) = self.child_words(child_part(hash));
        let entries = self.shared.lists.slice(place, words as usize);
        let mask = entries.len() - 1;
        let mut at = (hash >> 32) as usize & mask;
        while ChildEntry(entries[at].load(Relaxed)).run() != run {
            at = (at + 1) & mask;
        }
        entries[at].store(ChildEntry::new(hash, self.shared.run(run).place, run).0, Release);
    }

    /// Hides a child that is about to go.
    pub(super) fn unlist_child(&mut self, run: RunId) {
        let hash = self.hash_of(run);
        let part = child_part(hash);
        let (place, words) = self.child_words(part);
        let entries = self.shared.lists.slice(place, words as usize);
        let mask = entries.len() - 1;
        let mut at = (hash >> 32) as usize & mask;
        while ChildEntry(entries[at].load(Relaxed)).run() != run {
            at = (at + 1) & mask;
        }
        entries[at].store(GONE, Release);
        let state = &mut self.children.parts[part];
        state.live -= 1;
        if state.live == 0 {
            state.used = 0;
            self.shared.children[part].store(0, Release);
            self.retire(Retired::List { place, words });
        }
    }
}

/// Writes an entry; says whether the word was never used.
fn put(entries: &[AtomicU64], hash: u64, entry: u64) -> bool {
    let mask = entries.len() - 1;
    let mut at = (hash >> 32) as usize & mask;
    loop {
        let there = entries[at].load(Relaxed);
        if there == 0 || there == GONE {
            entries[at].store(entry, Release);
            return there == 0;
        }
        at = (at + 1) & mask;
    }
}
