//! Which slots serve a block of a prompt at the moment, and how many of their requests have it.
//!
//! One table over all slots. A sequence hash stands for a whole prefix, so a slot that has a block has all before it:
//! along a prompt, the holders only become fewer, and equal numbers mean equal holders. A query therefore looks at
//! ever smaller pieces of the prompt instead of every block.

use dynamo_tokens::SequenceHash;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

#[derive(Clone, Copy)]
struct Holder {
    slot: u32,
    requests: u32,
}

/// Ascending by slot.
type Holders = SmallVec<[Holder; 2]>;

#[derive(Default)]
pub(super) struct PromptBlocks {
    blocks: FxHashMap<SequenceHash, Holders>,
    pairs: usize,
}

impl PromptBlocks {
    /// One more request of `slot` has these blocks; returns how many are new to the slot.
    pub(super) fn add(&mut self, slot: u32, blocks: &[SequenceHash]) -> u64 {
        let mut new = 0;
        for block in blocks {
            let holders = self.blocks.entry(*block).or_default();
            match holders.binary_search_by_key(&slot, |holder| holder.slot) {
                Ok(at) => holders[at].requests += 1,
                Err(at) => {
                    holders.insert(at, Holder { slot, requests: 1 });
                    new += 1;
                }
            }
        }
        self.pairs += new as usize;
        new
    }

    /// One request less has these blocks; returns how many the slot has no more. Takes what `add` was given.
    pub(super) fn remove(&mut self, slot: u32, blocks: &[SequenceHash]) -> u64 {
        let mut gone = 0;
        for block in blocks {
            let Some(holders) = self.blocks.get_mut(block) else { continue };
            let Ok(at) = holders.binary_search_by_key(&slot, |holder| holder.slot) else { continue };
            holders[at].requests -= 1;
            if holders[at].requests == 0 {
                holders.remove(at);
                gone += 1;
                if holders.is_empty() {
                    self.blocks.remove(block);
                }
            }
        }
        self.pairs -= gone as usize;
        if self.blocks.capacity() > 4096 && self.blocks.len() * 8 < self.blocks.capacity() {
            self.blocks.shrink_to(self.blocks.len() * 2);
        }
        gone
    }

    /// Sets `shared`, by slot index and zero before, to the number of leading `blocks` that each slot has.
    pub(super) fn shared(&self, blocks: &[SequenceHash], shared: &mut [u32]) {
        let holders = |depth: usize| self.blocks.get(&blocks[depth]).map_or(&[][..], |holders| holders);
        let mut depth = 0;
        while depth < blocks.len() {
            let here = holders(depth);
            if here.is_empty() {
                return;
            }
            // `known` has the holders of `depth`; `unknown` has fewer, or is past the end.
            let (mut known, mut unknown) = (depth, blocks.len());
            let mut probe = blocks.len() - 1;
            while known + 1 < unknown {
                if holders(probe).len() == here.len() {
                    known = probe;
                } else {
                    unknown = probe;
                }
                probe = known + (unknown - known) / 2;
            }
            for holder in here {
                shared[holder.slot as usize] = known as u32 + 1;
            }
            depth = known + 1;
        }
    }

    pub(super) fn pairs(&self) -> usize {
        self.pairs
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn probing_equals_looking_at_every_block(
            prompts in prop::collection::vec((0..4u32, prop::collection::vec(0..2u64, 0..9)), 0..12),
            query in prop::collection::vec(0..2u64, 0..9),
            ended in prop::collection::vec(any::<bool>(), 12),
        ) {
            let hashes = |prompt: &[u64]| -> Vec<_> {
                (1..=prompt.len())
                    .map(|len| SequenceHash(prompt[..len].iter().fold(1, |hash, next| hash * 3 + next)))
                    .collect()
            };
            let mut blocks = PromptBlocks::default();
            for (slot, prompt) in &prompts {
                blocks.add(*slot, &hashes(prompt));
            }
            let mut alive = Vec::new();
            for ((slot, prompt), ended) in prompts.iter().zip(ended) {
                if ended {
                    blocks.remove(*slot, &hashes(prompt));
                } else {
                    alive.push((*slot, prompt));
                }
            }
            let mut shared = [0; 4];
            blocks.shared(&hashes(&query), &mut shared);
            for slot in 0..4 {
                let run = |prompt: &[u64]| prompt.iter().zip(&query).take_while(|(a, b)| a == b).count() as u32;
                let expected = alive.iter().filter(|(s, _)| *s == slot).map(|(_, prompt)| run(prompt)).max();
                prop_assert_eq!(shared[slot as usize], expected.unwrap_or(0));
            }
            for (slot, prompt) in alive {
                blocks.remove(slot, &hashes(prompt));
            }
            prop_assert_eq!((blocks.pairs(), blocks.blocks.len()), (0, 0));
        }
    }
}
