//! The names that slots give to blocks, beyond the one that a node carries itself.
//!
//! Nearly always all slots call a block the same, and the node's own column says it all. An engine whose hashes
//! differ between workers, or that gives one block two names, gets entries here.

use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use super::nodes::NodeId;

/// What one slot calls one node, where it is not just the node's own name.
#[derive(Default)]
struct Names {
    /// The slot uses the node's own name too.
    own: bool,
    others: SmallVec<[u64; 2]>,
}

/// Names of slots that are not the node's own.
pub(super) struct Aliases<N = NodeId> {
    nodes: FxHashMap<(u32, u64), N>,
    names: FxHashMap<(N, u32), Names>,
}

impl<N> Default for Aliases<N> {
    fn default() -> Self {
        Self { nodes: FxHashMap::default(), names: FxHashMap::default() }
    }
}

/// What is left after a name was taken away.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Left {
    /// Another name of the slot stands for the node.
    Names,
    /// None does.
    Nothing,
}

impl<N: Copy + Eq + std::hash::Hash> Aliases<N> {
    pub(super) fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// The node that a slot calls so, if that is not the node's own name.
    pub(super) fn node(&self, slot: u32, ext: u64) -> Option<N> {
        self.nodes.get(&(slot, ext)).copied()
    }

    /// Whether a holder of the node uses the node's own name.
    pub(super) fn uses_own(&self, node: N, slot: u32) -> bool {
        self.is_empty() || self.names.get(&(node, slot)).is_none_or(|names| names.own)
    }

    /// The other names by which a slot holds a node.
    pub(super) fn others(&self, node: N, slot: u32) -> &[u64] {
        self.names.get(&(node, slot)).map_or(&[], |names| &names.others)
    }

    /// A holder of the node uses the node's own name from now on, too.
    pub(super) fn add_own(&mut self, node: N, slot: u32) {
        if let Some(names) = self.names.get_mut(&(node, slot)) {
            names.own = true;
        }
    }

    /// Another name; `holds` says whether the slot held the node before.
    pub(super) fn add(&mut self, node: N, slot: u32, ext: u64, holds: bool) {
        let names = self.names.entry((node, slot)).or_insert(Names { own: holds, others: SmallVec::new() });
        names.others.push(ext);
        self.nodes.insert((slot, ext), node);
    }

    /// Takes a name of a holder away; `is_own` says that it is the node's own one.
    pub(super) fn remove(&mut self, node: N, slot: u32, ext: u64, is_own: bool) -> Left {
        let Some(names) = self.names.get_mut(&(node, slot)) else { return Left::Nothing };
        if is_own {
            names.own = false;
        } else {
            names.others.retain(|name| *name != ext);
            self.nodes.remove(&(slot, ext));
        }
        if !names.others.is_empty() {
            return Left::Names;
        }
        let own = names.own;
        self.names.remove(&(node, slot));
        self.give_back();
        if own { Left::Names } else { Left::Nothing }
    }

    /// Forgets all of a slot.
    pub(super) fn clear(&mut self, slot: u32) {
        self.nodes.retain(|&(owner, _), _| owner != slot);
        self.names.retain(|&(_, owner), _| owner != slot);
        self.give_back();
    }

    pub(super) fn bytes(&self) -> usize {
        self.nodes.capacity() * (size_of::<((u32, u64), N)>() + 1)
            + self.names.capacity() * (size_of::<((N, u32), Names)>() + 1)
    }

    fn give_back(&mut self) {
        shrink_if_sparse(&mut self.nodes);
        shrink_if_sparse(&mut self.names);
    }
}

fn shrink_if_sparse<K: Eq + std::hash::Hash, V>(map: &mut FxHashMap<K, V>) {
    if map.capacity() > 64 && map.len() * 8 < map.capacity() {
        map.shrink_to(map.len() * 2);
    }
}
