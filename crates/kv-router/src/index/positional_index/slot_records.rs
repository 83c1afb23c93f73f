//! What one slot holds, and where its sequences have holes.

use hashbrown::HashTable;
use rustc_hash::FxHashMap;

use crate::index::holders::mix;

/// Twelve bytes: a name in two halves needs no padding.
#[derive(Clone, Copy)]
struct Record {
    name: [u32; 2],
    /// Blocks right after it that the slot holds, or that are holes.
    children: u32,
}

/// A block that the slot does not hold, before one that it does.
#[derive(Clone, Copy)]
pub(super) struct Hole {
    pub(super) local: u64,
    pub(super) parent: u64,
    children: u32,
}

fn halves(name: u64) -> [u32; 2] {
    [name as u32, (name >> 32) as u32]
}

fn whole(name: [u32; 2]) -> u64 {
    u64::from(name[0]) | u64::from(name[1]) << 32
}

fn hash(record: &Record) -> u64 {
    mix(whole(record.name))
}

/// The blocks of one slot, by name.
#[derive(Default)]
pub(super) struct SlotRecords {
    held: HashTable<Record>,
    holes: FxHashMap<u64, Hole>,
}

impl SlotRecords {
    pub(super) fn holds(&self, name: u64) -> bool {
        let halves = halves(name);
        self.held.find(mix(name), |record| record.name == halves).is_some()
    }

    /// A hole of this name.
    pub(super) fn hole(&self, name: u64) -> Option<&Hole> {
        self.holes.get(&name)
    }

    pub(super) fn holes(&self) -> usize {
        self.holes.len()
    }

    /// Looks names up for nothing but the cache, so that their misses overlap.
    pub(super) fn warm(&self, names: impl Iterator<Item = u64>) {
        for name in names {
            std::hint::black_box(self.holds(name));
        }
    }

    pub(super) fn reserve(&mut self, names: usize) {
        self.held.reserve(names, hash);
    }

    fn children(&mut self, name: u64) -> Option<&mut u32> {
        let halves = halves(name);
        self.held.find_mut(mix(name), |record| record.name == halves).map(|record| &mut record.children)
    }

    /// Takes on a block that is not held, and whose parent is. Returns whether it was a hole.
    pub(super) fn store(&mut self, name: u64, parent: Option<u64>) -> bool {
        let hole = if self.holes.is_empty() { None } else { self.holes.remove(&name) };
        if hole.is_none()
            && let Some(children) = parent.and_then(|parent| self.children(parent))
        {
            *children += 1;
        }
        let record = Record { name: halves(name), children: hole.map_or(0, |hole| hole.children) };
        self.held.insert_unique(mix(name), record, hash);
        hole.is_some()
    }

    /// Drops a block that is held. Returns whether that left a hole. A first block's name is its local hash.
    pub(super) fn remove(&mut self, name: u64, local: u64, parent: u64) -> bool {
        let halves = halves(name);
        let Ok(found) = self.held.find_entry(mix(name), |record| record.name == halves) else { return false };
        let children = found.remove().0.children;
        if children > 0 {
            self.holes.insert(name, Hole { local, parent, children });
            return true;
        }
        let (mut name, mut local, mut parent) = (name, local, parent);
        while name != local {
            if let Some(children) = self.children(parent) {
                *children -= 1;
                break;
            }
            let Some(hole) = self.holes.get_mut(&parent) else { break };
            hole.children -= 1;
            if hole.children > 0 {
                break;
            }
            (name, local, parent) = (parent, hole.local, hole.parent);
            self.holes.remove(&name);
        }
        false
    }

    /// Gives room back after removals, at a cost that their number pays.
    pub(super) fn shrink_if_sparse(&mut self) {
        const SMALL: usize = 64;
        let (len, capacity) = (self.held.len(), self.held.capacity());
        if len == 0 {
            *self = Self::default();
        } else if capacity > SMALL && len * 8 < capacity {
            self.held.shrink_to(len * 2, hash);
        }
        if self.holes.capacity() > SMALL && self.holes.len() * 8 < self.holes.capacity() {
            self.holes.shrink_to(self.holes.len() * 2);
        }
    }

    /// The names of all blocks that are held.
    pub(super) fn names(&self) -> impl Iterator<Item = u64> {
        self.held.iter().map(|record| whole(record.name))
    }

    pub(super) fn into_names(self) -> impl Iterator<Item = u64> {
        self.held.into_iter().map(|record| whole(record.name))
    }

    pub(super) fn bytes(&self) -> usize {
        self.held.allocation_size() + self.holes.capacity() * (size_of::<(u64, Hole)>() + 1)
    }
}
