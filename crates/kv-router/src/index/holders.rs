//! Sets of holders, each stored once: neighbouring blocks nearly always have the same holders, so a block names its
//! set by number, and "the same holders as before" is one comparison.

use hashbrown::HashTable;

/// The number of a set.
pub(super) type SetId = u32;
/// The set of nobody. It is not counted.
pub(super) const EMPTY: SetId = 0;
/// No set at all.
pub(super) const NO_SET: SetId = SetId::MAX;

struct Set {
    /// Slot indices, ascending.
    slots: Box<[u32]>,
    /// XOR of the mixed slot indices.
    fingerprint: u64,
    refs: u32,
}

/// All sets in use, counted by reference.
pub(super) struct HolderSets {
    sets: Vec<Set>,
    free: Vec<SetId>,
    by_content: HashTable<SetId>,
    heap_bytes: usize,
}

pub(super) fn mix(value: u64) -> u64 {
    let product = value.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    product ^ (product >> 32)
}

pub(super) fn fingerprint_of(slot: u32) -> u64 {
    mix(u64::from(slot) + 1)
}

impl HolderSets {
    pub(super) fn new() -> Self {
        let empty = Set { slots: Box::default(), fingerprint: 0, refs: 0 };
        Self { sets: vec![empty], free: Vec::new(), by_content: HashTable::new(), heap_bytes: 0 }
    }

    /// The members, ascending.
    pub(super) fn get(&self, set: SetId) -> &[u32] {
        &self.sets[set as usize].slots
    }

    pub(super) fn contains(&self, set: SetId, slot: u32) -> bool {
        self.get(set).binary_search(&slot).is_ok()
    }

    /// One past the largest number given out.
    pub(super) fn limit(&self) -> usize {
        self.sets.len()
    }

    /// The set with `slot` added, which must be missing. The caller owns one reference to it.
    pub(super) fn with(&mut self, set: SetId, slot: u32) -> SetId {
        let members = self.get(set);
        let at = members.partition_point(|&member| member < slot);
        let fingerprint = self.sets[set as usize].fingerprint ^ fingerprint_of(slot);
        let found = self.find(fingerprint, members.len() + 1, |other| {
            other[..at] == members[..at] && other[at] == slot && other[at + 1..] == members[at..]
        });
        if let Some(found) = found {
            self.retain(found);
            return found;
        }
        let members = self.get(set);
        let slots = members[..at].iter().chain([&slot]).chain(&members[at..]).copied().collect();
        self.insert(slots, fingerprint)
    }

    /// The set with `slot` taken out, which must be in it. The caller owns one reference to it.
    pub(super) fn without(&mut self, set: SetId, slot: u32) -> SetId {
        let members = self.get(set);
        if members.len() == 1 {
            return EMPTY;
        }
        let at = members.partition_point(|&member| member < slot);
        let fingerprint = self.sets[set as usize].fingerprint ^ fingerprint_of(slot);
        let found = self.find(fingerprint, members.len() - 1, |other| {
            other[..at] == members[..at] && other[at..] == members[at + 1..]
        });
        if let Some(found) = found {
            self.retain(found);
            return found;
        }
        let members = self.get(set);
        let slots = members[..at].iter().chain(&members[at + 1..]).copied().collect();
        self.insert(slots, fingerprint)
    }

    pub(super) fn retain(&mut self, set: SetId) {
        if set != EMPTY {
            self.sets[set as usize].refs += 1;
        }
    }

    pub(super) fn release(&mut self, set: SetId) {
        if set == EMPTY {
            return;
        }
        let entry = &mut self.sets[set as usize];
        entry.refs -= 1;
        if entry.refs > 0 {
            return;
        }
        self.heap_bytes -= size_of_val(&*entry.slots);
        entry.slots = Box::default();
        if let Ok(found) = self.by_content.find_entry(entry.fingerprint, |&other| other == set) {
            found.remove();
        }
        self.free.push(set);
        if self.by_content.is_empty() {
            self.sets.truncate(1);
            *self = Self { sets: std::mem::take(&mut self.sets), ..Self::new() };
            self.sets.shrink_to_fit();
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.sets.capacity() * size_of::<Set>()
            + self.free.capacity() * size_of::<SetId>()
            + self.by_content.allocation_size()
            + self.heap_bytes
    }

    fn find(&self, fingerprint: u64, len: usize, same: impl Fn(&[u32]) -> bool) -> Option<SetId> {
        let sets = &self.sets;
        let is_it = |&id: &SetId| {
            let set = &sets[id as usize];
            set.fingerprint == fingerprint && set.slots.len() == len && same(&set.slots)
        };
        self.by_content.find(fingerprint, is_it).copied()
    }

    fn insert(&mut self, slots: Box<[u32]>, fingerprint: u64) -> SetId {
        self.heap_bytes += size_of_val(&*slots);
        let set = Set { slots, fingerprint, refs: 1 };
        let id = match self.free.pop() {
            Some(id) => {
                self.sets[id as usize] = set;
                id
            }
            None => {
                self.sets.push(set);
                self.sets.len() as SetId - 1
            }
        };
        let sets = &self.sets;
        self.by_content.insert_unique(fingerprint, id, |&id| sets[id as usize].fingerprint);
        id
    }

    #[cfg(test)]
    pub(super) fn refs(&self, set: SetId) -> u32 {
        self.sets[set as usize].refs
    }

    #[cfg(test)]
    pub(super) fn live(&self) -> usize {
        self.by_content.len()
    }
}

/// The last change of a set, remembered for the next block: the blocks of an event mostly make the same one. It owns
/// a reference to both sets, so that neither number can come to mean another set meanwhile.
pub(super) struct Change {
    from: SetId,
    to: SetId,
}

impl Change {
    pub(super) const NONE: Self = Self { from: NO_SET, to: EMPTY };

    /// `set` with `slot` added (or taken out); the caller owns one reference.
    pub(super) fn apply(&mut self, sets: &mut HolderSets, set: SetId, slot: u32, add: bool) -> SetId {
        if self.from != set {
            let to = if add { sets.with(set, slot) } else { sets.without(set, slot) };
            sets.retain(set);
            let before = std::mem::replace(self, Self { from: set, to });
            before.end(sets);
        }
        sets.retain(self.to);
        self.to
    }

    /// Gives the references back.
    pub(super) fn end(self, sets: &mut HolderSets) {
        if self.from != NO_SET {
            sets.release(self.from);
            sets.release(self.to);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_sets_are_one_set_and_unused_ones_go() {
        let mut sets = HolderSets::new();
        let a = sets.with(EMPTY, 7);
        let ab = sets.with(a, 3);
        let b = sets.with(EMPTY, 3);
        let ba = sets.with(b, 7);
        assert_eq!(ab, ba);
        assert_eq!(sets.get(ab), [3, 7]);
        let back = sets.without(ab, 3);
        assert_eq!(back, a);
        assert_eq!(sets.without(a, 7), EMPTY);
        for set in [a, ab, b, ba, back] {
            sets.release(set);
        }
        assert_eq!(sets.live(), 0);
        assert!(sets.bytes() <= 64, "{}", sets.bytes());
    }

    #[test]
    fn a_remembered_change_is_not_fooled_by_numbers_used_again() {
        let mut sets = HolderSets::new();
        let mut change = Change::NONE;
        let one = sets.with(EMPTY, 1);
        let both = change.apply(&mut sets, one, 2, true);
        sets.release(one);
        let other = sets.with(EMPTY, 9);
        assert_ne!(other, one);
        let with_nine = change.apply(&mut sets, other, 2, true);
        assert_eq!(sets.get(with_nine), [2, 9]);
        for set in [both, other, with_nine] {
            sets.release(set);
        }
        change.end(&mut sets);
        assert_eq!(sets.live(), 0);
    }
}
