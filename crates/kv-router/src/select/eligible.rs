//! Who may serve a request at all.

use super::{Candidate, SelectError, SelectRequest};
use crate::{WorkerId, WorkerRank};

/// Whether a candidate takes such a request, overload apart.
pub(crate) fn may_serve(request: &SelectRequest<'_>, candidate: &Candidate) -> bool {
    let WorkerRank { worker_id, dp_rank } = candidate.worker;
    let profile = &candidate.profile;
    !candidate.draining
        && request.pinned_worker.is_none_or(|pinned| pinned == worker_id)
        && request.pinned_rank.is_none_or(|pinned| pinned == dp_rank)
        && is_allowed(request, worker_id)
        && request.required_taints.iter().all(|taint| profile.taints.contains(taint))
        && request.adapter.is_none_or(|adapter| {
            profile.adapters.as_ref().is_none_or(|adapters| adapters.iter().any(|known| known == adapter))
        })
}

fn is_allowed(request: &SelectRequest<'_>, worker_id: WorkerId) -> bool {
    request.allowed.is_none_or(|allowed| allowed.contains(&worker_id))
        && !request.excluded.contains(&worker_id)
}

/// What keeps a request from all candidates.
pub(super) fn why_none(
    request: &SelectRequest<'_>,
    candidates: &[Candidate],
    overloaded: bool,
) -> SelectError {
    if let Some(pinned) = request.pinned_worker {
        let there = |candidate: &Candidate| {
            candidate.worker.worker_id == pinned
                && !candidate.draining
                && request.pinned_rank.is_none_or(|rank| rank == candidate.worker.dp_rank)
        };
        return if !is_allowed(request, pinned) {
            SelectError::PinnedWorkerNotAllowed(pinned)
        } else if overloaded {
            SelectError::PinnedWorkerOverloaded(pinned)
        } else if candidates.iter().any(there) {
            // It lacks a taint or the adapter.
            SelectError::PinnedWorkerNotAllowed(pinned)
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
