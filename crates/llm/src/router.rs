//! Chooses a worker for each request of one model, and counts what runs where.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use dynamo_engine_api::DpRank;
use dynamo_kv_router::{
    Candidate, KvIndex, KvRouterConfig, KvScheduler, MatchBuffer, ReservationId, ScheduleError,
    ScheduleRequest, SelectError, SelectRequest, SlotLoad, WorkerRank,
};
use dynamo_tokens::{BlockSize, HashSeed, LocalBlockHash, SequenceHash, local_block_hashes, sequence_hashes};
use parking_lot::{Mutex, RwLock};
use rand::Rng;

use crate::GenerateError;

/// Scratch buffers kept for reuse; more are made when more requests route at the same instant, and dropped after.
const KEPT_SCRATCH: usize = 16;

/// How a worker is chosen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RouterMode {
    /// In turn.
    #[default]
    RoundRobin,
    /// Any.
    Random,
    /// By what workers have cached and what runs on them.
    Kv,
    /// As the request says, or not at all.
    Direct,
}

impl std::str::FromStr for RouterMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.to_ascii_lowercase().replace('_', "-").as_str() {
            "round-robin" => Ok(Self::RoundRobin),
            "random" => Ok(Self::Random),
            "kv" => Ok(Self::Kv),
            "direct" => Ok(Self::Direct),
            _ => Err("use round-robin, random, kv or direct".to_owned()),
        }
    }
}

impl std::fmt::Display for RouterMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::RoundRobin => "round-robin",
            Self::Random => "random",
            Self::Kv => "kv",
            Self::Direct => "direct",
        })
    }
}

/// How requests of all models are routed.
#[derive(Clone, Debug)]
pub struct RouterConfig {
    /// How a worker is chosen.
    pub mode: RouterMode,
    /// The settings of the KV mode; load is counted by them in all modes.
    pub kv: KvRouterConfig,
}

/// A worker of the model, as discovery and its card describe it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RoutedWorker {
    pub(crate) worker_id: u64,
    pub(crate) epoch: u64,
    pub(crate) first_rank: DpRank,
    pub(crate) ranks: u32,
    pub(crate) blocks_per_rank: Option<u32>,
    pub(crate) draining: bool,
}

/// What a request asks of the router.
pub(crate) struct RouteRequest<'a> {
    pub(crate) tokens: &'a [u32],
    pub(crate) seed: HashSeed,
    pub(crate) pinned_worker: Option<u64>,
    pub(crate) pinned_rank: Option<DpRank>,
    pub(crate) expected_output_tokens: Option<u32>,
    /// Workers that just refused it.
    pub(crate) excluded: &'a [u64],
}

/// Buffers of one decision, used again by the next.
#[derive(Default)]
struct Scratch {
    local: Vec<LocalBlockHash>,
    sequence: Vec<SequenceHash>,
    matches: MatchBuffer,
}

/// The router of one model. The index is under a lock of its own, so that a match does not wait for a choice.
pub(crate) struct Router {
    config: RouterConfig,
    block_size: BlockSize,
    index: RwLock<KvIndex>,
    scheduler: Mutex<KvScheduler>,
    turn: AtomicUsize,
    scratch: Mutex<Vec<Scratch>>,
}

impl Router {
    pub(crate) fn new(
        config: RouterConfig,
        block_size: BlockSize,
    ) -> Result<Self, dynamo_kv_router::ConfigError> {
        let seed = rand::rng().random();
        Ok(Self {
            scheduler: Mutex::new(KvScheduler::new(config.kv.clone(), block_size, seed)?),
            config,
            block_size,
            index: RwLock::new(KvIndex::default()),
            turn: AtomicUsize::new(0),
            scratch: Mutex::new(Vec::new()),
        })
    }

    /// Whether workers' KV events are of any use to it.
    pub(crate) fn wants_events(&self) -> bool {
        self.config.mode == RouterMode::Kv && self.config.kv.overlap_score_weight > 0.0
    }

    /// The index, for whoever applies events.
    pub(crate) fn index(&self) -> &RwLock<KvIndex> {
        &self.index
    }

    /// Takes on a worker or its changed record.
    pub(crate) fn set_worker(&self, worker: &RoutedWorker) {
        let ranks = worker.first_rank..worker.first_rank.saturating_add(worker.ranks.max(1));
        let slots =
            self.index.write().add_worker(worker.worker_id, worker.epoch, ranks, worker.blocks_per_rank);
        match slots {
            Ok(slots) => {
                self.scheduler.lock().set_worker(worker.worker_id, worker.epoch, &slots, worker.draining);
            }
            Err(error) => tracing::warn!(worker_id = worker.worker_id, %error, "worker is not routed to"),
        }
    }

    /// Forgets a worker.
    pub(crate) fn remove_worker(&self, worker_id: u64) {
        self.scheduler.lock().remove_worker(worker_id);
        self.index.write().remove_worker(worker_id);
    }

    /// Drops bookings that gave no sign of life for too long.
    pub(crate) fn expire(&self) -> usize {
        self.scheduler.lock().expire(Instant::now())
    }

    /// What runs on each rank.
    pub(crate) fn loads(&self) -> Vec<(WorkerRank, SlotLoad)> {
        self.scheduler.lock().worker_loads().collect()
    }

    /// Chooses a worker and books the request there.
    pub(crate) fn route(self: &Arc<Self>, request: &RouteRequest<'_>) -> Result<Booking, GenerateError> {
        let mut scratch = self.scratch.lock().pop().unwrap_or_default();
        let result = self.route_with(request, &mut scratch);
        let mut kept = self.scratch.lock();
        if kept.len() < KEPT_SCRATCH {
            kept.push(scratch);
        }
        result
    }

    fn route_with(
        self: &Arc<Self>,
        request: &RouteRequest<'_>,
        scratch: &mut Scratch,
    ) -> Result<Booking, GenerateError> {
        let Scratch { local, sequence, matches } = scratch;
        local.clear();
        sequence.clear();
        matches.clear();
        let kv = self.config.mode == RouterMode::Kv;
        if kv {
            local_block_hashes(request.tokens, self.block_size, request.seed, local);
            sequence_hashes(local, sequence);
            if self.wants_events() {
                self.index.read().find_matches(local, matches);
            }
        }
        let mut select = SelectRequest {
            isl_tokens: request.tokens.len(),
            pinned_worker: request.pinned_worker,
            pinned_rank: request.pinned_rank,
            excluded: request.excluded,
            ..SelectRequest::default()
        };
        let mut scheduler = self.scheduler.lock();
        if !kv && request.pinned_worker.is_none() {
            let chosen = self.next(scheduler.candidates(), request)?;
            select.pinned_worker = Some(chosen.worker_id);
            select.pinned_rank = Some(chosen.dp_rank);
        }
        let wanted = ScheduleRequest {
            prompt_blocks: sequence,
            expected_output_tokens: request.expected_output_tokens,
            select,
        };
        let reservation =
            scheduler.choose_and_reserve(&wanted, matches, Instant::now()).map_err(schedule_error)?;
        drop(scheduler);
        let selection = reservation.selection;
        Ok(Booking {
            router: self.clone(),
            id: Some(reservation.id),
            worker: selection.worker,
            overlap_blocks: selection.overlap_blocks,
            outputs: 0,
        })
    }

    /// The next one in turn, or any, as the mode says.
    fn next(
        &self,
        candidates: &[Candidate],
        request: &RouteRequest<'_>,
    ) -> Result<WorkerRank, GenerateError> {
        if self.config.mode == RouterMode::Direct {
            return Err(GenerateError::Invalid {
                param: Some("nvext.backend_instance_id"),
                message: "nvext.backend_instance_id: this server routes directly, so a request must name its worker"
                    .to_owned(),
            });
        }
        let may_serve = |candidate: &&Candidate| {
            !candidate.draining
                && !candidate.overloaded
                && !request.excluded.contains(&candidate.worker.worker_id)
                && request.pinned_rank.is_none_or(|rank| rank == candidate.worker.dp_rank)
        };
        let count = candidates.iter().filter(may_serve).count();
        if count == 0 {
            return Err(GenerateError::NoWorkers);
        }
        let place = match self.config.mode {
            RouterMode::Random => rand::rng().random_range(0..count),
            _ => self.turn.fetch_add(1, Ordering::Relaxed) % count,
        };
        // In the order of ids, so that turns do not depend on the order in which workers came.
        let mut eligible: Vec<WorkerRank> =
            candidates.iter().filter(may_serve).map(|candidate| candidate.worker).collect();
        eligible.sort_unstable_by_key(|worker| (worker.worker_id, worker.dp_rank));
        Ok(eligible[place])
    }
}

fn schedule_error(error: ScheduleError) -> GenerateError {
    match error {
        ScheduleError::Select(SelectError::NoEndpoints | SelectError::AllEligibleWorkersFiltered) => {
            GenerateError::NoWorkers
        }
        ScheduleError::Select(
            SelectError::AllEligibleWorkersOverloaded | SelectError::PinnedWorkerOverloaded(_),
        )
        | ScheduleError::BookingFailed(_) => GenerateError::Overloaded,
        ScheduleError::Select(
            error @ (SelectError::PinnedWorkerNotAllowed(_) | SelectError::PinnedWorkerNotFound { .. }),
        ) => {
            tracing::debug!(%error, "pinned worker");
            GenerateError::NoWorkers
        }
    }
}

/// A request's place in its worker's load; taken back when dropped.
pub(crate) struct Booking {
    router: Arc<Router>,
    id: Option<ReservationId>,
    worker: WorkerRank,
    overlap_blocks: u32,
    outputs: usize,
}

impl Booking {
    /// The worker and rank.
    pub(crate) fn worker(&self) -> (u64, DpRank) {
        (self.worker.worker_id, self.worker.dp_rank)
    }

    /// Leading blocks of the prompt that the worker is believed to hold.
    pub(crate) fn overlap_blocks(&self) -> u32 {
        self.overlap_blocks
    }

    /// The worker gave an output: the first one ends the prefill, and one in each block's worth is a sign of life.
    pub(crate) fn on_output(&mut self) {
        let Some(id) = self.id else { return };
        if self.outputs == 0 {
            self.router.scheduler.lock().mark_prefill_completed(id, Instant::now());
        } else if self.outputs.is_multiple_of(self.router.block_size.get()) {
            self.router.scheduler.lock().add_output_block(id, Instant::now());
        }
        self.outputs += 1;
    }

    /// The request is over.
    pub(crate) fn release(&mut self) {
        if let Some(id) = self.id.take() {
            self.router.scheduler.lock().free(id);
        }
    }
}

impl Drop for Booking {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn router(mode: RouterMode) -> Arc<Router> {
        let config = RouterConfig { mode, kv: KvRouterConfig::REFERENCE };
        let router = Arc::new(Router::new(config, BlockSize::new(4).unwrap()).unwrap());
        for worker_id in [7, 8, 9] {
            router.set_worker(&RoutedWorker {
                worker_id,
                epoch: 1,
                first_rank: 0,
                ranks: 1,
                blocks_per_rank: None,
                draining: false,
            });
        }
        router
    }

    fn request<'a>(tokens: &'a [u32], excluded: &'a [u64]) -> RouteRequest<'a> {
        RouteRequest {
            tokens,
            seed: HashSeed::PLAIN,
            pinned_worker: None,
            pinned_rank: None,
            expected_output_tokens: None,
            excluded,
        }
    }

    fn busy(router: &Router) -> u32 {
        router.loads().iter().map(|(_, load)| load.requests).sum()
    }

    #[test]
    fn round_robin_takes_turns_and_skips_who_refused() {
        let router = router(RouterMode::RoundRobin);
        let tokens = [1; 10];
        let chosen: Vec<u64> =
            (0..6).map(|_| router.route(&request(&tokens, &[])).unwrap().worker().0).collect();
        assert_eq!(chosen, [7, 8, 9, 7, 8, 9]);
        let chosen: Vec<u64> =
            (0..4).map(|_| router.route(&request(&tokens, &[8])).unwrap().worker().0).collect();
        assert!(!chosen.contains(&8), "{chosen:?}");
        assert!(matches!(router.route(&request(&tokens, &[7, 8, 9])), Err(GenerateError::NoWorkers)));
    }

    #[test]
    fn direct_needs_a_worker() {
        let router = router(RouterMode::Direct);
        let tokens = [1; 10];
        assert!(matches!(router.route(&request(&tokens, &[])), Err(GenerateError::Invalid { .. })));
        let pinned = RouteRequest { pinned_worker: Some(9), ..request(&tokens, &[]) };
        assert_eq!(router.route(&pinned).unwrap().worker(), (9, 0));
        let unknown = RouteRequest { pinned_worker: Some(10), ..request(&tokens, &[]) };
        assert!(matches!(router.route(&unknown), Err(GenerateError::NoWorkers)));
    }

    #[test]
    fn a_booking_counts_until_it_is_dropped() {
        let router = router(RouterMode::Kv);
        let tokens: Vec<u32> = (0..40).collect();
        let mut booking = router.route(&request(&tokens, &[])).unwrap();
        assert_eq!(busy(&router), 1);
        let load =
            |router: &Router| router.loads().into_iter().map(|(_, load)| load.prefill_tokens).sum::<u64>();
        assert_eq!(load(&router), 40);
        booking.on_output();
        assert_eq!((load(&router), busy(&router)), (0, 1));
        drop(booking);
        assert_eq!(busy(&router), 0);
    }

    #[test]
    fn concurrent_requests_spread_while_nothing_is_cached() {
        let router = router(RouterMode::Kv);
        let prompts: Vec<Vec<u32>> =
            (0..3).map(|prompt| (prompt * 100..prompt * 100 + 40).collect()).collect();
        let bookings: Vec<Booking> =
            prompts.iter().map(|tokens| router.route(&request(tokens, &[])).unwrap()).collect();
        let mut workers: Vec<u64> = bookings.iter().map(|booking| booking.worker().0).collect();
        workers.sort_unstable();
        assert_eq!(workers, [7, 8, 9]);
    }
}
