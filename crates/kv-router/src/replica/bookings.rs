//! What other routers have running.

use std::time::{Duration, Instant};

use rustc_hash::FxHashMap;

use super::{ActiveSequenceChange, ActiveSequenceEvent};
use crate::{KvScheduler, ReservationId, WorkerBooking};

/// How often names of requests that expired are swept out.
const SWEEP: Duration = Duration::from_secs(30);

/// What became of another router's event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplicaOutcome {
    /// It is counted.
    Applied,
    /// It is this router's own.
    Own,
    /// Its worker is not known here, or not yet.
    UnknownWorker,
    /// Its request is not known: it came before this router did, or has expired.
    UnknownRequest,
    /// Its request is known already.
    Duplicate,
    /// There is no room for more.
    Full,
}

impl ReplicaOutcome {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Applied, Self::Own, Self::UnknownWorker, Self::UnknownRequest, Self::Duplicate, Self::Full];

    /// The label in metrics.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::Own => "own",
            Self::UnknownWorker => "unknown_worker",
            Self::UnknownRequest => "unknown_request",
            Self::Duplicate => "duplicate",
            Self::Full => "full",
        }
    }
}

/// The names under which other routers speak of what a [`KvScheduler`] counts for them. It has no more than the scheduler
/// counts, and for [`SWEEP`] those that expired.
pub struct ReplicaBookings {
    router_id: u64,
    /// By router and request.
    bookings: FxHashMap<u64, FxHashMap<Box<str>, ReservationId>>,
    swept: Instant,
}

impl ReplicaBookings {
    /// `router_id` is this router's own.
    pub fn new(router_id: u64, now: Instant) -> Self {
        Self { router_id, bookings: FxHashMap::default(), swept: now }
    }

    /// Counts what another router says. What is counted so is never published again.
    pub fn apply(
        &mut self,
        event: &ActiveSequenceEvent,
        scheduler: &mut KvScheduler,
        now: Instant,
    ) -> ReplicaOutcome {
        if event.router_id == self.router_id {
            return ReplicaOutcome::Own;
        }
        let known = self.bookings.get(&event.router_id).and_then(|of| of.get(&*event.request_id)).copied();
        match &event.data {
            ActiveSequenceChange::AddRequest {
                token_sequence,
                track_prefill_tokens,
                expected_output_tokens,
                prefill_load_hint,
            } => {
                if known.is_some_and(|id| scheduler.is_active(id)) {
                    return ReplicaOutcome::Duplicate;
                }
                let prefill_tokens =
                    prefill_load_hint.map_or(0, |hint| hint.initial_effective_prefill_tokens);
                let booking = WorkerBooking {
                    worker: event.worker,
                    prompt_blocks: token_sequence.as_deref().unwrap_or_default(),
                    prefill_tokens: if *track_prefill_tokens { prefill_tokens } else { 0 },
                    expected_output_tokens: *expected_output_tokens,
                };
                match scheduler.book(&booking, now) {
                    Err(_) => ReplicaOutcome::Full,
                    Ok(None) => ReplicaOutcome::UnknownWorker,
                    Ok(Some(id)) => {
                        let of_router = self.bookings.entry(event.router_id).or_default();
                        of_router.insert(event.request_id.as_str().into(), id);
                        ReplicaOutcome::Applied
                    }
                }
            }
            ActiveSequenceChange::MarkPrefillCompleted => match known {
                Some(id) if scheduler.is_active(id) => {
                    scheduler.mark_prefill_completed(id, now);
                    ReplicaOutcome::Applied
                }
                _ => ReplicaOutcome::UnknownRequest,
            },
            ActiveSequenceChange::Free => {
                if let Some(of_router) = self.bookings.get_mut(&event.router_id) {
                    of_router.remove(&*event.request_id);
                    if of_router.is_empty() {
                        self.bookings.remove(&event.router_id);
                    }
                }
                match known {
                    Some(id) if scheduler.free(id, now) => ReplicaOutcome::Applied,
                    _ => ReplicaOutcome::UnknownRequest,
                }
            }
        }
    }

    /// Frees all that a router has running, which is gone; returns how many.
    pub fn forget_router(&mut self, router_id: u64, scheduler: &mut KvScheduler, now: Instant) -> usize {
        let gone = self.bookings.remove(&router_id).unwrap_or_default();
        gone.into_values().filter(|&id| scheduler.free(id, now)).count()
    }

    /// Forgets the names of what the scheduler counts no more. Cheap: call it whenever the scheduler expires.
    pub fn sweep(&mut self, scheduler: &KvScheduler, now: Instant) {
        if now < self.swept + SWEEP {
            return;
        }
        self.swept = now;
        self.bookings.retain(|_, of_router| {
            of_router.retain(|_, id| scheduler.is_active(*id));
            !of_router.is_empty()
        });
    }

    /// Requests of others by name, expired ones perhaps included.
    pub fn len(&self) -> usize {
        self.bookings.values().map(FxHashMap::len).sum()
    }

    /// Whether no request of another router is known.
    pub fn is_empty(&self) -> bool {
        self.bookings.is_empty()
    }
}
