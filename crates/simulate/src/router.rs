//! The router in virtual time: the real index and the real choice.

use std::time::{Duration, Instant};

use dynamo_engine_api::KvCacheEventData;
use dynamo_kv_router::{
    ClassId, ClassQuery, KvIndex, KvScheduler, MatchBuffer, QueueConfig, QueueRejected, RankLimits,
    ReservationId, RouterQueue, ScheduleError, ScheduleRequest, SelectRequest, SentPrompts, Waiting,
    WorkerProfile, WorkerRank,
};
use dynamo_mocker::MockerConfig;
use dynamo_tokens::{
    BlockSize, HashSeed, LocalBlockHash, SequenceHash, TokenId, local_block_hashes, sequence_hashes,
};
use rand::{Rng, SeedableRng, rngs::SmallRng};

use crate::{Mode, Setting, SimulateError};

/// All workers are of one incarnation.
const EPOCH: u64 = 1;
/// How often bookings without a sign of life are looked for.
const EXPIRY_PERIOD: Duration = Duration::from_secs(1);
/// How often what was sent long ago is forgotten, as in a live router.
const FORGET_PERIOD: Duration = Duration::from_millis(100);

pub(crate) struct Router {
    mode: Mode,
    block_size: BlockSize,
    index: KvIndex,
    scheduler: KvScheduler,
    wants_events: bool,
    /// What was sent to the workers, where that counts.
    sent: Option<SentPrompts>,
    /// What instants count from; only differences matter, so results do not depend on it.
    origin: Instant,
    rng: SmallRng,
    /// Of all workers, and of each.
    ranks: u32,
    ranks_per_worker: u32,
    last_turn: u32,
    /// Requests that wait for a worker, by their place in the trace.
    queue: RouterQueue<(u32, ClassId)>,
    queue_config: QueueConfig,
    next_expiry: Duration,
    next_forgetting: Duration,
    local: Vec<LocalBlockHash>,
    sequence: Vec<SequenceHash>,
    matches: MatchBuffer,
    sent_matches: MatchBuffer,
    path: Vec<LocalBlockHash>,
}

/// Where a request is.
pub(crate) enum Routed {
    /// On its way to a worker.
    Booked(Booking),
    /// In the queue, until then at most.
    Waits(Duration),
}

/// Why a request got no worker and no place in the queue.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refusal {
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
    #[error("{0}")]
    Queue(#[from] QueueRejected),
}

/// A request's place in a rank's load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Booking {
    /// The rank, of all workers' ranks.
    pub(crate) rank: u32,
    pub(crate) id: ReservationId,
}

impl Router {
    pub(crate) fn new(setting: &Setting, block_size: BlockSize) -> Result<Self, SimulateError> {
        let mut index = KvIndex::default();
        let mut scheduler = KvScheduler::new(setting.kv.clone(), block_size, setting.seed)?;
        let uses_caches = setting.mode == Mode::Kv && setting.kv.uses_caches();
        let memory = setting.kv.caches.sent().filter(|_| uses_caches);
        let mut sent = memory.map(|memory| SentPrompts::new(*memory));
        let ranks_per_worker = setting.engine.data_parallel_size;
        let origin = Instant::now();
        let profile = WorkerProfile { limits: limits_of(&setting.engine), ..WorkerProfile::default() };
        for worker in 0..u64::from(setting.workers) {
            let slots =
                index.add_worker(worker, EPOCH, 0..ranks_per_worker, Some(setting.engine.num_gpu_blocks))?;
            scheduler.set_worker(worker, EPOCH, &slots, false);
            if let Some(sent) = &mut sent {
                sent.set_worker(worker, EPOCH, &slots, Some(setting.engine.num_gpu_blocks));
            }
            scheduler.set_profile(worker, profile.clone());
        }
        Ok(Self {
            mode: setting.mode,
            block_size,
            index,
            scheduler,
            wants_events: uses_caches && setting.kv.caches.uses_events(),
            sent,
            origin,
            rng: SmallRng::seed_from_u64(setting.seed),
            ranks: setting.ranks(),
            ranks_per_worker,
            last_turn: setting.ranks() - 1,
            queue: RouterQueue::new(setting.kv.queue.clone(), origin),
            queue_config: setting.kv.queue.clone(),
            next_expiry: EXPIRY_PERIOD,
            next_forgetting: FORGET_PERIOD,
            local: Vec::new(),
            sequence: Vec::new(),
            matches: MatchBuffer::default(),
            sent_matches: MatchBuffer::default(),
            path: Vec::new(),
        })
    }

    /// Whether KV events are of any use to it.
    pub(crate) fn wants_events(&self) -> bool {
        self.wants_events
    }

    /// Chooses a rank for a request that came and books it there, or lets it wait where it must.
    pub(crate) fn route(
        &mut self,
        request: u32,
        tokens: &[TokenId],
        now: Duration,
    ) -> Result<Routed, Refusal> {
        if now >= self.next_expiry {
            self.scheduler.expire(self.origin + now);
            self.next_expiry = now + EXPIRY_PERIOD;
        }
        self.look_up(tokens, now);
        let class = self.class_of(tokens.len());
        let anyone = SelectRequest::default();
        let never_waits = self.queue_config.threshold_of(class).is_none();
        if never_waits || self.queue.is_empty() && !self.scheduler.must_wait(&anyone, class) {
            return Ok(Routed::Booked(self.book(tokens.len(), now)?));
        }
        let best = self.matches.matches().iter().map(|found| found.device_blocks).max().unwrap_or(0);
        let until = now + self.queue_config.max_wait_of(class);
        let waiting = Waiting {
            class,
            lane: 0,
            strict_priority: 0,
            priority_jump: 0.0,
            isl_tokens: tokens.len(),
            cached_tokens: best as usize * self.block_size.get(),
            deadline: Some(self.origin + until),
        };
        self.queue.push(waiting, (request, class), self.origin + now).map_err(|(rejected, _)| rejected)?;
        Ok(Routed::Waits(until))
    }

    /// The policy class of a prompt. A trace says nothing else that rules look at.
    pub(crate) fn class_of(&self, isl_tokens: usize) -> ClassId {
        let query = ClassQuery { class: None, model: "", isl_tokens, priority_jump: 0.0, strict_priority: 0 };
        self.queue_config.class_of(&query).unwrap_or_default()
    }

    /// The request whose turn it is, if there is room for one. It is to be booked before the next is asked for.
    pub(crate) fn next_in_queue(&mut self) -> Option<u32> {
        let Self { queue, scheduler, .. } = self;
        let next = queue.pop(|(_, class)| !scheduler.must_wait(&SelectRequest::default(), *class));
        next.map(|(request, _)| request)
    }

    /// A request that has waited for too long.
    pub(crate) fn next_expired(&mut self, now: Duration) -> Option<u32> {
        self.queue.pop_expired(self.origin + now).map(|(request, _)| request)
    }

    /// Requests that wait for a worker.
    pub(crate) fn waiting(&self) -> usize {
        self.queue.depth().requests
    }

    /// Chooses a rank for a request whose turn it is. Caches are as they are now.
    pub(crate) fn call(&mut self, tokens: &[TokenId], now: Duration) -> Result<Booking, Refusal> {
        self.look_up(tokens, now);
        Ok(self.book(tokens.len(), now)?)
    }

    /// Hashes a prompt and finds out who has it.
    fn look_up(&mut self, tokens: &[TokenId], now: Duration) {
        self.local.clear();
        self.sequence.clear();
        self.matches.clear();
        if self.mode == Mode::Kv {
            local_block_hashes(tokens, self.block_size, HashSeed::PLAIN, &mut self.local);
            sequence_hashes(&self.local, &mut self.sequence);
            self.find_matches(now);
        }
    }

    fn book(&mut self, isl_tokens: usize, now: Duration) -> Result<Booking, ScheduleError> {
        let mut select = SelectRequest { isl_tokens, ..SelectRequest::default() };
        let named = match self.mode {
            Mode::Kv => None,
            Mode::RoundRobin => {
                self.last_turn = (self.last_turn + 1) % self.ranks;
                Some(self.last_turn)
            }
            Mode::Random => Some(self.rng.random_range(0..self.ranks)),
        };
        if let Some(rank) = named.map(|rank| self.name_of(rank)) {
            (select.pinned_worker, select.pinned_rank) = (Some(rank.worker_id), Some(rank.dp_rank));
        }
        let wanted = ScheduleRequest { prompt_blocks: &self.sequence, expected_output_tokens: None, select };
        let reservation = self.scheduler.choose_and_reserve(&wanted, &self.matches, self.origin + now)?;
        let WorkerRank { worker_id, dp_rank } = reservation.selection.worker;
        if let Some(sent) = &mut self.sent {
            sent.sent(reservation.selection.worker, &self.sequence, self.origin + now);
        }
        Ok(Booking { rank: worker_id as u32 * self.ranks_per_worker + dp_rank, id: reservation.id })
    }

    fn find_matches(&mut self, now: Duration) {
        if self.wants_events {
            self.index.find_matches(&self.local, &mut self.matches);
        }
        let Some(sent) = &mut self.sent else { return };
        if now >= self.next_forgetting {
            sent.expire(self.origin + now, usize::MAX);
            self.next_forgetting = now + FORGET_PERIOD;
        }
        if self.wants_events {
            sent.find_matches(&self.sequence, &mut self.path, &mut self.sent_matches);
            self.matches.raise(&self.sent_matches);
        } else {
            sent.find_matches(&self.sequence, &mut self.path, &mut self.matches);
        }
    }

    fn name_of(&self, rank: u32) -> WorkerRank {
        WorkerRank {
            worker_id: u64::from(rank / self.ranks_per_worker),
            dp_rank: rank % self.ranks_per_worker,
        }
    }

    /// A rank's events arrive.
    pub(crate) fn apply(&mut self, rank: u32, events: &[KvCacheEventData]) {
        let worker = self.name_of(rank);
        for event in events {
            // Nothing is lost here, so every event fits; what the index refuses all the same it counts.
            let applied = self.index.apply(worker, EPOCH, event);
            debug_assert_eq!(applied, Ok(()));
        }
    }

    /// An answer grew; `blocks` of it became whole.
    pub(crate) fn advance(&mut self, booking: Booking, blocks: usize, now: Duration) {
        let now = self.origin + now;
        self.scheduler.mark_prefill_completed(booking.id, now);
        for _ in 0..blocks {
            self.scheduler.add_output_block(booking.id, now);
        }
    }

    /// A request is over.
    pub(crate) fn free(&mut self, booking: Booking, now: Duration) {
        self.scheduler.free(booking.id, self.origin + now);
    }
}

/// What a worker's card says of its ranks.
fn limits_of(engine: &MockerConfig) -> RankLimits {
    RankLimits {
        total_kv_blocks: Some(u64::from(engine.num_gpu_blocks)),
        max_num_batched_tokens: Some(u64::from(engine.max_num_batched_tokens)),
        max_num_seqs: Some(u64::from(engine.max_num_seqs)),
    }
}
