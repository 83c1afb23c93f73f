//! The router of one base model: its workers, what runs on them, and the choice for a new request.

mod loads;
mod workers;

use std::{sync::Arc, time::Instant};

use dynamo_engine_api::DpRank;
use dynamo_tokens::{BlockSize, SequenceHash};
pub use loads::PotentialLoad;
use rand::{SeedableRng, rngs::SmallRng};
use workers::Workers;

use crate::{
    ActiveSequences, BusyThresholds, Candidate, ClassId, ConfigError, KvRouterConfig, MatchBuffer,
    NewRequest, PotentialLoads, ReservationId, SelectConfig, SelectError, SelectRequest, SelectScratch,
    Selection, SlotLoad, TooManyActive, WorkerId, WorkerProfile, WorkerRank, WorkerSlot, select,
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

/// A request that has its worker already.
#[derive(Clone, Copy, Debug)]
pub struct WorkerBooking<'a> {
    /// Where it runs.
    pub worker: WorkerRank,
    /// Sequence hashes of the prompt's whole blocks, first to last.
    pub prompt_blocks: &'a [SequenceHash],
    /// Tokens of the prompt that the worker has to compute.
    pub prefill_tokens: u64,
    /// Tokens of the answer that the client expects, if it said so.
    pub expected_output_tokens: Option<u32>,
}

/// A worker that was chosen, and the request's place in its load.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reservation {
    /// For marking and freeing.
    pub id: ReservationId,
    /// The choice.
    pub selection: Selection,
    /// Prompt tokens that are counted until the first token comes.
    pub prefill_tokens: u64,
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

/// Workers, what runs on them, and the choice. Slots come from the [`crate::KvIndex`] of the same model, so that its
/// answers fit; where no index is kept, use one all the same to hand out slots.
pub struct KvScheduler {
    config: KvRouterConfig,
    select: SelectConfig,
    block_size: BlockSize,
    workers: Workers,
    active: ActiveSequences,
    loads: PotentialLoads,
    scratch: SelectScratch,
    rng: SmallRng,
    balanced_choices: u64,
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
                config.prefill_load_model,
            ),
            select: SelectConfig::new(&config, block_size),
            config,
            block_size,
            workers: Workers::default(),
            loads: PotentialLoads::default(),
            scratch: SelectScratch::default(),
            rng: SmallRng::seed_from_u64(seed),
            balanced_choices: 0,
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
        let Some(outdated) = self.workers.set(worker_id, epoch, slots, draining) else { return false };
        for slot in outdated {
            self.active.clear_slot(slot);
        }
        true
    }

    /// Says what a worker that was taken on says of itself.
    pub fn set_profile(&mut self, worker_id: WorkerId, profile: WorkerProfile) {
        let profile = Arc::new(profile);
        for candidate in self.workers.of_mut(worker_id) {
            candidate.profile = profile.clone();
        }
    }

    /// Forgets a worker and what ran on it.
    pub fn remove_worker(&mut self, worker_id: WorkerId) {
        for slot in self.workers.remove(worker_id) {
            self.active.clear_slot(slot);
        }
    }

    /// Marks a worker as leaving, or not: what runs there goes on, and nothing new comes.
    pub fn set_draining(&mut self, worker_id: WorkerId, draining: bool) {
        for candidate in self.workers.of_mut(worker_id) {
            candidate.draining = draining;
        }
    }

    /// Marks a rank as overloaded, or not, whatever its load.
    pub fn set_overloaded(&mut self, worker: WorkerRank, overloaded: bool) {
        self.workers.mark_overloaded(worker, overloaded);
    }

    /// Replaces the thresholds over which ranks take no more requests.
    pub fn set_busy_thresholds(&mut self, thresholds: BusyThresholds) -> Result<(), ConfigError> {
        thresholds.validate()?;
        self.config.busy = thresholds;
        Ok(())
    }

    /// The thresholds over which ranks take no more requests.
    pub fn busy_thresholds(&self) -> BusyThresholds {
        self.config.busy
    }

    /// Chooses a worker and counts the request there, until [`Self::free`]. `matches` is the index's answer to the
    /// prompt's local hashes, or an empty one.
    pub fn choose_and_reserve(
        &mut self,
        request: &ScheduleRequest<'_>,
        matches: &MatchBuffer,
        now: Instant,
    ) -> Result<Reservation, ScheduleError> {
        let selection = self.choose(request, matches, now)?;
        self.balanced_choices += u64::from(selection.balanced);
        let overrides = &request.select.overrides;
        let counts_tokens = overrides.track_prefill_tokens.unwrap_or(self.config.track_prefill_tokens);
        let cached = selection.overlap_blocks as usize * self.block_size.get();
        let new_tokens = request.select.isl_tokens.saturating_sub(cached) as u64;
        let prefill_tokens = if counts_tokens { new_tokens } else { 0 };
        let (prompt_blocks, private_blocks) =
            self.counted_blocks(request.prompt_blocks, overrides.assume_kv_reuse);
        let new = NewRequest {
            slot: selection.slot,
            prompt_blocks,
            private_blocks,
            prefill_tokens,
            expected_output_tokens: request.expected_output_tokens,
        };
        Ok(Reservation { id: self.active.add_request(&new, now)?, selection, prefill_tokens })
    }

    /// Counts a request on the worker that it has already; `None` if the worker is not known.
    pub fn book(
        &mut self,
        booking: &WorkerBooking<'_>,
        now: Instant,
    ) -> Result<Option<ReservationId>, TooManyActive> {
        let Some(slot) = self.workers.slot(booking.worker) else { return Ok(None) };
        let (prompt_blocks, private_blocks) = self.counted_blocks(booking.prompt_blocks, None);
        let new = NewRequest {
            slot,
            prompt_blocks,
            private_blocks,
            prefill_tokens: if self.config.track_prefill_tokens { booking.prefill_tokens } else { 0 },
            expected_output_tokens: booking.expected_output_tokens,
        };
        self.active.add_request(&new, now).map(Some)
    }

    /// Chooses a worker and counts nothing.
    pub fn choose(
        &mut self,
        request: &ScheduleRequest<'_>,
        matches: &MatchBuffer,
        now: Instant,
    ) -> Result<Selection, SelectError> {
        self.judge();
        self.project(request.prompt_blocks, request.select.overrides.assume_kv_reuse);
        self.active.take_computed_off(&mut self.loads, now);
        let Self { workers, loads, select: config, scratch, rng, .. } = self;
        select(&request.select, workers.candidates(), matches, loads, config, scratch, rng)
    }

    /// Whether a request of a class is to wait: a queue threshold is set, and every rank that may serve it has more prompt
    /// tokens outstanding than the threshold. Where none may serve it, waiting is of no use.
    pub fn must_wait(&mut self, request: &SelectRequest<'_>, class: ClassId) -> bool {
        self.config.queue.threshold_of(class).is_some_and(|steps| self.all_beyond(request, steps))
    }

    /// Whether there are ranks that may serve a request, and each has more prompt tokens outstanding than so many of its
    /// largest steps.
    pub fn all_beyond(&mut self, request: &SelectRequest<'_>, steps: f64) -> bool {
        self.judge();
        self.workers.all_beyond(request, steps, &self.active)
    }

    /// The ranks that may serve a request, whatever they have cached.
    pub fn eligible(&mut self, request: &SelectRequest<'_>) -> impl Iterator<Item = WorkerRank> + Clone {
        self.judge();
        self.workers.eligible(request).map(|candidate| candidate.worker)
    }

    /// As [`Self::eligible`], with what runs there.
    pub fn eligible_loads(
        &mut self,
        request: &SelectRequest<'_>,
    ) -> impl Iterator<Item = (WorkerRank, SlotLoad)> + Clone {
        self.judge();
        let active = &self.active;
        self.workers.eligible(request).map(move |candidate| (candidate.worker, active.load(candidate.slot)))
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
    pub fn free(&mut self, id: ReservationId, now: Instant) -> bool {
        self.active.free(id, now)
    }

    /// Drops requests that gave no sign of life for too long; returns how many. Call it every second or so.
    pub fn expire(&mut self, now: Instant) -> usize {
        self.active.expire(now)
    }

    /// Whether a request is counted.
    pub fn is_active(&self, id: ReservationId) -> bool {
        self.active.is_active(id)
    }

    /// Workers' ranks, as they were judged at the last choice.
    pub fn candidates(&self) -> &[Candidate] {
        self.workers.candidates()
    }

    /// The ranks of a worker.
    pub fn ranks(&self, worker_id: WorkerId) -> impl Iterator<Item = DpRank> + '_ {
        let of_worker = move |candidate: &&Candidate| candidate.worker.worker_id == worker_id;
        self.candidates().iter().filter(of_worker).map(|candidate| candidate.worker.dp_rank)
    }

    /// Requests so far that did not go to the cheapest rank, because it was too far ahead of the others in load.
    pub fn balanced_choices(&self) -> u64 {
        self.balanced_choices
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

    /// Finds out which ranks are over a busy threshold.
    fn judge(&mut self) {
        self.workers.judge(&self.config.busy, &self.active);
    }

    fn project(&mut self, prompt_blocks: &[SequenceHash], assume_kv_reuse: Option<bool>) {
        let (prompt_blocks, private_blocks) = self.counted_blocks(prompt_blocks, assume_kv_reuse);
        let slots = self.candidates().iter().map(|candidate| candidate.slot.index() + 1).max().unwrap_or(0);
        self.active.potential(prompt_blocks, private_blocks, slots, &mut self.loads);
    }

    fn counted_blocks<'a>(
        &self,
        prompt_blocks: &'a [SequenceHash],
        assume_kv_reuse: Option<bool>,
    ) -> (&'a [SequenceHash], u32) {
        let reuse = assume_kv_reuse.unwrap_or(self.config.assume_kv_reuse);
        match (self.config.track_active_blocks, reuse) {
            (false, _) => (&[], 0),
            (true, false) => (&[], prompt_blocks.len() as u32),
            (true, true) => (prompt_blocks, 0),
        }
    }
}

#[cfg(test)]
mod tests;
