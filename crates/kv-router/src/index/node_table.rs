//! Nodes by the hash of something that is written in the nodes themselves.

use super::nodes::{NodeId, ROOT};

/// Half of the hash, then the number, in eight bytes: a look-up reads one line and hardly any node but the right one, and
/// growing reads no node, which would be a cache miss each and a pause for all readers.
type Entry = u64;

/// No entry: this is no node's number.
const NONE: Entry = ROOT as Entry;

/// Entries of a table that has any, at least.
const LEAST: usize = 16;

fn entry(half: u32, node: NodeId) -> Entry {
    u64::from(half) << 32 | u64::from(node)
}

fn half_of(entry: Entry) -> u32 {
    (entry >> 32) as u32
}

fn node_of(entry: Entry) -> NodeId {
    entry as NodeId
}

/// A multimap from hashes to nodes: open addressing with linear probes, at most three quarters full. An entry's place is
/// in the order of the hashes, so that growing goes through the old and the new table once, from one end to the other.
pub(super) struct NodeTable {
    /// A power of two of them, or none.
    entries: Box<[Entry]>,
    len: usize,
}

/// A place for one more node.
pub(super) struct Place<'a> {
    table: &'a mut NodeTable,
    at: usize,
    half: u32,
}

impl Place<'_> {
    pub(super) fn put(self, node: NodeId) {
        self.table.entries[self.at] = entry(self.half, node);
        self.table.len += 1;
    }
}

impl NodeTable {
    pub(super) fn new() -> Self {
        Self { entries: Box::default(), len: 0 }
    }

    fn mask(&self) -> usize {
        self.entries.len() - 1
    }

    /// Where the search for a hash begins.
    fn home(&self, half: u32) -> usize {
        let bits = self.entries.len().trailing_zeros();
        (u64::from(half) << bits >> 32) as usize
    }

    /// The place of the first entry under `half` that `is_it` takes, or of the hole behind all.
    #[inline]
    fn probe(&self, half: u32, is_it: impl Fn(NodeId) -> bool) -> usize {
        let mut at = self.home(half);
        loop {
            let entry = self.entries[at];
            if entry == NONE || (half_of(entry) == half && is_it(node_of(entry))) {
                return at;
            }
            at = (at + 1) & self.mask();
        }
    }

    /// A node listed under `hash` for which `is_it` holds.
    #[inline]
    pub(super) fn find(&self, hash: u64, is_it: impl Fn(NodeId) -> bool) -> Option<NodeId> {
        if self.entries.is_empty() {
            return None;
        }
        let found = self.entries[self.probe(hash as u32, is_it)];
        (found != NONE).then_some(node_of(found))
    }

    pub(super) fn insert(&mut self, hash: u64, node: NodeId) {
        if let Some(place) = self.place_if_absent(hash, |_| false) {
            place.put(node);
        }
    }

    /// Where a node may be listed under `hash`, unless one is for which `is_it` holds: one probe instead of two.
    #[inline]
    pub(super) fn place_if_absent(&mut self, hash: u64, is_it: impl Fn(NodeId) -> bool) -> Option<Place<'_>> {
        if (self.len + 1) * 4 > self.entries.len() * 3 {
            self.resize((self.entries.len() * 2).max(LEAST));
        }
        let half = hash as u32;
        let at = self.probe(half, is_it);
        (self.entries[at] == NONE).then_some(Place { table: self, at, half })
    }

    pub(super) fn remove(&mut self, hash: u64, node: NodeId) {
        if self.entries.is_empty() {
            return;
        }
        let mut hole = self.probe(hash as u32, |other| other == node);
        if self.entries[hole] == NONE {
            return;
        }
        self.len -= 1;
        // Those behind it move up, as far as that is not before where the search for them begins.
        let mut at = hole;
        loop {
            at = (at + 1) & self.mask();
            let entry = self.entries[at];
            if entry == NONE {
                break;
            }
            let from_home = at.wrapping_sub(self.home(half_of(entry))) & self.mask();
            if from_home >= at.wrapping_sub(hole) & self.mask() {
                self.entries[hole] = entry;
                hole = at;
            }
        }
        self.entries[hole] = NONE;
    }

    /// Rebuilds itself if less than an eighth full, so that removals return memory at a cost that their number pays.
    pub(super) fn shrink_if_sparse(&mut self) {
        const SMALL: usize = 1024;
        if self.entries.len() > SMALL && self.len * 8 < self.entries.len() {
            self.resize((self.len * 3).next_power_of_two().max(LEAST));
        }
    }

    #[cold]
    #[inline(never)]
    fn resize(&mut self, size: usize) {
        let fresh = vec![NONE; size].into_boxed_slice();
        for entry in std::mem::replace(&mut self.entries, fresh) {
            if entry != NONE {
                let at = self.probe(half_of(entry), |_| false);
                self.entries[at] = entry;
            }
        }
    }

    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.entries)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.len
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng, rngs::SmallRng};

    use super::*;

    /// The nodes under a hash, in order.
    fn under(table: &NodeTable, hash: u64) -> Vec<NodeId> {
        let mut found: Vec<NodeId> = Vec::new();
        while let Some(node) = table.find(hash, |node| !found.contains(&node)) {
            found.push(node);
        }
        found.sort_unstable();
        found
    }

    #[test]
    fn a_table_has_what_was_listed_and_not_taken_off_whatever_collides() {
        for hashes in [4, 40, 4000] {
            let mut rng = SmallRng::seed_from_u64(hashes);
            let mut table = NodeTable::new();
            let mut model: Vec<(u64, NodeId)> = Vec::new();
            // Neighbours, and the last ones, whose probes go around the end.
            let hash = |number: u64| (number % hashes).wrapping_sub(hashes / 2) & 0xFFFF_FFFF;
            for step in 0..20_000 {
                let goes = rng.random_bool(if step / 2_500 % 2 == 0 { 0.3 } else { 0.7 });
                if goes && !model.is_empty() {
                    let (hash, node) = model.swap_remove(rng.random_range(0..model.len()));
                    table.remove(hash, node);
                    table.shrink_if_sparse();
                } else {
                    let (hash, node) = (hash(rng.random()), step);
                    let known = model.iter().any(|&(other, _)| other == hash);
                    match table.place_if_absent(hash, |_| step % 2 == 0) {
                        Some(place) => {
                            assert!(!known || step % 2 == 1);
                            place.put(node);
                        }
                        None => {
                            assert!(known && step % 2 == 0);
                            table.insert(hash, node);
                        }
                    }
                    model.push((hash, node));
                }
                assert_eq!(table.len(), model.len());
                let hash = hash(rng.random());
                let mut expected: Vec<NodeId> =
                    model.iter().filter(|(other, _)| *other == hash).map(|&(_, node)| node).collect();
                expected.sort_unstable();
                assert_eq!(under(&table, hash), expected);
            }
            for (hash, node) in model.drain(..) {
                table.remove(hash, node);
            }
            table.remove(7, 7);
            table.shrink_if_sparse();
            assert!(table.len() == 0 && table.bytes() <= 1024 * size_of::<Entry>());
        }
    }
}
