//! Nodes by the hash of something that is written in the nodes themselves.

use hashbrown::HashTable;

use super::nodes::NodeId;

/// Half of the hash stays with the number: growing then reads no node, which would be a cache miss each and a pause
/// for all readers, and a look-up reads hardly any but the right one.
#[derive(Clone, Copy)]
struct Entry {
    half: u32,
    node: NodeId,
}

fn whole(half: u32) -> u64 {
    u64::from(half) << 32 | u64::from(half)
}

/// A multimap from hashes to nodes.
pub(super) struct NodeTable {
    entries: HashTable<Entry>,
}

impl NodeTable {
    pub(super) fn new() -> Self {
        Self { entries: HashTable::new() }
    }

    /// A node listed under `hash` for which `is_it` holds.
    pub(super) fn find(&self, hash: u64, is_it: impl Fn(NodeId) -> bool) -> Option<NodeId> {
        let half = hash as u32;
        let found = self.entries.find(whole(half), |entry| entry.half == half && is_it(entry.node));
        found.map(|entry| entry.node)
    }

    pub(super) fn insert(&mut self, hash: u64, node: NodeId) {
        let half = hash as u32;
        self.entries.insert_unique(whole(half), Entry { half, node }, |entry| whole(entry.half));
    }

    pub(super) fn remove(&mut self, hash: u64, node: NodeId) {
        if let Ok(entry) = self.entries.find_entry(whole(hash as u32), |entry| entry.node == node) {
            entry.remove();
        }
    }

    /// Rebuilds itself if less than an eighth full, so that removals return memory at a cost that their number pays.
    pub(super) fn shrink_if_sparse(&mut self) {
        const SMALL: usize = 1024;
        if self.entries.capacity() > SMALL && self.entries.len() * 8 < self.entries.capacity() {
            self.entries.shrink_to(self.entries.len() * 2, |entry| whole(entry.half));
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.entries.allocation_size()
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }
}
