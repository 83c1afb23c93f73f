//! What one slot calls the nodes that it holds.

use hashbrown::HashTable;
use rustc_hash::FxHashMap;

use super::nodes::NodeId;
use crate::index::holders::mix;

/// Twelve bytes: a name in two halves needs no padding.
#[derive(Clone, Copy)]
struct Entry {
    name: [u32; 2],
    node: NodeId,
}

fn halves(name: u64) -> [u32; 2] {
    [name as u32, (name >> 32) as u32]
}

fn hash(name: [u32; 2]) -> u64 {
    mix(u64::from(name[0]) | u64::from(name[1]) << 32)
}

/// The names of one slot.
#[derive(Default)]
pub(super) struct SlotNames {
    entries: HashTable<Entry>,
    /// Names of a node beyond the first one.
    doubled: FxHashMap<NodeId, u32>,
}

impl SlotNames {
    pub(super) fn get(&self, name: u64) -> Option<NodeId> {
        let name = halves(name);
        self.entries.find(hash(name), |entry| entry.name == name).map(|entry| entry.node)
    }

    /// Looks names up for nothing but the cache, so that their misses overlap.
    pub(super) fn warm(&self, names: impl Iterator<Item = u64>) {
        for name in names {
            std::hint::black_box(self.get(name));
        }
    }

    /// Makes room, so that the next `names` cost no growth.
    pub(super) fn reserve(&mut self, names: usize) {
        self.entries.reserve(names, |entry| hash(entry.name));
    }

    /// A new name.
    pub(super) fn insert(&mut self, name: u64, node: NodeId) {
        let name = halves(name);
        self.entries.insert_unique(hash(name), Entry { name, node }, |entry| hash(entry.name));
    }

    /// The node has one more name than it had.
    pub(super) fn double(&mut self, node: NodeId) {
        *self.doubled.entry(node).or_default() += 1;
    }

    /// Takes a name away; says what it stood for, and whether that has no name now.
    pub(super) fn remove(&mut self, name: u64) -> Option<(NodeId, bool)> {
        let name = halves(name);
        let found = self.entries.find_entry(hash(name), |entry| entry.name == name).ok()?;
        let node = found.remove().0.node;
        if self.doubled.is_empty() {
            return Some((node, true));
        }
        let Some(more) = self.doubled.get_mut(&node) else { return Some((node, true)) };
        *more -= 1;
        if *more == 0 {
            self.doubled.remove(&node);
            if self.doubled.is_empty() {
                self.doubled = FxHashMap::default();
            }
        }
        Some((node, false))
    }

    /// Gives room back after removals, at a cost that their number pays.
    pub(super) fn shrink_if_sparse(&mut self) {
        const SMALL: usize = 64;
        let (len, capacity) = (self.entries.len(), self.entries.capacity());
        if len == 0 {
            self.entries = HashTable::new();
        } else if capacity > SMALL && len * 8 < capacity {
            self.entries.shrink_to(len * 2, |entry| hash(entry.name));
        }
    }

    /// All names and their nodes.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, NodeId)> {
        let name = |entry: &Entry| u64::from(entry.name[0]) | u64::from(entry.name[1]) << 32;
        self.entries.iter().map(move |entry| (name(entry), entry.node))
    }

    pub(super) fn bytes(&self) -> usize {
        self.entries.allocation_size() + self.doubled.capacity() * (size_of::<(NodeId, u32)>() + 1)
    }
}
