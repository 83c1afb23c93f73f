//! Chooses a worker for each request of one model, and counts what runs where.

use std::{
    sync::Arc,
    time::{Duration, Instant},
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

mod advice;

/// Scratch buffers kept for reuse; more are made when more requests route at the same instant, and dropped after.
const KEPT_SCRATCH: usize = 16;

/// A running answer gives this many signs of life in the time after which it would no longer count.
const SIGNS_OF_LIFE: u32 = 5;

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
    /// Whose turn it was last. Taken with the scheduler's lock held, never the other way round.
    last_turn: Mutex<Option<WorkerRank>>,
    sign_of_life: Duration,
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
            sign_of_life: config.kv.active_request_expiry / SIGNS_OF_LIFE,
            config,
            block_size,
            index: RwLock::new(KvIndex::default()),
            last_turn: Mutex::new(None),
            scratch: Mutex::new(Vec::new()),
        })
    }

    /// Whether workers' KV events are of any use to it.
    pub(crate) fn wants_events(&self) -> bool {
        self.config.mode == RouterMode::Kv && self.config.kv.overlap_score_weight > 0.0
    }

    pub(crate) fn block_size(&self) -> BlockSize {
        self.block_size
    }

    /// The index, for whoever applies events.
    pub(crate) fn index(&self) -> &RwLock<KvIndex> {
        &self.index
    }

    /// Takes on a worker or its changed record; `false` if that cannot be, and then nothing has changed.
    pub(crate) fn set_worker(&self, worker: &RoutedWorker) -> bool {
        let ranks = worker.first_rank..worker.first_rank.saturating_add(worker.ranks.max(1));
        let slots =
            self.index.write().add_worker(worker.worker_id, worker.epoch, ranks, worker.blocks_per_rank);
        match slots {
            Ok(slots) => {
                self.scheduler.lock().set_worker(worker.worker_id, worker.epoch, &slots, worker.draining)
            }
            Err(error) => {
                tracing::warn!(worker_id = worker.worker_id, %error, "worker is not routed to");
                false
            }
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
            sign_of_life: None,
            tokens: 0,
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
        let eligible = || candidates.iter().filter(may_serve).map(|candidate| candidate.worker);
        let chosen = if self.config.mode == RouterMode::Random {
            let count = eligible().count();
            (count > 0).then(|| rand::rng().random_range(0..count)).and_then(|place| eligible().nth(place))
        } else {
            // In the order of ids, so that turns do not depend on the order in which workers came.
            let order = |worker: &WorkerRank| (worker.worker_id, worker.dp_rank);
            let mut last_turn = self.last_turn.lock();
            let after = last_turn.as_ref().map(order);
            let following = eligible().filter(|worker| after.is_none_or(|after| order(worker) > after));
            let chosen = following.min_by_key(order).or_else(|| eligible().min_by_key(order));
            *last_turn = chosen.or(*last_turn);
            chosen
        };
        chosen.ok_or(GenerateError::NoWorkers)
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
    /// The last one, if any was given.
    sign_of_life: Option<Instant>,
    tokens: usize,
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

    /// The worker's answer went on, by `tokens`: the first time ends the prefill, and each block counts. An answer that
    /// is slow to fill a block gives a sign of life now and then, so that it goes on counting.
    pub(crate) fn on_progress(&mut self, tokens: usize, now: Instant) {
        let Some(id) = self.id else { return };
        let block_size = self.router.block_size.get();
        let blocks = (self.tokens + tokens) / block_size - self.tokens / block_size;
        self.tokens += tokens;
        let alive = self.sign_of_life.is_some_and(|at| now < at + self.router.sign_of_life);
        if alive && blocks == 0 {
            return;
        }
        let mut scheduler = self.router.scheduler.lock();
        // After the first time it is a sign of life and nothing else.
        scheduler.mark_prefill_completed(id, now);
        for _ in 0..blocks {
            scheduler.add_output_block(id, now);
        }
        self.sign_of_life = Some(now);
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
        booking.on_progress(1, Instant::now());
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
    #[test]
    fn an_answer_that_is_slow_goes_on_counting() {
        let router = router(RouterMode::Kv);
        let tokens: Vec<u32> = (0..40).collect();
        let mut slow = router.route(&request(&tokens, &[])).unwrap();
        let silent = router.route(&request(&tokens, &[])).unwrap();
        let expiry = KvRouterConfig::REFERENCE.active_request_expiry;
        let start = Instant::now();
        slow.on_progress(1, start);
        slow.on_progress(1, start + expiry / 2);
        let expired = router.scheduler.lock().expire(start + expiry + Duration::from_secs(1));
        assert_eq!((expired, busy(&router)), (1, 1));
        drop((slow, silent));
        assert_eq!(busy(&router), 0);
    }

    #[test]
    fn output_blocks_are_of_tokens_however_they_come() {
        let kv = KvRouterConfig { track_output_blocks: true, ..KvRouterConfig::REFERENCE };
        let config = RouterConfig { mode: RouterMode::Kv, kv };
        let router = Arc::new(Router::new(config, BlockSize::new(4).unwrap()).unwrap());
        router.set_worker(&RoutedWorker {
            worker_id: 7,
            epoch: 1,
            first_rank: 0,
            ranks: 1,
            blocks_per_rank: None,
            draining: false,
        });
        let tokens: Vec<u32> = (0..8).collect();
        let mut booking = router.route(&request(&tokens, &[])).unwrap();
        let blocks = |router: &Router| router.loads()[0].1.decode_blocks;
        let before = blocks(&router);
        for tokens in [3, 0, 9, 3, 1] {
            booking.on_progress(tokens, Instant::now());
        }
        assert_eq!(blocks(&router) - before, 4.0);
    }

    #[test]
    fn a_worker_that_cannot_be_taken_on_is_said_to_be() {
        let router = router(RouterMode::Kv);
        let worker = RoutedWorker {
            worker_id: 10,
            epoch: 1,
            first_rank: 0,
            ranks: 1 << 20,
            blocks_per_rank: None,
            draining: false,
        };
        assert!(!router.set_worker(&worker));
        assert!(!router.set_worker(&RoutedWorker { worker_id: 7, epoch: 0, ranks: 1, ..worker }));
        assert!(router.set_worker(&RoutedWorker { ranks: 1, ..worker }));
    }
}
