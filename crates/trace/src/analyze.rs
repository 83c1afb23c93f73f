//! What a trace is like: lengths, rates, and how much of its prompts a cache could serve.

mod page;
mod table;

use rustc_hash::FxHashMap;
use serde::Serialize;

use crate::{cache_limit::cached_share, mooncake::TraceRequest, summary::Summary, turns::Turns};

pub(crate) use page::page;
pub(crate) use table::table;

/// Points of the curves over time: enough for a screen's width.
const TIME_BINS: usize = 120;
/// Sizes of the histograms.
const LENGTH_BINS: usize = 60;
/// First blocks that are listed with their shares.
const LISTED_FIRST_BLOCKS: usize = 5;
/// Cache sizes tried when none are given: so many halvings of all distinct blocks.
const HALVINGS: u32 = 7;

/// What a trace is like. Lengths are in tokens, blocks are the trace's.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Analysis {
    /// How many requests.
    pub requests: u64,
    /// How many sessions they belong to, if any.
    pub sessions: u64,
    /// From the first to the last timestamp.
    pub seconds: f64,
    /// Requests over that time.
    pub requests_per_second: f64,
    /// Tokens of all prompts.
    pub input_tokens: u64,
    /// Tokens of all answers.
    pub output_tokens: u64,
    /// Tokens of a block.
    pub block_size: u32,
    /// Blocks of all prompts.
    pub blocks: u64,
    /// Different ones.
    pub distinct_blocks: u64,
    /// Different ones that more than one prompt has.
    pub shared_blocks: u64,
    /// Prompts.
    pub input_length: Summary,
    /// Their leading tokens that other prompts have, too.
    pub context_length: Summary,
    /// The rest.
    pub unique_prompt_length: Summary,
    /// Answers.
    pub output_length: Summary,
    /// Per prompt: the share of its blocks that an unbounded cache has seen before (0 to 1).
    pub hit_rate: Summary,
    /// The share of all blocks that an unbounded cache has seen before.
    pub cached_share: f64,
    /// The same for caches of so many blocks (least recently used, deepest block first).
    pub cached_share_by_blocks: Vec<(usize, f64)>,
    /// The commonest first blocks, and the share of prompts that begin with them.
    pub first_blocks: Vec<(u64, f64)>,
    /// Over time: seconds, requests a second, and the share of blocks that an unbounded cache has seen before.
    pub over_time: Vec<(f64, f64, f64)>,
    /// Histogram of prompt lengths: the upper end, and how many.
    pub input_histogram: Vec<(f64, u64)>,
    /// Histogram of answer lengths.
    pub output_histogram: Vec<(f64, u64)>,
}

/// Analyses a trace in order of time. `cache_blocks` are the cache sizes to try; none for a ladder that ends at all blocks.
#[must_use]
pub fn analyze(requests: &[TraceRequest], block_size: u32, cache_blocks: &[usize]) -> Analysis {
    let mut visits: FxHashMap<u64, u32> = FxHashMap::default();
    for id in requests.iter().flat_map(|request| &request.hash_ids) {
        *visits.entry(*id).or_default() += 1;
    }
    let turns = Turns::of(requests);
    let last = requests.iter().map(|request| turns.due(request).as_secs_f64()).fold(0.0, f64::max);
    let bin_seconds = (last / TIME_BINS as f64).max(1e-3);
    let mut bins = vec![(0u64, 0u64, 0u64); (last / bin_seconds) as usize + 1];
    let mut seen = rustc_hash::FxHashSet::default();
    let (mut context, mut unique, mut rates) = (Vec::new(), Vec::new(), Vec::new());
    let (mut blocks, mut hits) = (0u64, 0u64);
    let mut first: FxHashMap<u64, u64> = FxHashMap::default();
    for request in requests {
        let ids = &request.hash_ids;
        let shared = ids.iter().take_while(|id| visits[id] > 1).count() as u64;
        let shared_tokens = (shared * u64::from(block_size)).min(u64::from(request.input_length));
        context.push(shared_tokens as f64);
        unique.push((u64::from(request.input_length) - shared_tokens) as f64);
        let hit = ids.iter().take_while(|id| seen.contains(*id)).count() as u64;
        seen.extend(ids.iter().copied());
        rates.push(hit as f64 / ids.len().max(1) as f64);
        blocks += ids.len() as u64;
        hits += hit;
        let bin = &mut bins[(turns.due(request).as_secs_f64() / bin_seconds) as usize];
        *bin = (bin.0 + 1, bin.1 + ids.len() as u64, bin.2 + hit);
        if let Some(id) = ids.first() {
            *first.entry(*id).or_default() += 1;
        }
    }
    let mut first: Vec<(u64, u64)> = first.into_iter().collect();
    first.sort_by_key(|&(id, count)| (std::cmp::Reverse(count), id));
    let mut inputs: Vec<f64> = requests.iter().map(|request| f64::from(request.input_length)).collect();
    let mut outputs: Vec<f64> = requests.iter().map(|request| f64::from(request.output_length)).collect();
    let sizes = if cache_blocks.is_empty() { ladder(visits.len()) } else { cache_blocks.to_vec() };
    let prompts = || requests.iter().map(|request| request.hash_ids.as_slice());
    let count = requests.len().max(1) as f64;
    let sessions = requests.iter().filter_map(|request| request.session_id.as_deref());
    Analysis {
        requests: requests.len() as u64,
        sessions: sessions.collect::<rustc_hash::FxHashSet<_>>().len() as u64,
        seconds: last,
        requests_per_second: if last > 0.0 { requests.len() as f64 / last } else { 0.0 },
        input_tokens: inputs.iter().sum::<f64>() as u64,
        output_tokens: outputs.iter().sum::<f64>() as u64,
        block_size,
        blocks,
        distinct_blocks: visits.len() as u64,
        shared_blocks: visits.values().filter(|visits| **visits > 1).count() as u64,
        input_histogram: histogram(&inputs),
        output_histogram: histogram(&outputs),
        input_length: Summary::of(&mut inputs),
        context_length: Summary::of(&mut context),
        unique_prompt_length: Summary::of(&mut unique),
        output_length: Summary::of(&mut outputs),
        hit_rate: Summary::of(&mut rates),
        cached_share: hits as f64 / blocks.max(1) as f64,
        cached_share_by_blocks: sizes
            .into_iter()
            .map(|size| (size, cached_share(prompts(), Some(size))))
            .collect(),
        first_blocks: first
            .iter()
            .take(LISTED_FIRST_BLOCKS)
            .map(|&(id, requests)| (id, requests as f64 / count))
            .collect(),
        over_time: bins
            .iter()
            .enumerate()
            .map(|(bin, &(requests, blocks, hits))| {
                (bin as f64 * bin_seconds, requests as f64 / bin_seconds, hits as f64 / blocks.max(1) as f64)
            })
            .collect(),
    }
}

fn ladder(distinct: usize) -> Vec<usize> {
    (0..=HALVINGS).rev().map(|halvings| (distinct >> halvings).max(1)).collect()
}

fn histogram(values: &[f64]) -> Vec<(f64, u64)> {
    let max = values.iter().copied().fold(1.0, f64::max);
    let width = (max / LENGTH_BINS as f64).ceil();
    let mut bins = vec![0u64; (max / width) as usize + 1];
    for value in values {
        bins[(value / width) as usize] += 1;
    }
    bins.iter().enumerate().map(|(bin, count)| ((bin + 1) as f64 * width, *count)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(time: f64, input_length: u32, ids: &[u64]) -> TraceRequest {
        TraceRequest {
            timestamp: Some(time),
            input_length,
            output_length: 10,
            hash_ids: ids.to_vec(),
            ..TraceRequest::default()
        }
    }

    #[test]
    fn shared_and_unique_parts_of_prompts_are_told_apart() {
        let requests =
            [request(0.0, 250, &[1, 2, 3]), request(1000.0, 190, &[1, 4]), request(2000.0, 280, &[1, 2, 5])];
        let analysis = analyze(&requests, 100, &[2, 100]);
        assert_eq!((analysis.blocks, analysis.distinct_blocks, analysis.shared_blocks), (8, 5, 2));
        assert_eq!(analysis.context_length.mean, 500.0 / 3.0);
        assert_eq!(analysis.unique_prompt_length.min, 50.0);
        assert_eq!(analysis.cached_share, 3.0 / 8.0);
        assert_eq!(analysis.hit_rate.max, 2.0 / 3.0);
        assert_eq!(analysis.cached_share_by_blocks[1], (100, 3.0 / 8.0));
        assert!(analysis.cached_share_by_blocks[0].1 < 3.0 / 8.0);
        assert_eq!(analysis.first_blocks, [(1, 1.0)]);
        assert_eq!((analysis.seconds, analysis.requests_per_second), (2.0, 1.5));
        assert_eq!(analysis.input_histogram.iter().map(|bin| bin.1).sum::<u64>(), 3);
        assert_eq!(analysis.over_time.iter().filter(|bin| bin.1 > 0.0).count(), 3);
    }

    #[test]
    fn one_request_or_none_is_no_special_case() {
        assert_eq!(analyze(&[request(5.0, 1, &[7])], 512, &[]).cached_share, 0.0);
        assert_eq!(analyze(&[], 512, &[]).requests, 0);
    }
}
