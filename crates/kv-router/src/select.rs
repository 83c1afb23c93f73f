//! The choice of a worker: a pure function of request, index answer, loads, settings and random numbers.

mod balance;
mod cost;
mod eligible;
mod pick;
mod room;

use std::sync::Arc;

pub use balance::Balance;
pub use cost::{Overlap, SelectConfig};
use dynamo_engine_api::DpRank;
pub(crate) use eligible::may_serve;
use rand::Rng;

use crate::{MatchBuffer, PotentialLoads, RankLimits, RouterOverrides, Slot, SlotLoad, WorkerId, WorkerRank};

/// What a worker says of itself, as far as it matters for the choice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkerProfile {
    /// What each of its ranks can hold at once.
    pub limits: RankLimits,
    /// Labels that requests may ask for.
    pub taints: Vec<String>,
    /// Adapters that it serves; absent: all.
    pub adapters: Option<Vec<String>>,
}

/// A rank of a worker that a request could go to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Its slot.
    pub slot: Slot,
    /// Who it is.
    pub worker: WorkerRank,
    /// Leaving: takes no new requests.
    pub draining: bool,
    /// Over a busy threshold: takes no new requests.
    pub overloaded: bool,
    /// What its worker says of itself.
    pub profile: Arc<WorkerProfile>,
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
    /// Labels that its worker must have, all of them.
    pub required_taints: &'a [String],
    /// Labels that its worker should have, by weight: those that have some cost less.
    pub preferred_taints: &'a [(String, f64)],
    /// The adapter that it is for.
    pub adapter: Option<&'a str>,
    /// Settings of its own.
    pub overrides: RouterOverrides,
}

impl SelectRequest<'_> {
    /// Whether a candidate may serve it, overload apart.
    pub fn may_go_to(&self, candidate: &Candidate) -> bool {
        may_serve(self, candidate)
    }
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
    /// A cheaper one was passed over, because it was too far ahead of the others in load.
    pub balanced: bool,
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
    /// By slot index: the slot that was matched, and what it has.
    overlaps: Vec<(Option<Slot>, Overlap)>,
    scored: Vec<Scored>,
}

#[derive(Clone, Copy, Debug)]
struct Scored {
    /// Among the candidates.
    place: u32,
    slot: Slot,
    overlap: Overlap,
    load: SlotLoad,
    cost: f64,
}

/// Chooses a candidate.
///
/// Who may serve is found first: see [`SelectRequest`]. Then, of those that [`Balance`] leaves, at temperature 0 the one
/// with the lowest cost wins (see [`SelectConfig`]), among equals the one that caches the fewest blocks, among those any.
/// At temperature T a candidate of cost c is drawn with probability ∝ `exp(−(c − min) / ((max − min) · T))`.
pub fn select(
    request: &SelectRequest<'_>,
    candidates: &[Candidate],
    matches: &MatchBuffer,
    loads: &PotentialLoads,
    config: &SelectConfig,
    scratch: &mut SelectScratch,
    rng: &mut impl Rng,
) -> Result<Selection, SelectError> {
    let config = config.overridden(&request.overrides);
    let SelectScratch { overlaps, scored } = scratch;
    overlaps.clear();
    let indices = candidates.iter().map(|candidate| candidate.slot.index());
    overlaps.resize(indices.max().map_or(0, |highest| highest + 1), (None, Overlap::default()));
    for found in matches.matches() {
        if let Some(entry) = overlaps.get_mut(found.slot.index()) {
            *entry = (Some(found.slot), Overlap::of(found));
        }
    }
    for lower in matches.lower_tiers() {
        match overlaps.get_mut(lower.slot.index()) {
            Some((Some(slot), overlap)) if *slot == lower.slot => overlap.add_lower(lower),
            Some(entry @ (None, _)) => {
                let mut overlap = Overlap::default();
                overlap.add_lower(lower);
                *entry = (Some(lower.slot), overlap);
            }
            _ => {}
        }
    }
    scored.clear();
    let mut overloaded = false;
    for (place, candidate) in (0..).zip(candidates) {
        if !eligible::may_serve(request, candidate) {
            continue;
        }
        if candidate.overloaded {
            overloaded = true;
            continue;
        }
        let overlap = match overlaps[candidate.slot.index()] {
            (Some(slot), overlap) if slot == candidate.slot => overlap,
            _ => Overlap::default(),
        };
        let load = loads.get(candidate.slot).copied().unwrap_or_default();
        scored.push(Scored { place, slot: candidate.slot, overlap, load, cost: 0.0 });
    }
    if scored.is_empty() {
        return Err(eligible::why_none(request, candidates, overloaded));
    }
    cost::score(scored, request, candidates, matches, &config);
    let cheapest = scored.iter().map(|scored| scored.cost).fold(f64::INFINITY, f64::min);
    let best_overlap_blocks = scored.iter().map(|scored| scored.overlap.device).max().unwrap_or(0);
    if let Some(balance) = &config.balance {
        balance.retain(scored, request.isl_tokens, candidates, &config);
    }
    let balanced = scored.iter().all(|scored| scored.cost > cheapest);
    let chosen = if config.temperature > 0.0 {
        pick::draw(scored, config.temperature, rng)
    } else {
        pick::cheapest(scored, matches, rng)
    };
    chosen
        .map(|chosen| Selection {
            slot: chosen.slot,
            worker: candidates[chosen.place as usize].worker,
            overlap_blocks: chosen.overlap.device,
            best_overlap_blocks,
            cost: chosen.cost,
            balanced,
        })
        .ok_or(SelectError::AllEligibleWorkersFiltered)
}

#[cfg(test)]
mod tests;
