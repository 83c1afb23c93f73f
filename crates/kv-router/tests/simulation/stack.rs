//! Some routers and workers. A worker computes one prompt after the other, generates for all at once, and caches blocks,
//! the least recently used of which goes first. All routers hear of all caches at once; of each other's requests after
//! a delay, or never.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, HashMap, VecDeque},
    time::{Duration, Instant},
};

use dynamo_engine_api::{ExternalBlockHash, KvCacheEventData, StoredBlock};
use dynamo_kv_router::{
    ActiveSequenceChange, ActiveSequenceEvent, KvIndex, KvRouterConfig, KvScheduler, MatchBuffer,
    PrefillLoadHint, ReplicaBookings, ReservationId, ScheduleRequest, SelectRequest, WorkerRank,
};
use dynamo_tokens::{BlockSize, LocalBlockHash, SequenceHash, sequence_hashes};

pub(crate) const BLOCK: usize = 64;

/// A request of a trace.
#[derive(Clone, Debug)]
pub(crate) struct Arrival {
    pub(crate) at: Duration,
    pub(crate) blocks: Vec<LocalBlockHash>,
    pub(crate) output_tokens: u32,
}

#[derive(Clone)]
pub(crate) struct Setting {
    pub(crate) config: KvRouterConfig,
    pub(crate) workers: u64,
    pub(crate) routers: usize,
    /// Blocks that a worker caches.
    pub(crate) capacity: usize,
    /// Until routers know of each other's requests; absent: they never do.
    pub(crate) sync: Option<Duration>,
}

/// Microseconds to compute a token of a prompt, and to generate one.
const PREFILL: u64 = 50;
const DECODE: u64 = 10_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Arrive(usize),
    FirstToken(usize),
    End(usize),
}

struct Worker {
    free_at: Duration,
    requests: usize,
    /// By block: when it was used last.
    cached: BTreeMap<SequenceHash, u64>,
    by_use: BTreeMap<u64, SequenceHash>,
}

struct Router {
    scheduler: KvScheduler,
    bookings: ReplicaBookings,
}

struct Running {
    router: usize,
    id: ReservationId,
    worker: WorkerRank,
}

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) prompt_tokens: u64,
    pub(crate) cached_tokens: u64,
    /// By worker.
    pub(crate) requests: Vec<usize>,
    /// Ascending.
    pub(crate) first_token: Vec<Duration>,
    /// The most that a worker had outstanding while another had nothing, in tokens.
    pub(crate) worst_wait_beside_an_idle_worker: u64,
}

impl Outcome {
    pub(crate) fn cached_share(&self) -> f64 {
        self.cached_tokens as f64 / self.prompt_tokens as f64
    }

    /// Requests of the busiest worker and of the least busy one, by the mean.
    pub(crate) fn spread(&self) -> (f64, f64) {
        let mean = self.requests.iter().sum::<usize>() as f64 / self.requests.len() as f64;
        let of = |count: Option<&usize>| count.copied().unwrap_or(0) as f64 / mean;
        (of(self.requests.iter().max()), of(self.requests.iter().min()))
    }

    pub(crate) fn first_token_at(&self, share: f64) -> Duration {
        self.first_token[((self.first_token.len() - 1) as f64 * share) as usize]
    }
}

pub(crate) fn run(setting: &Setting, trace: &[Arrival]) -> Outcome {
    let mut stack = Stack::new(setting);
    let mut steps: BinaryHeap<Reverse<(Duration, u64, Step)>> = BinaryHeap::new();
    let mut number = 0;
    let mut plan = |steps: &mut BinaryHeap<_>, at: Duration, step| {
        number += 1;
        steps.push(Reverse((at, number, step)));
    };
    for (index, arrival) in trace.iter().enumerate() {
        plan(&mut steps, arrival.at, Step::Arrive(index));
    }
    while let Some(Reverse((now, _, step))) = steps.pop() {
        stack.hear(now);
        match step {
            Step::Arrive(index) => {
                let first = stack.arrive(index, &trace[index], now);
                plan(&mut steps, first, Step::FirstToken(index));
                let tokens = u64::from(trace[index].output_tokens);
                plan(&mut steps, first + Duration::from_micros(tokens * DECODE), Step::End(index));
            }
            Step::FirstToken(index) => {
                let Running { router, id, .. } = stack.running[&index];
                let instant = stack.start + now;
                stack.routers[router].scheduler.mark_prefill_completed(id, instant);
                stack.tell(index, ActiveSequenceChange::MarkPrefillCompleted, now);
            }
            Step::End(index) => {
                stack.tell(index, ActiveSequenceChange::Free, now);
                if let Some(Running { router, id, .. }) = stack.running.remove(&index) {
                    stack.routers[router].scheduler.free(id, stack.start + now);
                }
            }
        }
    }
    stack.hear(Duration::MAX);
    let mut outcome = stack.outcome;
    outcome.requests = stack.workers.iter().map(|worker| worker.requests).collect();
    outcome.first_token.sort_unstable();
    for Router { scheduler, .. } in &stack.routers {
        assert_eq!(scheduler.tracked_blocks(), 0, "all requests are over");
    }
    outcome
}

struct Stack {
    block_size: BlockSize,
    start: Instant,
    index: KvIndex,
    routers: Vec<Router>,
    workers: Vec<Worker>,
    running: HashMap<usize, Running>,
    sync: Option<Duration>,
    /// What routers said, and when it is heard.
    told: VecDeque<(Duration, ActiveSequenceEvent)>,
    uses: u64,
    capacity: usize,
    matches: MatchBuffer,
    outcome: Outcome,
}

impl Stack {
    fn new(setting: &Setting) -> Self {
        let block_size = BlockSize::new(BLOCK as u32).unwrap();
        let start = Instant::now();
        let mut index = KvIndex::default();
        let slots: Vec<_> =
            (0..setting.workers).map(|worker| index.add_worker(worker, 1, 0..1, None).unwrap()).collect();
        let routers = (0..setting.routers as u64)
            .map(|id| {
                let mut scheduler = KvScheduler::new(setting.config.clone(), block_size, id).unwrap();
                for (worker, slots) in (0..).zip(&slots) {
                    scheduler.set_worker(worker, 1, slots, false);
                }
                Router { scheduler, bookings: ReplicaBookings::new(id, start) }
            })
            .collect();
        let worker = || Worker {
            free_at: Duration::ZERO,
            requests: 0,
            cached: BTreeMap::new(),
            by_use: BTreeMap::new(),
        };
        Self {
            block_size,
            start,
            index,
            routers,
            workers: (0..setting.workers).map(|_| worker()).collect(),
            running: HashMap::new(),
            sync: setting.sync,
            told: VecDeque::new(),
            uses: 0,
            capacity: setting.capacity,
            matches: MatchBuffer::default(),
            outcome: Outcome::default(),
        }
    }

    /// Routes a request; returns when its first token comes.
    fn arrive(&mut self, index: usize, arrival: &Arrival, now: Duration) -> Duration {
        let router = index % self.routers.len();
        let mut names = Vec::new();
        sequence_hashes(&arrival.blocks, &mut names);
        self.index.find_matches(&arrival.blocks, &mut self.matches);
        let isl_tokens = arrival.blocks.len() * self.block_size.get();
        let select = SelectRequest { isl_tokens, ..SelectRequest::default() };
        let request = ScheduleRequest { prompt_blocks: &names, expected_output_tokens: None, select };
        let instant = self.start + now;
        let scheduler = &mut self.routers[router].scheduler;
        let reservation = scheduler.choose_and_reserve(&request, &self.matches, instant).unwrap();
        let worker = reservation.selection.worker;
        self.running.insert(index, Running { router, id: reservation.id, worker });
        self.tell(
            index,
            ActiveSequenceChange::AddRequest {
                token_sequence: Some(names.clone()),
                track_prefill_tokens: true,
                expected_output_tokens: None,
                prefill_load_hint: Some(PrefillLoadHint {
                    initial_effective_prefill_tokens: reservation.prefill_tokens,
                }),
            },
            now,
        );
        let idle = self.workers.iter().any(|worker| worker.free_at <= now);
        let waiting = self.workers[worker.worker_id as usize].free_at.saturating_sub(now);
        if idle {
            let tokens = waiting.as_micros() as u64 / PREFILL;
            let worst = &mut self.outcome.worst_wait_beside_an_idle_worker;
            *worst = tokens.max(*worst);
        }
        let cached = self.cache(worker, &names, &arrival.blocks);
        let new_tokens = (isl_tokens - cached * BLOCK).max(1) as u64;
        let at = &mut self.workers[worker.worker_id as usize];
        let first = at.free_at.max(now) + Duration::from_micros(new_tokens * PREFILL);
        at.free_at = first;
        at.requests += 1;
        self.outcome.prompt_tokens += isl_tokens as u64;
        self.outcome.cached_tokens += (cached * BLOCK) as u64;
        self.outcome.first_token.push(first - now);
        first
    }

    /// The worker has the prompt now; returns how many blocks it had before.
    fn cache(&mut self, of: WorkerRank, names: &[SequenceHash], local: &[LocalBlockHash]) -> usize {
        let worker = &mut self.workers[of.worker_id as usize];
        let had = names.iter().take_while(|name| worker.cached.contains_key(name)).count();
        // The deepest first, so that it is also the first to go.
        for name in names.iter().rev() {
            self.uses += 1;
            if let Some(before) = worker.cached.insert(*name, self.uses) {
                worker.by_use.remove(&before);
            }
            worker.by_use.insert(self.uses, *name);
        }
        let mut removed = Vec::new();
        while worker.cached.len() > self.capacity
            && let Some((_, name)) = worker.by_use.pop_first()
        {
            worker.cached.remove(&name);
            removed.push(ExternalBlockHash(name.0));
        }
        let blocks: Vec<_> = names
            .iter()
            .zip(local)
            .map(|(name, &tokens_hash)| StoredBlock { block_hash: ExternalBlockHash(name.0), tokens_hash })
            .collect();
        let stored = KvCacheEventData::Stored { parent_hash: None, blocks };
        self.index.apply(of, 1, &stored).unwrap();
        if !removed.is_empty() {
            let removed = KvCacheEventData::Removed { block_hashes: removed };
            self.index.apply(of, 1, &removed).unwrap();
        }
        had
    }

    fn tell(&mut self, index: usize, data: ActiveSequenceChange, now: Duration) {
        let Some(delay) = self.sync else { return };
        let Running { router, worker, .. } = &self.running[&index];
        let (router_id, request_id, worker) = (*router as u64, index.to_string(), *worker);
        let event = ActiveSequenceEvent { request_id, worker, data, router_id, lora_name: None };
        self.told.push_back((now + delay, event));
    }

    /// The routers hear what has come by now.
    fn hear(&mut self, now: Duration) {
        while let Some((_, event)) = self.told.pop_front_if(|(due, _)| *due <= now) {
            for Router { scheduler, bookings } in &mut self.routers {
                bookings.apply(&event, scheduler, self.start);
            }
        }
    }
}
