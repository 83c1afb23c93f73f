//! New traces with the statistics of a given one.
//!
//! The blocks that several prompts share make a tree; runs of it without a fork are one stem. A new prompt walks down from
//! the root and ends where old ones ended, with a tail of its own (fresh ids). Draws are without replacement: after as many
//! requests as the old trace has, every stem was walked exactly as often as there, so lengths and the share that an
//! unbounded cache serves are kept exactly and not just on average. (Independent draws would visit stems that were shared by
//! two prompts once, twice or never, and hit too often.) They are among requests that were near in the old order, so that prefixes
//! come back after about as long as they did, and bounded caches serve about as much, too. Longer traces walk the same tree again; give it more roots to
//! keep the sharing of a larger population.

mod deck;
mod prefix_tree;

use serde::Serialize;

use crate::{
    mooncake::TraceRequest,
    rng::{SplitMix, derive},
    turns::Turns,
};
use deck::Deck;
use prefix_tree::{Outcome, PrefixTree, ROOT};

/// Streams of the seed.
const WALK: u64 = 11;
const TIMES: u64 = 12;
/// Requests of the wrong length in a row after which there can be none of the right one.
const MAX_DROPPED_IN_A_ROW: u64 = 1_000_000;

/// How the new trace differs from the old one.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Synthesis {
    /// How many requests to make.
    pub num_requests: u64,
    /// Divides the time between requests.
    pub speedup_ratio: f64,
    /// Multiplies the length of shared prefixes.
    pub prefix_len_multiplier: f64,
    /// Copies of the whole tree, each with ids of its own; a request takes any.
    pub prefix_root_multiplier: u32,
    /// Multiplies the length of what is a prompt's own.
    pub prompt_len_multiplier: f64,
    /// Multiplies the length of answers.
    pub osl_multiplier: f64,
    /// Prompts with more tokens are drawn again.
    pub max_isl: Option<u32>,
    /// Prompts with fewer tokens are drawn again.
    pub min_isl: Option<u32>,
    /// Longer answers are cut to this.
    pub max_osl: Option<u32>,
    /// Shorter answers are lengthened to this.
    pub min_osl: Option<u32>,
    /// Each draw is among requests less than so many apart in the old order: 1 keeps the order, [`u32::MAX`] draws among all.
    pub window: u32,
    /// Tokens of a block, of the old trace and of the new one.
    pub block_size: u32,
    /// Equal seeds give equal traces.
    pub seed: u64,
}

/// A new request, and what of its prompt others may share.
#[derive(Clone, Debug, PartialEq)]
pub struct SynthesizedRequest {
    /// The request.
    pub request: TraceRequest,
    /// Leading tokens that come from the tree.
    pub context_len: u32,
    /// The others.
    pub unique_user_prompt_len: u32,
}

/// Why there is no new trace.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SynthesisError {
    /// No request has a block.
    #[error("no request of the trace has hash_ids: there is nothing to learn from")]
    NoBlocks,
    /// Lengths and blocks do not fit.
    #[error(
        "a request of {tokens} tokens has {blocks} hash_ids, which are not blocks of {block_size} tokens: give the trace's \
         block size with --block-size (`dynamo trace validate` finds it)"
    )]
    BlockSize {
        /// Its prompt.
        tokens: u32,
        /// Its hash ids.
        blocks: usize,
        /// As given.
        block_size: u32,
    },
    /// Not one of many draws was between the limits.
    #[error("no prompt has between {min} and {max} tokens: widen --min-isl and --max-isl")]
    NoneFits {
        /// The lower limit.
        min: u32,
        /// The upper limit.
        max: u32,
    },
}

/// What was learned of a trace.
pub struct Synthesizer {
    tree: PrefixTree,
    /// Requests at one time.
    crowds: Deck<u32>,
    /// Milliseconds from one time to the next.
    gaps: Deck<f64>,
    synthesis: Synthesis,
    /// By stem: its first id in the first copy, and its blocks.
    stems: Vec<(u64, u64)>,
    copy_ids: u64,
}

impl Synthesizer {
    /// Learns from requests in order of time.
    ///
    /// # Errors
    /// If there is nothing to learn, or the block size is wrong.
    pub fn new(requests: &[TraceRequest], synthesis: Synthesis) -> Result<Self, SynthesisError> {
        let block_size = synthesis.block_size;
        for request in requests.iter().filter(|request| !request.hash_ids.is_empty()) {
            let (tokens, blocks) = (request.input_length, request.hash_ids.len());
            if tokens.div_ceil(block_size) as usize != blocks {
                return Err(SynthesisError::BlockSize { tokens, blocks, block_size });
            }
        }
        let tree = PrefixTree::of(requests, block_size, synthesis.window);
        if tree.is_empty() {
            return Err(SynthesisError::NoBlocks);
        }
        let mut copy_ids = 0;
        let stems = tree.stem_blocks().enumerate().map(|(stem, blocks)| {
            let stretched = (f64::from(blocks) * synthesis.prefix_len_multiplier).round() as u64;
            let blocks = if stem == ROOT { 0 } else { stretched.max(1) };
            copy_ids += blocks;
            (copy_ids - blocks, blocks)
        });
        let stems = stems.collect();
        let (crowds, gaps) = times(requests, synthesis.window);
        Ok(Self { tree, crowds, gaps, synthesis, stems, copy_ids })
    }

    /// Makes the requests in order of time.
    ///
    /// # Errors
    /// Whatever `sink` fails with, or [`SynthesisError::NoneFits`].
    pub fn run<E: From<SynthesisError>>(
        mut self,
        mut sink: impl FnMut(SynthesizedRequest) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut walk = SplitMix::new(derive(self.synthesis.seed, WALK, 0));
        let mut times = SplitMix::new(derive(self.synthesis.seed, TIMES, 0));
        let mut fresh = self.copy_ids * u64::from(self.synthesis.prefix_root_multiplier.max(1));
        let mut time = 0.0;
        let mut crowd = self.crowds.draw(&mut times).unwrap_or(1);
        for _ in 0..self.synthesis.num_requests {
            if crowd == 0 {
                time += self.gaps.draw(&mut times).unwrap_or(0.0) / self.synthesis.speedup_ratio;
                crowd = self.crowds.draw(&mut times).unwrap_or(1);
            }
            crowd = crowd.saturating_sub(1);
            let mut made = self.draw(&mut walk, &mut fresh)?;
            made.request.timestamp = Some(f64::round(time));
            sink(made)?;
        }
        Ok(())
    }

    fn draw(&mut self, rng: &mut SplitMix, fresh: &mut u64) -> Result<SynthesizedRequest, SynthesisError> {
        let (min, max) = (self.synthesis.min_isl.unwrap_or(1), self.synthesis.max_isl.unwrap_or(u32::MAX));
        for _ in 0..MAX_DROPPED_IN_A_ROW {
            let made = self.draw_any(rng, fresh);
            if (min..=max).contains(&made.request.input_length) {
                return Ok(made);
            }
        }
        Err(SynthesisError::NoneFits { min, max })
    }

    fn draw_any(&mut self, rng: &mut SplitMix, fresh: &mut u64) -> SynthesizedRequest {
        let Synthesis { prefix_root_multiplier, prompt_len_multiplier, osl_multiplier, .. } = self.synthesis;
        let block_size = u64::from(self.synthesis.block_size);
        let copy = rng.below(u64::from(prefix_root_multiplier.max(1))) * self.copy_ids;
        let mut ids = Vec::new();
        let mut stem = ROOT;
        let ending = loop {
            let (first, blocks) = self.stems[stem];
            ids.extend((first + copy)..(first + copy + blocks));
            match self.tree.draw(stem, rng) {
                Outcome::Stem(next) => stem = next as usize,
                Outcome::End(ending) => break ending,
            }
        };
        let shared = ids.len() as u64 * block_size;
        let input = if ending.tail > 0 {
            let tail = ((ending.tail as f64 * prompt_len_multiplier).round() as u64).max(1);
            let blocks = tail.div_ceil(block_size);
            ids.extend(*fresh..*fresh + blocks);
            *fresh += blocks;
            shared + tail
        } else {
            // It ended within its last shared block.
            shared.saturating_add_signed(ending.tail)
        };
        let input = u32::try_from(input).unwrap_or(u32::MAX);
        let context = u32::try_from(shared).unwrap_or(u32::MAX).min(input);
        let output = (f64::from(ending.output) * osl_multiplier).round() as u32;
        let (least, most) = (self.synthesis.min_osl.unwrap_or(1), self.synthesis.max_osl.unwrap_or(u32::MAX));
        SynthesizedRequest {
            request: TraceRequest {
                input_length: input,
                output_length: output.max(least).min(most).max(1),
                hash_ids: ids,
                ..TraceRequest::default()
            },
            context_len: context,
            unique_user_prompt_len: input - context,
        }
    }
}

/// How many requests came at each time, and how far apart the times were.
fn times(requests: &[TraceRequest], window: u32) -> (Deck<u32>, Deck<f64>) {
    let turns = Turns::of(requests);
    let (mut crowds, mut gaps) = (Vec::new(), Vec::new());
    let mut last: Option<f64> = None;
    for request in requests.iter().filter(|request| request.timestamp.is_some()) {
        let time = turns.due(request).as_secs_f64() * 1e3;
        match (last, crowds.last_mut()) {
            (Some(last), Some(crowd)) if last == time => *crowd += 1,
            (last, _) => {
                gaps.extend(last.map(|last| (time - last).max(0.0)));
                crowds.push(1);
            }
        }
        last = Some(time);
    }
    (Deck::new(crowds, window), Deck::new(gaps, window))
}

#[cfg(test)]
mod tests;
