//! Prompts that are served at the moment, over all slots: a compressed trie of sequence hashes.
//!
//! A node has a run of blocks that are always served together, the slots that serve them, and how many of their
//! requests do. A request is the node at which its prompt ends; prompts part only where nodes do. Booking, freeing and
//! asking cost by the nodes along a prompt, which are few, not by its blocks, which may be thousands: a sequence hash
//! stands for all blocks before it, so the last equal hash of a run is found by bisection.
//!
//! There are fewer than two nodes a request: a node goes when nobody serves it, and joins its only child when no prompt
//! ends between them.

use dynamo_tokens::SequenceHash;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

/// A node, for as long as somebody serves it.
pub(super) type NodeId = u32;

/// Where empty prompts end: it has no blocks and counts nobody.
const ROOT: NodeId = 0;

#[derive(Clone, Copy)]
struct Holder {
    slot: u32,
    requests: u32,
}

struct Node {
    run: Box<[SequenceHash]>,
    parent: NodeId,
    /// The place among the parent's children.
    place: u32,
    children: Vec<NodeId>,
    /// Ascending by slot.
    holders: SmallVec<[Holder; 2]>,
    /// Requests of all holders.
    requests: u32,
}

impl Node {
    fn new(run: Box<[SequenceHash]>, parent: NodeId, place: u32) -> Self {
        Self { run, parent, place, children: Vec::new(), holders: SmallVec::new(), requests: 0 }
    }

    /// One more request of `slot`; whether the blocks are new to it.
    fn join(&mut self, slot: u32) -> bool {
        self.requests += 1;
        match self.holders.binary_search_by_key(&slot, |holder| holder.slot) {
            Ok(at) => {
                self.holders[at].requests += 1;
                false
            }
            Err(at) => {
                self.holders.insert(at, Holder { slot, requests: 1 });
                true
            }
        }
    }

    /// One request of `slot` less; whether the blocks are gone from it.
    fn leave(&mut self, slot: u32) -> bool {
        self.requests -= 1;
        let Ok(at) = self.holders.binary_search_by_key(&slot, |holder| holder.slot) else { return false };
        self.holders[at].requests -= 1;
        let gone = self.holders[at].requests == 0;
        if gone {
            self.holders.remove(at);
        }
        gone
    }

    fn requests_of(&self, slot: u32) -> u32 {
        let found = self.holders.binary_search_by_key(&slot, |holder| holder.slot);
        found.map_or(0, |at| self.holders[at].requests)
    }
}

/// A prompt that was added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Added {
    /// Where it ends.
    pub(super) end: NodeId,
    /// Blocks that are new to the slot.
    pub(super) new_blocks: u64,
}

pub(super) struct PromptTrie {
    nodes: Vec<Node>,
    free: Vec<NodeId>,
    /// By parent and first block.
    starts: FxHashMap<(NodeId, SequenceHash), NodeId>,
    /// Pairs of slot and block.
    pairs: usize,
    /// Blocks, each once.
    blocks: usize,
}

impl Default for PromptTrie {
    fn default() -> Self {
        let root = Node::new(Box::default(), ROOT, 0);
        Self { nodes: vec![root], free: Vec::new(), starts: FxHashMap::default(), pairs: 0, blocks: 0 }
    }
}

impl PromptTrie {
    /// One more request of `slot` has these blocks.
    pub(super) fn add(&mut self, slot: u32, prompt: &[SequenceHash]) -> Added {
        let (mut end, mut depth, mut new_blocks) = (ROOT, 0, 0);
        while depth < prompt.len() {
            let rest = &prompt[depth..];
            end = match self.starts.get(&(end, rest[0])) {
                Some(&child) => {
                    let common = common(&self.nodes[child as usize].run, rest);
                    if common < self.nodes[child as usize].run.len() {
                        self.split(child, common)
                    } else {
                        child
                    }
                }
                None => self.grow(end, rest),
            };
            let node = &mut self.nodes[end as usize];
            depth += node.run.len();
            if node.join(slot) {
                new_blocks += node.run.len() as u64;
            }
        }
        self.pairs += new_blocks as usize;
        Added { end, new_blocks }
    }

    /// The request of `slot` that ended at `end` is over; returns how many blocks the slot has no more.
    pub(super) fn remove(&mut self, slot: u32, end: NodeId) -> u64 {
        let (mut at, mut gone) = (end, 0);
        // The lowest node that stays: only there may two nodes have become one.
        let mut kept = ROOT;
        while at != ROOT {
            let node = &mut self.nodes[at as usize];
            let parent = node.parent;
            if node.leave(slot) {
                gone += node.run.len() as u64;
            }
            if node.requests == 0 {
                self.cut(at);
            } else if kept == ROOT {
                kept = at;
            }
            at = parent;
        }
        self.pairs -= gone as usize;
        self.join_only_child(kept);
        gone
    }

    /// Sets `shared`, by slot index and zero before, to the number of leading blocks of the prompt that each slot has.
    pub(super) fn shared(&self, prompt: &[SequenceHash], shared: &mut [u32]) {
        let (mut at, mut depth) = (ROOT, 0);
        while depth < prompt.len() {
            let rest = &prompt[depth..];
            let Some(&child) = self.starts.get(&(at, rest[0])) else { return };
            let node = &self.nodes[child as usize];
            let common = common(&node.run, rest);
            depth += common;
            for holder in &node.holders {
                shared[holder.slot as usize] = depth as u32;
            }
            if common < node.run.len() {
                return;
            }
            at = child;
        }
    }

    /// Trailing blocks of the request of `slot` that ended at `end` which no other request of the slot has.
    pub(super) fn exclusive(&self, slot: u32, end: NodeId) -> u64 {
        let (mut at, mut blocks) = (end, 0);
        while at != ROOT && self.nodes[at as usize].requests_of(slot) == 1 {
            blocks += self.nodes[at as usize].run.len() as u64;
            at = self.nodes[at as usize].parent;
        }
        blocks
    }

    /// Pairs of slot and block.
    pub(super) fn pairs(&self) -> usize {
        self.pairs
    }

    /// Bytes on the heap, allocator overhead apart.
    pub(super) fn bytes(&self) -> usize {
        let entry = size_of::<((NodeId, SequenceHash), NodeId)>() + 1;
        self.blocks * size_of::<SequenceHash>()
            + self.nodes.capacity() * size_of::<Node>()
            + self.starts.capacity() * entry
    }

    fn take(&mut self, node: Node) -> NodeId {
        match self.free.pop() {
            Some(id) => {
                self.nodes[id as usize] = node;
                id
            }
            None => {
                self.nodes.push(node);
                self.nodes.len() as NodeId - 1
            }
        }
    }

    /// A new child with these blocks.
    fn grow(&mut self, parent: NodeId, run: &[SequenceHash]) -> NodeId {
        self.blocks += run.len();
        let place = self.nodes[parent as usize].children.len() as u32;
        let id = self.take(Node::new(run.into(), parent, place));
        self.nodes[parent as usize].children.push(id);
        self.starts.insert((parent, run[0]), id);
        id
    }

    /// Cuts a node in two, and returns the upper one, with `len` blocks. The lower one keeps the name, for prompts end
    /// there.
    fn split(&mut self, lower: NodeId, len: usize) -> NodeId {
        let node = &mut self.nodes[lower as usize];
        let (parent, place) = (node.parent, node.place);
        let (head, tail) = node.run.split_at(len);
        let (head, tail): (Box<[_]>, Box<[_]>) = (head.into(), tail.into());
        let (first, second) = (head[0], tail[0]);
        node.run = tail;
        node.place = 0;
        let mut upper = Node::new(head, parent, place);
        upper.holders = node.holders.clone();
        upper.requests = node.requests;
        upper.children.push(lower);
        let upper = self.take(upper);
        self.nodes[lower as usize].parent = upper;
        self.nodes[parent as usize].children[place as usize] = upper;
        self.starts.insert((parent, first), upper);
        self.starts.insert((upper, second), lower);
        upper
    }

    /// Takes out a node that nobody serves; its children went before.
    fn cut(&mut self, id: NodeId) {
        let node = &mut self.nodes[id as usize];
        let (parent, place, first) = (node.parent, node.place as usize, node.run[0]);
        self.blocks -= node.run.len();
        *node = Node::new(Box::default(), ROOT, 0);
        self.free.push(id);
        self.starts.remove(&(parent, first));
        let children = &mut self.nodes[parent as usize].children;
        children.swap_remove(place);
        if children.is_empty() {
            *children = Vec::new();
        }
        if let Some(&moved) = children.get(place) {
            self.nodes[moved as usize].place = place as u32;
        }
        if self.starts.capacity() > 4096 && self.starts.len() * 8 < self.starts.capacity() {
            self.starts.shrink_to(self.starts.len() * 2);
        }
    }

    /// Joins a node with its only child if no prompt ends between them. The child keeps its name.
    fn join_only_child(&mut self, upper: NodeId) {
        let node = &self.nodes[upper as usize];
        let &[lower] = &node.children[..] else { return };
        if upper == ROOT || self.nodes[lower as usize].requests != node.requests {
            return;
        }
        let (parent, place, first) = (node.parent, node.place, node.run[0]);
        let run = [&node.run[..], &self.nodes[lower as usize].run[..]].concat();
        self.starts.remove(&(upper, self.nodes[lower as usize].run[0]));
        let node = &mut self.nodes[lower as usize];
        (node.run, node.parent, node.place) = (run.into(), parent, place);
        self.nodes[upper as usize] = Node::new(Box::default(), ROOT, 0);
        self.free.push(upper);
        self.starts.insert((parent, first), lower);
        self.nodes[parent as usize].children[place as usize] = lower;
    }
}

/// Leading blocks that both have, of two that begin alike.
fn common(run: &[SequenceHash], rest: &[SequenceHash]) -> usize {
    let both = run.len().min(rest.len());
    if run[both - 1] == rest[both - 1] {
        return both;
    }
    // Invariant: equal at `known`, different at `unknown`.
    let (mut known, mut unknown) = (0, both - 1);
    while known + 1 < unknown {
        let probe = known + (unknown - known) / 2;
        if run[probe] == rest[probe] {
            known = probe;
        } else {
            unknown = probe;
        }
    }
    known + 1
}

#[cfg(test)]
mod tests;
