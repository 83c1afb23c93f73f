//! The ranks that there are, and who of them takes requests.

use std::sync::Arc;

use crate::{
    ActiveSequences, BusyThresholds, Candidate, QueueConfig, SelectRequest, Slot, WorkerId, WorkerProfile,
    WorkerRank, WorkerSlot, select::may_serve,
};

#[derive(Default)]
pub(super) struct Workers {
    candidates: Vec<Candidate>,
    epochs: Vec<(WorkerId, u64)>,
    /// Ranks that somebody called overloaded, whatever their load.
    marked: Vec<WorkerRank>,
}

impl Workers {
    pub(super) fn candidates(&self) -> &[Candidate] {
        &self.candidates
    }

    pub(super) fn of_mut(&mut self, worker_id: WorkerId) -> impl Iterator<Item = &mut Candidate> {
        self.candidates.iter_mut().filter(move |candidate| candidate.worker.worker_id == worker_id)
    }

    pub(super) fn slot(&self, worker: WorkerRank) -> Option<Slot> {
        self.candidates.iter().find(|candidate| candidate.worker == worker).map(|candidate| candidate.slot)
    }

    /// Takes on a worker or its changed record; returns the slots whose load is of an earlier incarnation or of a rank that
    /// is gone, or nothing if a later incarnation is known.
    pub(super) fn set(
        &mut self,
        worker_id: WorkerId,
        epoch: u64,
        slots: &[WorkerSlot],
        draining: bool,
    ) -> Option<Vec<Slot>> {
        let known = self.epochs.iter().find(|(id, _)| *id == worker_id).map(|&(_, epoch)| epoch);
        if known.is_some_and(|known| known > epoch) {
            return None;
        }
        let same_incarnation = known == Some(epoch);
        let old: Vec<Candidate> =
            self.candidates.extract_if(.., |candidate| candidate.worker.worker_id == worker_id).collect();
        let profile = match old.first() {
            Some(old) if same_incarnation => old.profile.clone(),
            _ => Arc::new(WorkerProfile::default()),
        };
        let stays = |old: &Candidate| same_incarnation && slots.iter().any(|new| new.slot == old.slot);
        let outdated = old.iter().filter(|old| !stays(old)).map(|old| old.slot).collect();
        self.marked.retain(|worker| {
            let is_rank = |new: &WorkerSlot| new.dp_rank == worker.dp_rank;
            worker.worker_id != worker_id || same_incarnation && slots.iter().any(is_rank)
        });
        self.candidates.extend(slots.iter().map(|new| {
            let worker = WorkerRank { worker_id, dp_rank: new.dp_rank };
            let overloaded = self.marked.contains(&worker);
            Candidate { slot: new.slot, worker, draining, overloaded, profile: profile.clone() }
        }));
        self.epochs.retain(|(id, _)| *id != worker_id);
        self.epochs.push((worker_id, epoch));
        Some(outdated)
    }

    /// Forgets a worker; returns its slots.
    pub(super) fn remove(&mut self, worker_id: WorkerId) -> Vec<Slot> {
        self.epochs.retain(|(id, _)| *id != worker_id);
        self.marked.retain(|worker| worker.worker_id != worker_id);
        let gone = self.candidates.extract_if(.., |candidate| candidate.worker.worker_id == worker_id);
        gone.map(|candidate| candidate.slot).collect()
    }

    pub(super) fn mark_overloaded(&mut self, worker: WorkerRank, overloaded: bool) {
        self.marked.retain(|marked| *marked != worker);
        if overloaded && self.slot(worker).is_some() {
            self.marked.push(worker);
        }
    }

    /// Finds out who is overloaded.
    pub(super) fn judge(&mut self, thresholds: &BusyThresholds, active: &ActiveSequences) {
        for candidate in &mut self.candidates {
            let is_busy = || {
                thresholds.is_set()
                    && thresholds.is_busy(&active.load(candidate.slot), &candidate.profile.limits)
            };
            candidate.overloaded = self.marked.contains(&candidate.worker) || is_busy();
        }
    }

    /// Who may serve a request.
    pub(super) fn eligible(&self, request: &SelectRequest<'_>) -> impl Iterator<Item = &Candidate> + Clone {
        self.candidates.iter().filter(|candidate| !candidate.overloaded && may_serve(request, candidate))
    }

    /// Whether there are some who may serve a request, and all have more than `steps` of their largest steps outstanding.
    pub(super) fn all_beyond(
        &self,
        request: &SelectRequest<'_>,
        steps: f64,
        active: &ActiveSequences,
    ) -> bool {
        let mut eligible = self.eligible(request).peekable();
        eligible.peek().is_some()
            && eligible.all(|candidate| {
                let step =
                    candidate.profile.limits.max_num_batched_tokens.unwrap_or(QueueConfig::UNKNOWN_STEP);
                active.load(candidate.slot).prefill_tokens as f64 > steps * step as f64
            })
    }
}
