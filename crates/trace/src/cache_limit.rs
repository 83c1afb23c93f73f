//! The most that prefix caching can give: what one cache of all workers' blocks would reach on a trace.
//!
//! The cache is least recently used, the deepest block of a prompt first: a prompt touches its blocks from the last to the
//! first, so its tail goes before its head. A hit is the leading run of blocks that are held. Only prompts count, in order.

use rustc_hash::FxHashMap;

/// The share of prompt blocks found, for prompts given as block ids in order. `capacity` is in blocks; `None` is unbounded.
pub fn cached_share<'a>(prompts: impl IntoIterator<Item = &'a [u64]>, capacity: Option<usize>) -> f64 {
    let mut cache = Lru::new(capacity.unwrap_or(usize::MAX));
    let (mut hits, mut blocks) = (0u64, 0u64);
    for prompt in prompts {
        blocks += prompt.len() as u64;
        hits += prompt.iter().take_while(|id| cache.holds(**id)).count() as u64;
        for id in prompt.iter().rev() {
            cache.touch(*id);
        }
        cache.trim();
    }
    if blocks == 0 { 0.0 } else { hits as f64 / blocks as f64 }
}

const NONE: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Node {
    id: u64,
    older: u32,
    newer: u32,
}

/// A hash map into a doubly linked list kept in one vector.
struct Lru {
    capacity: usize,
    slots: FxHashMap<u64, u32>,
    nodes: Vec<Node>,
    free: Vec<u32>,
    oldest: u32,
    newest: u32,
}

impl Lru {
    fn new(capacity: usize) -> Self {
        Self {
            capacity,
            slots: FxHashMap::default(),
            nodes: Vec::new(),
            free: Vec::new(),
            oldest: NONE,
            newest: NONE,
        }
    }

    fn holds(&self, id: u64) -> bool {
        self.slots.contains_key(&id)
    }

    fn touch(&mut self, id: u64) {
        let slot = match self.slots.get(&id) {
            Some(slot) => {
                let slot = *slot;
                self.unlink(slot);
                slot
            }
            None => {
                let node = Node { id, older: NONE, newer: NONE };
                let slot = match self.free.pop() {
                    Some(slot) => {
                        self.nodes[slot as usize] = node;
                        slot
                    }
                    None => {
                        self.nodes.push(node);
                        (self.nodes.len() - 1) as u32
                    }
                };
                self.slots.insert(id, slot);
                slot
            }
        };
        self.nodes[slot as usize].older = self.newest;
        self.nodes[slot as usize].newer = NONE;
        match self.newest {
            NONE => self.oldest = slot,
            newest => self.nodes[newest as usize].newer = slot,
        }
        self.newest = slot;
    }

    fn trim(&mut self) {
        while self.slots.len() > self.capacity {
            let slot = self.oldest;
            self.unlink(slot);
            self.slots.remove(&self.nodes[slot as usize].id);
            self.free.push(slot);
        }
    }

    fn unlink(&mut self, slot: u32) {
        let Node { older, newer, .. } = self.nodes[slot as usize];
        match older {
            NONE => self.oldest = newer,
            older => self.nodes[older as usize].newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            newer => self.nodes[newer as usize].older = older,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(prompts: &[&[u64]], capacity: Option<usize>) -> f64 {
        cached_share(prompts.iter().copied(), capacity)
    }

    #[test]
    fn a_hit_is_the_leading_run() {
        assert_eq!(share(&[&[1, 2, 3], &[1, 2, 4], &[9, 2, 3]], None), 2.0 / 9.0);
    }

    #[test]
    fn the_deepest_block_goes_first() {
        // Room for two: the second prompt's block 9 pushes out the tail 2, not the head 1.
        assert_eq!(share(&[&[1, 2], &[9], &[1, 2]], Some(2)), 1.0 / 5.0);
    }

    #[test]
    fn the_least_recently_used_goes_first() {
        assert_eq!(share(&[&[1], &[2], &[1], &[3], &[1], &[2]], Some(2)), 2.0 / 6.0);
    }

    #[test]
    fn no_blocks_hold_nothing() {
        assert_eq!(share(&[&[1], &[1]], Some(0)), 0.0);
        assert_eq!(share(&[], None), 0.0);
    }
}
