//! The router in virtual time: the real index and the real choice.

use std::time::{Duration, Instant};

use dynamo_engine_api::KvCacheEventData;
use dynamo_kv_router::{
    KvIndex, KvScheduler, MatchBuffer, RankLimits, ReservationId, ScheduleError, ScheduleRequest,
    SelectRequest, WorkerProfile, WorkerRank,
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

pub(crate) struct Router {
    mode: Mode,
    block_size: BlockSize,
    index: KvIndex,
    scheduler: KvScheduler,
    wants_events: bool,
    /// What instants count from; only differences matter, so results do not depend on it.
    origin: Instant,
    rng: SmallRng,
    workers: u32,
    last_turn: u32,
    next_expiry: Duration,
    local: Vec<LocalBlockHash>,
    sequence: Vec<SequenceHash>,
    matches: MatchBuffer,
}

/// A request's place in a worker's load.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Booking {
    pub(crate) worker: u32,
    pub(crate) id: ReservationId,
}

impl Router {
    pub(crate) fn new(setting: &Setting, block_size: BlockSize) -> Result<Self, SimulateError> {
        let mut index = KvIndex::default();
        let mut scheduler = KvScheduler::new(setting.kv.clone(), block_size, setting.seed)?;
        let profile = WorkerProfile { limits: limits_of(&setting.engine), ..WorkerProfile::default() };
        for worker in 0..u64::from(setting.workers) {
            let slots = index.add_worker(worker, EPOCH, 0..1, Some(setting.engine.num_gpu_blocks))?;
            scheduler.set_worker(worker, EPOCH, &slots, false);
            scheduler.set_profile(worker, profile.clone());
        }
        Ok(Self {
            mode: setting.mode,
            block_size,
            index,
            scheduler,
            wants_events: setting.mode == Mode::Kv && setting.kv.uses_caches(),
            origin: Instant::now(),
            rng: SmallRng::seed_from_u64(setting.seed),
            workers: setting.workers,
            last_turn: setting.workers - 1,
            next_expiry: EXPIRY_PERIOD,
            local: Vec::new(),
            sequence: Vec::new(),
            matches: MatchBuffer::default(),
        })
    }

    /// Whether KV events are of any use to it.
    pub(crate) fn wants_events(&self) -> bool {
        self.wants_events
    }

    /// Chooses a worker and books the request there.
    pub(crate) fn route(&mut self, tokens: &[TokenId], now: Duration) -> Result<Booking, ScheduleError> {
        if now >= self.next_expiry {
            self.scheduler.expire(self.origin + now);
            self.next_expiry = now + EXPIRY_PERIOD;
        }
        self.local.clear();
        self.sequence.clear();
        self.matches.clear();
        let mut select = SelectRequest { isl_tokens: tokens.len(), ..SelectRequest::default() };
        match self.mode {
            Mode::Kv => {
                local_block_hashes(tokens, self.block_size, HashSeed::PLAIN, &mut self.local);
                sequence_hashes(&self.local, &mut self.sequence);
                if self.wants_events {
                    self.index.find_matches(&self.local, &mut self.matches);
                }
            }
            Mode::RoundRobin => {
                self.last_turn = (self.last_turn + 1) % self.workers;
                select.pinned_worker = Some(u64::from(self.last_turn));
            }
            Mode::Random => {
                select.pinned_worker = Some(u64::from(self.rng.random_range(0..self.workers)));
            }
        }
        let wanted = ScheduleRequest { prompt_blocks: &self.sequence, expected_output_tokens: None, select };
        let reservation = self.scheduler.choose_and_reserve(&wanted, &self.matches, self.origin + now)?;
        Ok(Booking { worker: reservation.selection.worker.worker_id as u32, id: reservation.id })
    }

    /// A worker's events arrive.
    pub(crate) fn apply(&mut self, worker: u32, events: &[KvCacheEventData]) {
        let worker = WorkerRank { worker_id: u64::from(worker), dp_rank: 0 };
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
    pub(crate) fn free(&mut self, booking: Booking) {
        self.scheduler.free(booking.id);
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
