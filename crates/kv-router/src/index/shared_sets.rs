//! Sets of holders for indexes with many writers: each stored once, counted by reference, compared by address.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use hashbrown::HashTable;
use parking_lot::Mutex;
use smallvec::SmallVec;

use super::holders::fingerprint_of;

/// Slot indices, ascending; never empty.
pub(super) struct Holders {
    slots: SmallVec<[u32; 6]>,
    /// XOR of the mixed slot indices.
    fingerprint: u64,
}

impl Holders {
    pub(super) fn slots(&self) -> &[u32] {
        &self.slots
    }

    pub(super) fn contains(&self, slot: u32) -> bool {
        self.slots.binary_search(&slot).is_ok()
    }

    fn bytes(&self) -> usize {
        let counts = 2 * size_of::<usize>();
        let spilled = if self.slots.spilled() { self.slots.capacity() * size_of::<u32>() } else { 0 };
        size_of::<Self>() + counts + spilled
    }
}

/// A set, or nobody.
pub(super) type HoldersRef = Option<Arc<Holders>>;

/// The same set, at the same address.
pub(super) fn is_same(a: &HoldersRef, b: &HoldersRef) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        (None, None) => true,
        _ => false,
    }
}

pub(super) fn members(set: &HoldersRef) -> &[u32] {
    set.as_ref().map_or(&[], |set| set.slots())
}

/// Writers meet here only when a set changes, which is seldom twice at once.
const SHARDS: usize = 16;

/// All sets in use.
pub(super) struct SharedSets {
    shards: [Mutex<HashTable<Arc<Holders>>>; SHARDS],
    /// Of the sets alone.
    bytes: AtomicUsize,
}

impl SharedSets {
    pub(super) fn new() -> Self {
        Self { shards: [const { Mutex::new(HashTable::new()) }; SHARDS], bytes: AtomicUsize::new(0) }
    }

    fn shard(&self, fingerprint: u64) -> &Mutex<HashTable<Arc<Holders>>> {
        &self.shards[(fingerprint >> 48) as usize % SHARDS]
    }

    /// The set with `slot` added, which must be missing.
    fn with(&self, set: &HoldersRef, slot: u32) -> Arc<Holders> {
        let before = members(set);
        let at = before.partition_point(|&member| member < slot);
        let slots = before[..at].iter().chain([&slot]).chain(&before[at..]).copied().collect();
        self.intern(slots, set.as_ref().map_or(0, |set| set.fingerprint) ^ fingerprint_of(slot))
    }

    /// The set with `slot` taken out, which must be in it.
    fn without(&self, set: &Holders, slot: u32) -> HoldersRef {
        if set.slots.len() == 1 {
            return None;
        }
        let slots = set.slots.iter().copied().filter(|&member| member != slot).collect();
        Some(self.intern(slots, set.fingerprint ^ fingerprint_of(slot)))
    }

    fn intern(&self, slots: SmallVec<[u32; 6]>, fingerprint: u64) -> Arc<Holders> {
        let mut shard = self.shard(fingerprint).lock();
        if let Some(found) = shard.find(fingerprint, |other| other.slots == slots) {
            return found.clone();
        }
        if shard.len() == shard.capacity() {
            // Of two who let go of a set at once, none may have been the last to look.
            shard.retain(|set| {
                let used = Arc::strong_count(set) > 1;
                if !used {
                    self.bytes.fetch_sub(set.bytes(), Ordering::Relaxed);
                }
                used
            });
        }
        let set = Arc::new(Holders { slots, fingerprint });
        self.bytes.fetch_add(set.bytes(), Ordering::Relaxed);
        shard.insert_unique(fingerprint, set.clone(), |set| set.fingerprint);
        set
    }

    /// Lets go of a set; the last to do so takes it off the list.
    pub(super) fn release(&self, set: HoldersRef) {
        let Some(set) = set else { return };
        // The list's own reference and ours.
        if Arc::strong_count(&set) > 2 {
            return;
        }
        let mut shard = self.shard(set.fingerprint).lock();
        if Arc::strong_count(&set) == 2
            && let Ok(entry) = shard.find_entry(set.fingerprint, |other| Arc::ptr_eq(other, &set))
        {
            self.bytes.fetch_sub(set.bytes(), Ordering::Relaxed);
            entry.remove();
            if shard.is_empty() {
                *shard = HashTable::new();
            }
        }
    }

    pub(super) fn bytes(&self) -> usize {
        let tables = self.shards.iter().map(|shard| shard.lock().allocation_size()).sum::<usize>();
        tables + self.bytes.load(Ordering::Relaxed)
    }

    #[cfg(test)]
    pub(super) fn live(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }
}

/// The last change of a set, remembered for the next block: the blocks of an event mostly make the same one. It holds
/// on to both sets, so that neither address can come to mean another set meanwhile.
#[derive(Default)]
pub(super) struct Change(Option<(HoldersRef, HoldersRef)>);

impl Change {
    /// Puts `slot` into `set`, where it is missing.
    pub(super) fn add(&mut self, sets: &SharedSets, set: &mut HoldersRef, slot: u32) {
        self.apply(sets, set, |set| Some(sets.with(set, slot)));
    }

    /// Takes `slot` out of `set`, where it is.
    pub(super) fn remove(&mut self, sets: &SharedSets, set: &mut HoldersRef, slot: u32) {
        self.apply(sets, set, |set| set.as_ref().and_then(|set| sets.without(set, slot)));
    }

    fn apply(
        &mut self,
        sets: &SharedSets,
        set: &mut HoldersRef,
        change: impl FnOnce(&HoldersRef) -> HoldersRef,
    ) {
        let to = match &self.0 {
            Some((from, to)) if is_same(from, set) => to.clone(),
            _ => {
                let to = change(set);
                let before = self.0.replace((set.clone(), to.clone()));
                let_go(before, sets);
                to
            }
        };
        sets.release(std::mem::replace(set, to));
    }

    pub(super) fn end(self, sets: &SharedSets) {
        let_go(self.0, sets);
    }
}

fn let_go(sets_of: Option<(HoldersRef, HoldersRef)>, sets: &SharedSets) {
    if let Some((from, to)) = sets_of {
        sets.release(from);
        sets.release(to);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_sets_are_one_set_and_unused_ones_go() {
        let sets = SharedSets::new();
        let (mut a, mut b) = (None, None);
        for (set, order) in [(&mut a, [7, 3]), (&mut b, [3, 7])] {
            for slot in order {
                let mut change = Change::default();
                change.add(&sets, set, slot);
                change.end(&sets);
            }
        }
        assert!(is_same(&a, &b));
        assert_eq!((members(&a), sets.live()), (&[3, 7][..], 1));
        for set in [&mut a, &mut b] {
            let mut change = Change::default();
            change.remove(&sets, set, 3);
            change.end(&sets);
            let mut change = Change::default();
            change.remove(&sets, set, 7);
            change.end(&sets);
            assert!(set.is_none());
        }
        assert_eq!((sets.live(), sets.bytes()), (0, 0));
    }

    #[test]
    fn a_remembered_change_is_made_without_a_look_at_the_list() {
        let sets = SharedSets::new();
        let mut blocks: Vec<HoldersRef> = vec![None; 5];
        let mut change = Change::default();
        for block in &mut blocks {
            change.add(&sets, block, 1);
        }
        change.end(&sets);
        assert!(blocks.windows(2).all(|pair| is_same(&pair[0], &pair[1])));
        let mut change = Change::default();
        for block in &mut blocks {
            change.remove(&sets, block, 1);
        }
        change.end(&sets);
        assert_eq!(sets.live(), 0);
    }
}
