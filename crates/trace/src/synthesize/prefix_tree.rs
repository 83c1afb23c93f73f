//! The blocks that several prompts share, as a tree of stems.

use rustc_hash::FxHashMap;

use super::deck::Deck;
use crate::{mooncake::TraceRequest, rng::SplitMix};

/// The stem of no blocks that all prompts start from.
pub(super) const ROOT: usize = 0;
const NONE: u32 = u32::MAX;

/// Where a prompt goes on from a stem.
#[derive(Clone, Copy, Debug)]
pub(super) enum Outcome {
    /// To another one.
    Stem(u32),
    /// Nowhere that others go.
    End(Ending),
}

/// The end of a prompt, and its answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ending {
    /// Tokens after the shared blocks; not above 0 if it ends within the last of them.
    pub(super) tail: i64,
    /// Tokens of the answer.
    pub(super) output: u32,
}

struct Stem {
    blocks: u32,
    /// One card per prompt that came by, in their order.
    outcomes: Deck<Outcome>,
}

pub(super) struct PrefixTree {
    stems: Vec<Stem>,
    empty: bool,
}

/// Every different prefix; the first node is the empty one.
struct Nodes {
    by_step: FxHashMap<(u32, u64), u32>,
    visits: Vec<u32>,
    parents: Vec<u32>,
}

impl Nodes {
    fn of(requests: &[TraceRequest]) -> Self {
        let mut nodes = Self { by_step: FxHashMap::default(), visits: vec![0], parents: vec![0] };
        for request in requests {
            let mut at = 0;
            for id in &request.hash_ids {
                let new = nodes.visits.len() as u32;
                at = *nodes.by_step.entry((at, *id)).or_insert(new);
                if at == new {
                    nodes.visits.push(0);
                    nodes.parents.push(0);
                }
                nodes.visits[at as usize] += 1;
            }
        }
        for (&(parent, _), &node) in &nodes.by_step {
            nodes.parents[node as usize] = parent;
        }
        nodes
    }

    /// The nodes of a prompt that other prompts have, too.
    fn shared<'a>(&'a self, ids: &'a [u64]) -> impl Iterator<Item = u32> + 'a {
        ids.iter()
            .scan(0, |at, id| {
                *at = *self.by_step.get(&(*at, *id))?;
                Some(*at)
            })
            .take_while(|&node| self.visits[node as usize] > 1)
    }
}

impl PrefixTree {
    pub(super) fn of(requests: &[TraceRequest], block_size: u32, window: u32) -> Self {
        let nodes = Nodes::of(requests);
        let count = nodes.visits.len();
        let (mut children, mut endings) = (vec![0u32; count], vec![0u32; count]);
        for node in (1..count).filter(|node| nodes.visits[*node] > 1) {
            children[nodes.parents[node] as usize] += 1;
        }
        let prompts = || requests.iter().filter(|request| !request.hash_ids.is_empty());
        for request in prompts() {
            endings[nodes.shared(&request.hash_ids).last().unwrap_or(0) as usize] += 1;
        }
        // Parents come before children, so one pass joins what has no fork and no ending.
        let mut stems = vec![Stem { blocks: 0, outcomes: Deck::new(Vec::new(), window) }];
        let mut stem_of = vec![NONE; count];
        stem_of[0] = ROOT as u32;
        for node in (1..count).filter(|node| nodes.visits[*node] > 1) {
            let parent = nodes.parents[node] as usize;
            let goes_on = parent != 0 && children[parent] == 1 && endings[parent] == 0;
            let stem = if goes_on {
                stem_of[parent]
            } else {
                stems.push(Stem { blocks: 0, outcomes: Deck::new(Vec::new(), window) });
                stems.len() as u32 - 1
            };
            stems[stem as usize].blocks += 1;
            stem_of[node] = stem;
        }
        for (place, request) in (0..).zip(prompts()) {
            let (mut at, mut shared) = (ROOT as u32, 0i64);
            for node in nodes.shared(&request.hash_ids) {
                shared += 1;
                let stem = stem_of[node as usize];
                if stem != at {
                    stems[at as usize].outcomes.add(place, Outcome::Stem(stem));
                    at = stem;
                }
            }
            let tail = i64::from(request.input_length) - shared * i64::from(block_size);
            let ending = Ending { tail, output: request.output_length };
            stems[at as usize].outcomes.add(place, Outcome::End(ending));
        }
        Self { stems, empty: prompts().next().is_none() }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.empty
    }

    /// The length of each stem, the root's first.
    pub(super) fn stem_blocks(&self) -> impl Iterator<Item = u32> + '_ {
        self.stems.iter().map(|stem| stem.blocks)
    }

    /// Where the next prompt that comes by goes on.
    pub(super) fn draw(&mut self, stem: usize, rng: &mut SplitMix) -> Outcome {
        self.stems[stem].outcomes.draw(rng).expect("every stem was passed by a prompt that went on or ended")
    }
}
