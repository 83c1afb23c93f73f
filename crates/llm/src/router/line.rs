//! Requests that wait for a worker: the tasks behind a [`RouterQueue`].
//!
//! One at a time is called: it chooses and books its worker, and then the next is called. So nobody books on a load that
//! another is just about to raise, and caches are looked at when it matters: an index in another process is asked by the
//! one who was called, and the others wait for that answer too, which comes in some tenths of a millisecond or is given up
//! after a bounded time. Then what was answered when the request came counts. Who waits holds no lock, and leaves the line
//! when it is dropped.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use dynamo_engine_api::DpRank;
use dynamo_kv_router::{
    ClassId, KvScheduler, MatchBuffer, QueueConfig, QueueDepth, QueueRejected, RouterQueue, SelectRequest,
    Ticket, Waiting,
};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::{RouteRequest, Router};
use crate::GenerateError;

/// All who wait.
pub(super) struct Line {
    config: QueueConfig,
    is_used: bool,
    state: Mutex<State>,
    /// Those who wait and the one who was called, for a look without the lock.
    occupied: AtomicUsize,
}

struct State {
    queue: RouterQueue<Waiter>,
    /// Whether somebody was called who has not booked yet.
    is_called: bool,
}

struct Waiter {
    class: ClassId,
    who: Box<Eligible>,
    call: oneshot::Sender<Turn>,
}

/// Who may serve a request, kept while it waits.
#[derive(Hash, PartialEq, Eq)]
struct Eligible {
    pinned_worker: Option<u64>,
    pinned_rank: Option<DpRank>,
    allowed: Option<Vec<u64>>,
    excluded: Vec<u64>,
    required_taints: Vec<String>,
    adapter: Option<Box<str>>,
}

impl Eligible {
    fn select(&self) -> SelectRequest<'_> {
        SelectRequest {
            pinned_worker: self.pinned_worker,
            pinned_rank: self.pinned_rank,
            allowed: self.allowed.as_deref(),
            excluded: &self.excluded,
            required_taints: &self.required_taints,
            adapter: self.adapter.as_deref(),
            ..SelectRequest::default()
        }
    }

    /// 0 for whoever goes anywhere; else the same for the same workers.
    fn lane(&self) -> u64 {
        let is_bound = self.pinned_worker.is_some()
            || self.pinned_rank.is_some()
            || self.allowed.is_some()
            || self.adapter.is_some();
        if !is_bound && self.excluded.is_empty() && self.required_taints.is_empty() {
            return 0;
        }
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        hasher.finish() | 1
    }
}

/// A request on its way into the line.
pub(super) struct Wanted {
    class: ClassId,
    who: Box<Eligible>,
    isl_tokens: usize,
    cached_tokens: usize,
}

impl Wanted {
    pub(super) fn new(select: &SelectRequest<'_>, class: ClassId, cached_tokens: usize) -> Self {
        let who = Box::new(Eligible {
            pinned_worker: select.pinned_worker,
            pinned_rank: select.pinned_rank,
            allowed: select.allowed.map(<[u64]>::to_vec),
            excluded: select.excluded.to_vec(),
            required_taints: select.required_taints.to_vec(),
            adapter: select.adapter.map(Into::into),
        });
        Self { class, who, isl_tokens: select.isl_tokens, cached_tokens }
    }
}

/// The most blocks of a prompt that one of those has who may serve it. Exclusions and taints are not looked at: it only
/// says who is next.
pub(super) fn cached_blocks(
    scheduler: &KvScheduler,
    select: &SelectRequest<'_>,
    matches: &MatchBuffer,
) -> u32 {
    let of_pinned = scheduler.candidates().iter().filter(|candidate| {
        select.pinned_worker.is_some_and(|worker_id| candidate.worker.worker_id == worker_id)
    });
    match select.pinned_worker {
        Some(_) => of_pinned.map(|candidate| matches.device_blocks(candidate.slot)).max().unwrap_or(0),
        None => matches.matches().iter().map(|found| found.device_blocks).max().unwrap_or(0),
    }
}

impl Line {
    pub(super) fn new(config: QueueConfig, now: Instant) -> Self {
        let is_used = config.is_used();
        let state = State { queue: RouterQueue::new(config.clone(), now), is_called: false };
        Self { config, is_used, state: Mutex::new(state), occupied: AtomicUsize::new(0) }
    }

    /// Whether requests of any class wait, by the configuration.
    pub(super) fn is_used(&self) -> bool {
        self.is_used
    }

    /// Whether requests of a class wait, by the configuration. Those of others go past the line.
    pub(super) fn is_used_by(&self, class: ClassId) -> bool {
        self.is_used && self.config.threshold_of(class).is_some()
    }

    /// Whether somebody is before a request that comes now.
    pub(super) fn is_occupied(&self) -> bool {
        self.occupied.load(Ordering::Relaxed) > 0
    }

    pub(super) fn depth(&self) -> QueueDepth {
        self.state.lock().queue.depth()
    }

    /// How much waits of each class, with its name.
    pub(super) fn depths(&self) -> Vec<(&str, QueueDepth)> {
        let state = self.state.lock();
        self.config.class_names().map(|(class, name)| (name, state.queue.depth_of(class))).collect()
    }

    fn with<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.state.lock();
        let result = change(&mut state);
        let occupied = state.queue.depth().requests + usize::from(state.is_called);
        self.occupied.store(occupied, Ordering::Relaxed);
        result
    }
}

/// The right to book. The next one is called when it is dropped.
pub(super) struct Turn {
    /// Empty once it was given back.
    router: Option<Arc<Router>>,
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(router) = self.router.take() {
            router.line.with(|state| state.is_called = false);
            router.call_next();
        }
    }
}

/// A place in the line, given up when it is dropped.
struct Place<'a> {
    line: &'a Line,
    ticket: Ticket,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        // It may have been called already: then its turn is in the channel, and is dropped with it.
        drop(self.line.with(|state| state.queue.remove(self.ticket)));
    }
}

impl Router {
    /// Waits for a turn, at most until the request's deadline.
    pub(super) async fn wait(
        self: &Arc<Self>,
        wanted: Wanted,
        request: &RouteRequest<'_>,
    ) -> Result<Turn, GenerateError> {
        let now = Instant::now();
        let class = wanted.class;
        let latest = now + self.line.config.max_wait_of(class);
        let deadline = request.deadline.map_or(latest, |deadline| deadline.min(latest));
        let waiting = Waiting {
            class,
            lane: wanted.who.lane(),
            strict_priority: request.strict_priority,
            priority_jump: request.priority_jump,
            isl_tokens: wanted.isl_tokens,
            cached_tokens: wanted.cached_tokens,
            deadline: Some(deadline),
        };
        let (call, called) = oneshot::channel();
        let waiter = Waiter { class, who: wanted.who, call };
        let pushed = self.line.with(|state| state.queue.push(waiting, waiter, now));
        let ticket = pushed.map_err(|(rejected, _)| {
            self.meters.rejected(class, rejected.reason());
            tracing::debug!(%rejected, class = self.line.config.class_name(class), "a request cannot wait");
            if rejected == QueueRejected::DeadlineExceeded {
                return GenerateError::QueueTimeout;
            }
            self.meters.queue_full.inc();
            GenerateError::Overloaded
        })?;
        let _place = Place { line: &self.line, ticket };
        // Somebody may have made room between the look and the place.
        self.call_next();
        let left = deadline.saturating_duration_since(now).max(Duration::from_millis(1));
        match tokio::time::timeout(left, called).await {
            Ok(Ok(turn)) => Ok(turn),
            Ok(Err(_)) => Err(GenerateError::Overloaded),
            Err(_) => {
                self.meters.rejected(class, QueueRejected::DeadlineExceeded.reason());
                Err(GenerateError::QueueTimeout)
            }
        }
    }

    /// Calls the next one who can go, if there is one and nobody is called yet. Cheap where nobody waits.
    pub(super) fn call_next(self: &Arc<Self>) {
        while self.line.is_occupied() {
            let next = self.line.with(|state| {
                if state.is_called {
                    return None;
                }
                let mut scheduler = self.scheduler.lock();
                let has_room = |waiter: &Waiter| !scheduler.must_wait(&waiter.who.select(), waiter.class);
                let next = state.queue.pop(has_room);
                state.is_called = next.is_some();
                next
            });
            let Some(waiter) = next else { return };
            match waiter.call.send(Turn { router: Some(self.clone()) }) {
                Ok(()) => return,
                // It left just now: the next one, and not from within its turn's end.
                Err(mut turn) => {
                    turn.router = None;
                    self.line.with(|state| state.is_called = false);
                }
            }
        }
    }
}
