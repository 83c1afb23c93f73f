//! The choice of a worker: a pure function of request, index answer, loads, settings and random numbers.

use dynamo_engine_api::DpRank;
use dynamo_tokens::BlockSize;
use rand::Rng;

use crate::{MatchBuffer, PotentialLoads, Slot, WorkerId, WorkerRank};

/// A rank of a worker that a request could go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its slot.
    pub slot: Slot,
    /// Who it is.
    pub worker: WorkerRank,
    /// Leaving: takes no new requests.
    pub draining: bool,
    /// Over a busy threshold: takes no new requests.
    pub overloaded: bool,
}

/// Who may serve a request, and how to choose for it.
#[derive(Clone, Copy, Debug, Default)]
pub struct SelectRequest<'a> {
    /// Tokens of the prompt.
    pub isl_tokens: usize,
    /// The only worker that may serve it.
    pub pinned_worker: Option<WorkerId>,
    /// The only rank that may serve it, of the pinned worker or of any.
    pub pinned_rank: Option<DpRank>,
    /// Workers that may serve it; absent: all.
    pub allowed: Option<&'a [WorkerId]>,
    /// Workers that may not, because they just failed it.
    pub excluded: &'a [WorkerId],
    /// Instead of the configured weight.
    pub overlap_score_weight: Option<f64>,
    /// Instead of the configured temperature.
    pub temperature: Option<f64>,
}

/// The settings of the choice.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SelectConfig {
    /// Tokens per block.
    pub block_size: BlockSize,
    /// See [`crate::KvRouterConfig::overlap_score_weight`].
    pub overlap_score_weight: f64,
    /// See [`crate::KvRouterConfig::temperature`].
    pub temperature: f64,
    /// Whether the loads know blocks; if not, the prefill stands in for them.
    pub track_active_blocks: bool,
}

/// The chosen worker, and why.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Selection {
    /// Its slot.
    pub slot: Slot,
    /// Who it is.
    pub worker: WorkerRank,
    /// Leading blocks of the prompt that it holds in device memory, by the index.
    pub overlap_blocks: u32,
    /// The longest run that any candidate holds.
    pub best_overlap_blocks: u32,
    /// The cost, in blocks.
    pub cost: f64,
}

/// Why nobody was chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectError {
    /// There is no worker, or all are leaving.
    #[error("no worker is there")]
    NoEndpoints,
    /// Those that may serve it are all over a busy threshold.
    #[error("all workers that may serve the request are overloaded")]
    AllEligibleWorkersOverloaded,
    /// The pinned one is over a busy threshold.
    #[error("the pinned worker {0} is overloaded")]
    PinnedWorkerOverloaded(WorkerId),
    /// The pinned one is not among the allowed ones, or just failed the request.
    #[error("the pinned worker {0} is not allowed to serve the request")]
    PinnedWorkerNotAllowed(WorkerId),
    /// The pinned one, or its rank, is not there or is leaving.
    #[error("the pinned worker {worker_id} is not there, or not with rank {dp_rank:?}")]
    PinnedWorkerNotFound {
        /// The worker.
        worker_id: WorkerId,
        /// The rank, if one was pinned.
        dp_rank: Option<DpRank>,
    },
    /// There are workers, but none that may serve it.
    #[error("no worker passes the filters of the request")]
    AllEligibleWorkersFiltered,
}

/// Working memory of [`select`]; keep it and use it again, then a choice allocates nothing.
#[derive(Clone, Debug, Default)]
pub struct SelectScratch {
    /// By slot index: the slot that was matched, and its blocks.
    overlaps: Vec<(Option<Slot>, u32)>,
    scored: Vec<Scored>,
}

#[derive(Clone, Copy, Debug)]
struct Scored {
    candidate: Candidate,
    overlap_blocks: u32,
    cost: f64,
}

/// Chooses a candidate. The cost of one, in blocks:
///
/// `weight · prefill + decode`, where `prefill = (active prefill tokens + max(0, isl − overlap · block size)) / block
/// size` and `decode` is the blocks active there with the request's own. At temperature 0 the lowest cost wins, among
/// equals who caches the fewest blocks, among those any. At temperature T a candidate of cost c is drawn with
/// probability ∝ `exp(−(c − min) / ((max − min) · T))`.
pub fn select(
    request: &SelectRequest<'_>,
    candidates: &[Candidate],
    matches: &MatchBuffer,
    loads: &PotentialLoads,
    config: &SelectConfig,
    scratch: &mut SelectScratch,
    rng: &mut impl Rng,
) -> Result<Selection, SelectError> {
    let weight = request.overlap_score_weight.unwrap_or(config.overlap_score_weight);
    let SelectScratch { overlaps, scored } = scratch;
    overlaps.clear();
    let indices = candidates.iter().map(|candidate| candidate.slot.index());
    overlaps.resize(indices.max().map_or(0, |highest| highest + 1), (None, 0));
    for found in matches.matches() {
        if let Some(entry) = overlaps.get_mut(found.slot.index()) {
            *entry = (Some(found.slot), found.device_blocks);
        }
    }
    scored.clear();
    let mut overloaded = false;
    for &candidate in candidates {
        if !may_serve(request, &candidate) {
            continue;
        }
        if candidate.overloaded {
            overloaded = true;
            continue;
        }
        let overlap_blocks = match overlaps[candidate.slot.index()] {
            (Some(slot), blocks) if slot == candidate.slot => blocks,
            _ => 0,
        };
        let cost = cost(request.isl_tokens, overlap_blocks, candidate.slot, loads, weight, config);
        scored.push(Scored { candidate, overlap_blocks, cost });
    }
    let temperature = request.temperature.unwrap_or(config.temperature);
    let chosen =
        if temperature > 0.0 { draw(scored, temperature, rng) } else { cheapest(scored, matches, rng) };
    let best_overlap_blocks = scored.iter().map(|scored| scored.overlap_blocks).max().unwrap_or(0);
    chosen.ok_or_else(|| why_none(request, candidates, overloaded)).map(|chosen| Selection {
        slot: chosen.candidate.slot,
        worker: chosen.candidate.worker,
        overlap_blocks: chosen.overlap_blocks,
        best_overlap_blocks,
        cost: chosen.cost,
    })
}

fn may_serve(request: &SelectRequest<'_>, candidate: &Candidate) -> bool {
    let WorkerRank { worker_id, dp_rank } = candidate.worker;
    !candidate.draining
        && request.pinned_worker.is_none_or(|pinned| pinned == worker_id)
        && request.pinned_rank.is_none_or(|pinned| pinned == dp_rank)
        && is_allowed(request, worker_id)
}

fn is_allowed(request: &SelectRequest<'_>, worker_id: WorkerId) -> bool {
    request.allowed.is_none_or(|allowed| allowed.contains(&worker_id))
        && !request.excluded.contains(&worker_id)
}

fn why_none(request: &SelectRequest<'_>, candidates: &[Candidate], overloaded: bool) -> SelectError {
    if let Some(pinned) = request.pinned_worker {
        return if !is_allowed(request, pinned) {
            SelectError::PinnedWorkerNotAllowed(pinned)
        } else if overloaded {
            SelectError::PinnedWorkerOverloaded(pinned)
        } else {
            SelectError::PinnedWorkerNotFound { worker_id: pinned, dp_rank: request.pinned_rank }
        };
    }
    if candidates.iter().all(|candidate| candidate.draining) {
        SelectError::NoEndpoints
    } else if overloaded {
        SelectError::AllEligibleWorkersOverloaded
    } else {
        SelectError::AllEligibleWorkersFiltered
    }
}

fn cost(
    isl_tokens: usize,
    overlap_blocks: u32,
    slot: Slot,
    loads: &PotentialLoads,
    weight: f64,
    config: &SelectConfig,
) -> f64 {
    let block_size = config.block_size.get();
    let load = loads.get(slot).copied().unwrap_or_default();
    let new_tokens = isl_tokens.saturating_sub(overlap_blocks as usize * block_size);
    let prefill = (load.prefill_tokens as f64 + new_tokens as f64) / block_size as f64;
    let decode = if config.track_active_blocks { load.decode_blocks } else { prefill.floor() };
    weight * prefill + decode
}

/// The best of all, in one pass: each further equal one takes the place with probability 1/n.
fn cheapest(scored: &[Scored], matches: &MatchBuffer, rng: &mut impl Rng) -> Option<Scored> {
    let mut best: Option<(Scored, u32)> = None;
    let mut equal = 0u32;
    for &scored in scored {
        let held = matches.held_blocks(scored.candidate.slot);
        let order = best.map_or(std::cmp::Ordering::Less, |(best, best_held)| {
            scored.cost.total_cmp(&best.cost).then(held.cmp(&best_held))
        });
        equal = match order {
            std::cmp::Ordering::Less => 1,
            std::cmp::Ordering::Equal => equal + 1,
            std::cmp::Ordering::Greater => continue,
        };
        if equal == 1 || rng.random_range(0..equal) == 0 {
            best = Some((scored, held));
        }
    }
    best.map(|(best, _)| best)
}

fn draw(scored: &[Scored], temperature: f64, rng: &mut impl Rng) -> Option<Scored> {
    let costs = || scored.iter().map(|scored| scored.cost);
    let min = costs().fold(f64::INFINITY, f64::min);
    let max = costs().fold(f64::NEG_INFINITY, f64::max);
    let spread = (max - min) * temperature;
    let weight = |cost: f64| if spread > 0.0 { (-(cost - min) / spread).exp() } else { 1.0 };
    let total: f64 = costs().map(weight).sum();
    let mut left = rng.random::<f64>() * total;
    for &scored in scored {
        left -= weight(scored.cost);
        if left <= 0.0 {
            return Some(scored);
        }
    }
    // Rounding may leave a trace of the sum.
    scored.last().copied()
}

#[cfg(test)]
mod tests;
