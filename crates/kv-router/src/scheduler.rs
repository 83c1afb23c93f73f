//! The router of one base model: its workers, what runs on them, and the choice for a new request.

use std::time::Instant;

use dynamo_engine_api::DpRank;
use dynamo_tokens::{BlockSize, SequenceHash};
use rand::{SeedableRng, rngs::SmallRng};

use crate::{
    ActiveSequences, Candidate, ConfigError, KvRouterConfig, MatchBuffer, NewRequest, PotentialLoads,
    ReservationId, SelectConfig, SelectError, SelectRequest, SelectScratch, Selection, SlotLoad,
    TooManyActive, WorkerId, WorkerRank, WorkerSlot, select,
};

/// A request that wants a worker.
#[derive(Clone, Copy, Debug, Default)]
pub struct ScheduleRequest<'a> {
    /// Sequence hashes of the prompt's whole blocks, first to last.
    pub prompt_blocks: &'a [SequenceHash],
    /// Tokens of the answer that the client expects, if it said so.
    pub expected_output_tokens: Option<u32>,
    /// Who may serve it.
    pub select: SelectRequest<'a>,
}

/// A worker that was chosen, and the request's place in its load.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reservation {
    /// For marking and freeing.
    pub id: ReservationId,
    /// The choice.
    pub selection: Selection,
}

/// Why a request got no worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// Nobody can serve it.
    #[error(transparent)]
    Select(#[from] SelectError),
    /// It could not be counted.
    #[error(transparent)]
    BookingFailed(#[from] TooManyActive),
}

/// What would be on a rank if a request went there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PotentialLoad {
    /// The rank.
    pub worker: WorkerRank,
    /// Prompt tokens to compute, the request's included.
    pub potential_prefill_tokens: u64,
    /// Blocks, the request's included.
    pub potential_decode_blocks: f64,
    /// Requests, without this one.
    pub active_requests: u32,
}

/// Workers, what runs on them, and the choice. Slots come from the [`crate::KvIndex`] of the same model, so that its
/// answers fit; where no index is kept, use one all the same to hand out slots.
pub struct KvScheduler {
    config: KvRouterConfig,
    block_size: BlockSize,
    candidates: Vec<Candidate>,
    epochs: Vec<(WorkerId, u64)>,
    active: ActiveSequences,
    loads: PotentialLoads,
    scratch: SelectScratch,
    rng: SmallRng,
}

impl KvScheduler {
    /// No workers yet. `seed` decides among equals.
    pub fn new(config: KvRouterConfig, block_size: BlockSize, seed: u64) -> Result<Self, ConfigError> {
        config.validate()?;
        Ok(Self {
            active: ActiveSequences::new(
                block_size,
                config.active_request_expiry,
                config.max_active_requests,
            ),
            config,
            block_size,
            candidates: Vec::new(),
            epochs: Vec::new(),
            loads: PotentialLoads::default(),
            scratch: SelectScratch::default(),
            rng: SmallRng::seed_from_u64(seed),
        })
    }

    /// Takes on a worker, or its changed record. A higher epoch drops what ran on the earlier incarnation; a lower one
    /// changes nothing and returns `false`. `slots` are the index's answer for the same worker.
    pub fn set_worker(
        &mut self,
        worker_id: WorkerId,
        epoch: u64,
        slots: &[WorkerSlot],
        draining: bool,
    ) -> bool {
        let known = self.epochs.iter().find(|(id, _)| *id == worker_id).map(|&(_, epoch)| epoch);
        if known.is_some_and(|known| known > epoch) {
            return false;
        }
        let same_incarnation = known == Some(epoch);
        let mut old = Vec::new();
        self.candidates.retain(|candidate| {
            let is_other = candidate.worker.worker_id != worker_id;
            if !is_other {
                old.push(*candidate);
            }
            is_other
        });
        for gone in &old {
            if !same_incarnation || slots.iter().all(|new| new.slot != gone.slot) {
                self.active.clear_slot(gone.slot);
            }
        }
        self.candidates.extend(slots.iter().map(|new| Candidate {
            slot: new.slot,
            worker: WorkerRank { worker_id, dp_rank: new.dp_rank },
            draining,
            overloaded: same_incarnation && old.iter().any(|old| old.slot == new.slot && old.overloaded),
        }));
        self.epochs.retain(|(id, _)| *id != worker_id);
        self.epochs.push((worker_id, epoch));
        true
    }

    /// Forgets a worker and what ran on it.
    pub fn remove_worker(&mut self, worker_id: WorkerId) {
        for candidate in self.candidates.iter().filter(|candidate| candidate.worker.worker_id == worker_id) {
            self.active.clear_slot(candidate.slot);
        }
        self.candidates.retain(|candidate| candidate.worker.worker_id != worker_id);
        self.epochs.retain(|(id, _)| *id != worker_id);
    }

    /// Marks a worker as leaving, or not: what runs there goes on, and nothing new comes.
    pub fn set_draining(&mut self, worker_id: WorkerId, draining: bool) {
        for candidate in &mut self.candidates {
            if candidate.worker.worker_id == worker_id {
                candidate.draining = draining;
            }
        }
    }

    /// Marks a rank as over a busy threshold, or not.
    pub fn set_overloaded(&mut self, worker: WorkerRank, overloaded: bool) {
        for candidate in &mut self.candidates {
            if candidate.worker == worker {
                candidate.overloaded = overloaded;
            }
        }
    }

    /// Chooses a worker and counts the request there, until [`Self::free`]. `matches` is the index's answer to the
    /// prompt's local hashes, or an empty one.
    pub fn choose_and_reserve(
        &mut self,
        request: &ScheduleRequest<'_>,
        matches: &MatchBuffer,
        now: Instant,
    ) -> Result<Reservation, ScheduleError> {
        let selection = self.choose(request, matches)?;
        let (prompt_blocks, private_blocks) = self.counted_blocks(request.prompt_blocks);
        let new = NewRequest {
            slot: selection.slot,
            prompt_blocks,
            private_blocks,
            prefill_tokens: self.new_tokens(request.select.isl_tokens, selection.overlap_blocks),
            expected_output_tokens: request.expected_output_tokens,
        };
        Ok(Reservation { id: self.active.add_request(&new, now)?, selection })
    }

    /// Chooses a worker and counts nothing.
    pub fn choose(
        &mut self,
        request: &ScheduleRequest<'_>,
        matches: &MatchBuffer,
    ) -> Result<Selection, SelectError> {
        self.project(request.prompt_blocks);
        let config = SelectConfig {
            block_size: self.block_size,
            overlap_score_weight: self.config.overlap_score_weight,
            temperature: self.config.temperature,
            track_active_blocks: self.config.track_active_blocks,
        };
        let Self { candidates, loads, scratch, rng, .. } = self;
        select(&request.select, candidates, matches, loads, &config, scratch, rng)
    }

    /// What would be on each rank if a request went there.
    pub fn potential_loads(
        &mut self,
        prompt_blocks: &[SequenceHash],
        isl_tokens: usize,
        matches: &MatchBuffer,
    ) -> Vec<PotentialLoad> {
        self.project(prompt_blocks);
        let of = |candidate: &Candidate| {
            let load = self.loads.get(candidate.slot).copied().unwrap_or_default();
            let cached = matches.device_blocks(candidate.slot) as usize * self.block_size.get();
            PotentialLoad {
                worker: candidate.worker,
                potential_prefill_tokens: load.prefill_tokens + isl_tokens.saturating_sub(cached) as u64,
                potential_decode_blocks: load.decode_blocks,
                active_requests: load.requests,
            }
        };
        self.candidates.iter().map(of).collect()
    }

    /// The first token came.
    pub fn mark_prefill_completed(&mut self, id: ReservationId, now: Instant) {
        self.active.mark_prefill_completed(id, now);
    }

    /// The answer grew by a block; counts only where output blocks are tracked, and is a sign of life in any case.
    pub fn add_output_block(&mut self, id: ReservationId, now: Instant) {
        if self.config.track_output_blocks {
            self.active.add_output_block(id, now);
        } else {
            self.active.touch(id, now);
        }
    }

    /// The request is over. Returns whether it was counted until now.
    pub fn free(&mut self, id: ReservationId) -> bool {
        self.active.free(id)
    }

    /// Drops requests that gave no sign of life for too long; returns how many. Call it every second or so.
    pub fn expire(&mut self, now: Instant) -> usize {
        self.active.expire(now)
    }

    /// Workers' ranks, as they can be chosen now.
    pub fn candidates(&self) -> &[Candidate] {
        &self.candidates
    }

    /// The ranks of a worker.
    pub fn ranks(&self, worker_id: WorkerId) -> impl Iterator<Item = DpRank> + '_ {
        let of_worker = move |candidate: &&Candidate| candidate.worker.worker_id == worker_id;
        self.candidates.iter().filter(of_worker).map(|candidate| candidate.worker.dp_rank)
    }

    /// What runs on each rank.
    pub fn worker_loads(&self) -> impl Iterator<Item = (WorkerRank, SlotLoad)> + '_ {
        self.candidates.iter().map(|candidate| (candidate.worker, self.active.load(candidate.slot)))
    }

    /// Requests that are counted now.
    pub fn active_requests(&self) -> usize {
        self.active.len()
    }

    /// Different (rank, block) pairs that are counted now.
    pub fn tracked_blocks(&self) -> usize {
        self.active.tracked_blocks()
    }

    /// Bytes of what is tracked, allocator overhead apart.
    pub fn tracked_bytes(&self) -> usize {
        self.active.bytes()
    }

    fn project(&mut self, prompt_blocks: &[SequenceHash]) {
        let (prompt_blocks, private_blocks) = self.counted_blocks(prompt_blocks);
        let slots = self.candidates.iter().map(|candidate| candidate.slot.index() + 1).max().unwrap_or(0);
        self.active.potential(prompt_blocks, private_blocks, slots, &mut self.loads);
    }

    fn new_tokens(&self, isl_tokens: usize, overlap_blocks: u32) -> u64 {
        isl_tokens.saturating_sub(overlap_blocks as usize * self.block_size.get()) as u64
    }

    fn counted_blocks<'a>(&self, prompt_blocks: &'a [SequenceHash]) -> (&'a [SequenceHash], u32) {
        match (self.config.track_active_blocks, self.config.assume_kv_reuse) {
            (false, _) => (&[], 0),
            (true, false) => (&[], prompt_blocks.len() as u32),
            (true, true) => (prompt_blocks, 0),
        }
    }
}

#[cfg(test)]
mod tests;
