//! Chooses a worker for each request of one model, and counts what runs where.

mod adapters;
mod booking;
mod caches;
mod classes;
mod index_place;
mod line;
mod meters;
mod mode;
mod remote_index;
mod replicas;
mod request;
mod turns;
mod unfound;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use adapters::Adapters;
pub(crate) use booking::Booking;
pub(crate) use caches::MatchSource;
use classes::ToldOfClass;
use dynamo_kv_router::{
    AffinityMode, BusyThresholds, Candidate, ClassId, ConfigError, KvScheduler, LaneConfig, LaneIndex,
    LaneReport, MatchBuffer, QueueDepth, ScheduleError, ScheduleRequest, SelectError, SelectRequest,
    Selection, SentPrompts, SessionTable, SlotLoad, StartLanesError, WorkerRank,
};
use dynamo_tokens::{BlockSize, LocalBlockHash, SequenceHash, local_block_hashes, sequence_hashes};
pub use index_place::{IndexPlace, IndexPlaceError};
use line::{Line, Turn, Wanted};
pub(crate) use meters::{PrefilledBy, RouterMeters, RouterMetrics, WorkerType};
pub use mode::{RouterConfig, RouterMode};
use parking_lot::{Mutex, RwLock};
use rand::Rng;
pub(crate) use remote_index::RemoteIndex;
use replicas::Replicas;
pub use request::Session;
pub(crate) use request::{RouteRequest, RoutedWorker, WantedAdapter};
use unfound::Unfound;

use crate::{GenerateError, lost_ranks::LostRanks};

mod advice;

/// Scratch buffers kept for reuse; more are made when more requests route at the same instant, and dropped after.
const KEPT_SCRATCH: usize = 16;

/// A running answer gives this many signs of life in the time after which it would no longer count.
const SIGNS_OF_LIFE: u32 = 5;

/// Buffers of one decision, used again by the next.
#[derive(Default)]
struct Scratch {
    local: Vec<LocalBlockHash>,
    sequence: Vec<SequenceHash>,
    matches: MatchBuffer,
    /// Who was sent how much of it, where that counts beside events.
    sent: MatchBuffer,
    /// What the index of sent prompts is asked with.
    path: Vec<LocalBlockHash>,
}

/// The router of one model. Lanes of its own apply events to the index, which answers meanwhile.
///
/// Locks are taken in this order: the line of those who wait, the scheduler, all others.
pub(crate) struct Router {
    config: RouterConfig,
    block_size: BlockSize,
    /// What says who has a prompt.
    source: MatchSource,
    /// Hands out slots, also where it is another index that is asked.
    index: LaneIndex,
    /// What was sent to the workers, where that counts.
    sent: Option<RwLock<SentPrompts>>,
    lost: Arc<LostRanks>,
    unfound: Unfound,
    adapters: Adapters,
    scheduler: Mutex<KvScheduler>,
    /// Whose turn it was last, in the modes that go in turn.
    last_turn: Mutex<Option<WorkerRank>>,
    sessions: Option<Mutex<SessionTable>>,
    line: Line,
    told_of_class: ToldOfClass,
    replicas: Option<Replicas>,
    meters: RouterMeters,
    sign_of_life: Duration,
    scratch: Mutex<Vec<Scratch>>,
}

/// Why there is no router.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartRouterError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Lanes(#[from] StartLanesError),
}

fn start_index(config: &RouterConfig, lost: Arc<LostRanks>) -> Result<LaneIndex, StartLanesError> {
    let lanes = LaneConfig { lanes: config.event_threads, ..LaneConfig::REFERENCE };
    LaneIndex::start(config.indexer.build(config.event_threads), &lanes, move |report| match report {
        LaneReport::Refused { worker, error, .. } if error.asks_for_dump() => lost.add(worker),
        LaneReport::Refused { .. } => {}
        LaneReport::Broken(broken) => {
            tracing::error!(%broken, "routing goes on without new KV events: restart")
        }
    })
}

/// What came of a try.
enum Tried {
    Booked(Booking),
    MustWait(Wanted),
}

impl Router {
    /// `router_id` is the name under which other routers know this one.
    pub(crate) fn new(
        config: RouterConfig,
        block_size: BlockSize,
        router_id: u64,
        source: MatchSource,
        meters: RouterMeters,
    ) -> Result<Self, StartRouterError> {
        let lost = Arc::new(LostRanks::default());
        let index = start_index(&config, lost.clone())?;
        let seed = rand::rng().random();
        let now = Instant::now();
        Ok(Self {
            scheduler: Mutex::new(KvScheduler::new(config.kv.clone(), block_size, seed)?),
            sign_of_life: config.kv.active_request_expiry / SIGNS_OF_LIFE,
            sessions: config.affinity.map(|affinity| Mutex::new(SessionTable::new(affinity))),
            told_of_class: ToldOfClass::default(),
            line: Line::new(config.kv.queue.clone(), now),
            replicas: config.replica_sync.then(|| Replicas::new(router_id, now)),
            sent: caches::memory(&config).map(RwLock::new),
            config,
            block_size,
            source,
            index,
            lost,
            unfound: Unfound::default(),
            adapters: Adapters::default(),
            last_turn: Mutex::new(None),
            meters,
            scratch: Mutex::new(Vec::new()),
        })
    }

    /// Whether it speaks with other routers.
    pub(crate) fn syncs_replicas(&self) -> bool {
        self.replicas.is_some()
    }

    pub(crate) fn block_size(&self) -> BlockSize {
        self.block_size
    }

    /// The index, for whoever applies events.
    pub(crate) fn index(&self) -> &LaneIndex {
        &self.index
    }

    /// Where lanes say of whom the index lacks something.
    pub(crate) fn lost(&self) -> &LostRanks {
        &self.lost
    }

    /// Takes on a worker or its changed record; `false` if that cannot be, and then nothing has changed.
    pub(crate) fn set_worker(self: &Arc<Self>, worker: &RoutedWorker) -> bool {
        let ranks = worker.first_rank..worker.first_rank.saturating_add(worker.ranks.max(1));
        let slots = self.index.add_worker(worker.worker_id, worker.epoch, ranks, worker.blocks_per_rank());
        let taken = match slots {
            Ok(slots) => {
                if let Some(sent) = &self.sent {
                    let capacity = worker.blocks_per_rank();
                    sent.write().set_worker(worker.worker_id, worker.epoch, &slots, capacity);
                }
                let mut scheduler = self.scheduler.lock();
                let taken = scheduler.set_worker(worker.worker_id, worker.epoch, &slots, worker.draining);
                if taken {
                    scheduler.set_profile(worker.worker_id, worker.profile());
                }
                taken
            }
            Err(error) => {
                tracing::warn!(worker_id = worker.worker_id, %error, "worker is not routed to");
                false
            }
        };
        if taken {
            self.adapters.set(worker.worker_id, &worker.adapters);
            if self.wants_events() {
                self.unfound.added(worker.worker_id, worker.epoch);
            }
        }
        self.call_next();
        taken
    }

    /// Forgets a worker.
    pub(crate) fn remove_worker(self: &Arc<Self>, worker_id: u64) {
        self.scheduler.lock().remove_worker(worker_id);
        self.index.remove_worker(worker_id);
        self.unfound.removed(worker_id);
        self.adapters.set(worker_id, &[]);
        if let Some(sent) = &self.sent {
            sent.write().remove_worker(worker_id);
        }
        if let Some(sessions) = &self.sessions {
            sessions.lock().forget_worker(worker_id);
        }
        // Those who wait for it alone are to be told.
        self.call_next();
    }

    /// Drops bookings that gave no sign of life for too long, and sessions that are over; looks whether workers' caches are
    /// of use.
    pub(crate) fn expire(self: &Arc<Self>) -> usize {
        let now = Instant::now();
        let mut scheduler = self.scheduler.lock();
        let expired = scheduler.expire(now);
        if let Some(replicas) = &self.replicas {
            replicas.sweep(&scheduler, now);
        }
        drop(scheduler);
        if let Some(sessions) = &self.sessions {
            sessions.lock().expire(now);
        }
        self.look_for_served(now);
        self.call_next();
        expired
    }

    /// Whether any worker has it.
    pub(crate) fn has_adapter(&self, adapter: &str) -> bool {
        self.adapters.contains(adapter)
    }

    /// Prompt tokens that ranks compute in a second, of those whose speed is measured and known.
    pub(crate) fn prefill_speeds(&self) -> Vec<(WorkerRank, f64)> {
        self.scheduler.lock().prefill_speeds().collect()
    }

    /// What runs on each rank.
    pub(crate) fn loads(&self) -> Vec<(WorkerRank, SlotLoad)> {
        self.scheduler.lock().worker_loads().collect()
    }

    /// Memory of what is known of running requests.
    pub(crate) fn active_bytes(&self) -> usize {
        self.scheduler.lock().tracked_bytes()
    }

    /// How much waits for a worker.
    pub(crate) fn queue_depth(&self) -> QueueDepth {
        self.line.depth()
    }

    /// How much waits of each policy class, with its name.
    pub(crate) fn queue_depths(&self) -> Vec<(&str, QueueDepth)> {
        self.line.depths()
    }

    /// The steps beyond which requests wait, where they do.
    pub(crate) fn queue_threshold(&self) -> Option<f64> {
        self.config.kv.queue.threshold
    }

    /// The thresholds over which ranks take no more requests.
    pub(crate) fn busy_thresholds(&self) -> BusyThresholds {
        self.scheduler.lock().busy_thresholds()
    }

    /// Sets those thresholds that are given, and returns all.
    pub(crate) fn merge_busy_thresholds(&self, given: BusyThresholds) -> Result<BusyThresholds, ConfigError> {
        let mut scheduler = self.scheduler.lock();
        let merged = scheduler.busy_thresholds().merged(given);
        scheduler.set_busy_thresholds(merged)?;
        Ok(merged)
    }

    /// Chooses a worker and books the request there; waits for its turn where requests queue.
    pub(crate) async fn route(
        self: &Arc<Self>,
        request: &RouteRequest<'_>,
    ) -> Result<Booking, GenerateError> {
        let mut scratch = self.scratch.lock().pop().unwrap_or_default();
        let result = self.route_with(request, &mut scratch).await;
        self.keep(scratch);
        result
    }

    /// Says where a request would go, and books nothing.
    pub(crate) async fn advise(&self, request: &RouteRequest<'_>) -> Result<WorkerRank, GenerateError> {
        let mut scratch = self.scratch.lock().pop().unwrap_or_default();
        self.look_up(request, &mut scratch).await;
        let result = self.choose(request, &scratch);
        self.keep(scratch);
        result.map(|selection| selection.worker)
    }

    async fn route_with(
        self: &Arc<Self>,
        request: &RouteRequest<'_>,
        scratch: &mut Scratch,
    ) -> Result<Booking, GenerateError> {
        let started = Instant::now();
        let class = self.class_of_new(request);
        self.look_up(request, scratch).await;
        let mut turn: Option<Turn> = None;
        let mut waited = Duration::ZERO;
        loop {
            let scheduling = Instant::now();
            match self.try_once(request, class, scratch, turn.is_some())? {
                Tried::Booked(booking) => {
                    self.meters.scheduling.observe(millis(scheduling.elapsed()));
                    self.meters.total.observe(millis(started.elapsed().saturating_sub(waited)));
                    return Ok(booking);
                }
                Tried::MustWait(wanted) => {
                    let waiting = Instant::now();
                    turn = Some(self.wait(wanted, request).await?);
                    waited += waiting.elapsed();
                    // Caches have changed in the meantime. An index elsewhere is asked in this turn, so that the answer is
                    // as fresh as the loads; those who wait stand for a round trip more.
                    self.find_matches(scratch).await;
                }
            }
        }
    }

    /// Hashes the prompt and finds out who has it.
    async fn look_up(&self, request: &RouteRequest<'_>, scratch: &mut Scratch) {
        scratch.local.clear();
        scratch.sequence.clear();
        scratch.matches.clear();
        if self.config.mode != RouterMode::Kv {
            return;
        }
        let start = Instant::now();
        local_block_hashes(request.tokens, self.block_size, request.seed, &mut scratch.local);
        let local = Instant::now();
        sequence_hashes(&scratch.local, &mut scratch.sequence);
        self.meters.block_hashing.observe(millis(local - start));
        self.meters.seq_hashing.observe(millis(local.elapsed()));
        self.find_matches(scratch).await;
    }

    fn try_once(
        self: &Arc<Self>,
        request: &RouteRequest<'_>,
        class: ClassId,
        scratch: &Scratch,
        has_turn: bool,
    ) -> Result<Tried, GenerateError> {
        let now = Instant::now();
        let mut scheduler = self.scheduler.lock();
        let select = self.select_request(request, class, &mut scheduler, now);
        let waits = !has_turn && self.line.is_used_by(class);
        if waits && (self.line.is_occupied() || scheduler.must_wait(&select, class)) {
            let cached = line::cached_blocks(&scheduler, &select, &scratch.matches);
            let cached_tokens = cached as usize * self.block_size.get();
            return Ok(Tried::MustWait(Wanted::new(&select, class, cached_tokens)));
        }
        let select = self.in_turn(select, &mut scheduler)?;
        let wanted = ScheduleRequest {
            prompt_blocks: &scratch.sequence,
            expected_output_tokens: request.expected_output_tokens,
            select,
        };
        let reservation =
            scheduler.choose_and_reserve(&wanted, &scratch.matches, now).map_err(schedule_error)?;
        drop(scheduler);
        let selection = reservation.selection;
        self.remember_sent(selection.worker, &scratch.sequence, now);
        self.bind_session(request, selection.worker, now);
        if selection.balanced {
            self.meters.balanced.inc();
        }
        Ok(Tried::Booked(Booking::new(self.clone(), request, &reservation, &scratch.sequence, now)))
    }

    fn choose(&self, request: &RouteRequest<'_>, scratch: &Scratch) -> Result<Selection, GenerateError> {
        let now = Instant::now();
        let mut scheduler = self.scheduler.lock();
        let class = self.class_of(request).unwrap_or_default();
        let select = self.select_request(request, class, &mut scheduler, now);
        let select = self.in_turn(select, &mut scheduler)?;
        let wanted = ScheduleRequest {
            prompt_blocks: &scratch.sequence,
            expected_output_tokens: request.expected_output_tokens,
            select,
        };
        scheduler.choose(&wanted, &scratch.matches, now).map_err(|error| schedule_error(error.into()))
    }

    /// Who may serve a request: the worker that it names, or that of its session.
    fn select_request<'a>(
        &self,
        request: &RouteRequest<'a>,
        class: ClassId,
        scheduler: &mut KvScheduler,
        now: Instant,
    ) -> SelectRequest<'a> {
        let binds = |adapter: &WantedAdapter<'_>| adapter.is_registered || self.has_adapter(adapter.name);
        let select = SelectRequest {
            isl_tokens: request.tokens.len(),
            adapter: request.adapter.filter(binds).map(|adapter| adapter.name),
            pinned_worker: request.pinned_worker,
            pinned_rank: request.pinned_rank,
            allowed: request.allowed,
            excluded: request.excluded,
            required_taints: request.required_taints,
            preferred_taints: request.preferred_taints,
            overrides: request.overrides,
        };
        let (Some(sessions), Some(session), None) = (&self.sessions, request.session, select.pinned_worker)
        else {
            return select;
        };
        let sessions = sessions.lock();
        let Some(worker) = sessions.worker(&session.id, session.parent.as_deref(), now) else {
            return select;
        };
        let pinned = SelectRequest {
            pinned_worker: Some(worker.worker_id),
            pinned_rank: Some(worker.dp_rank),
            ..select
        };
        let mode = sessions.mode();
        drop(sessions);
        let stays = match mode {
            AffinityMode::Hard => {
                let is_there = |candidate: &Candidate| pinned.may_go_to(candidate);
                scheduler.candidates().iter().any(is_there)
            }
            AffinityMode::Soft => {
                scheduler.eligible(&pinned).next().is_some() && !scheduler.must_wait(&pinned, class)
            }
        };
        if stays { pinned } else { select }
    }

    fn bind_session(&self, request: &RouteRequest<'_>, worker: WorkerRank, now: Instant) {
        let (Some(sessions), Some(session)) = (&self.sessions, request.session) else { return };
        let mut sessions = sessions.lock();
        if session.is_final {
            sessions.forget(&session.id);
        } else {
            sessions.bind(&session.id, worker, now);
        }
    }

    fn keep(&self, scratch: Scratch) {
        let mut kept = self.scratch.lock();
        if kept.len() < KEPT_SCRATCH {
            kept.push(scratch);
        }
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
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

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) use tests::router_for_tests;
