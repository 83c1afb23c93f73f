//! The order of one rank's events, as its router sees it: were events lost, and how to get them back.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use dynamo_engine_api::{DpRank, KvCacheEventData, StorageTier};

use crate::{KvQuery, KvQueryAnswer, RankEvent};

/// Events that wait for a recovery at most: as many as the worker keeps, for a longer wait ends in a dump anyway. When
/// it is full the oldest goes, and will be asked for again.
pub const MAX_HELD_EVENTS: usize = crate::LOCAL_EVENT_BUFFER;

/// How hard to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecoveryPolicy {
    /// Tries after the first one.
    pub max_retries: u32,
    /// The wait before the first retry; each further one waits twice as long.
    pub initial_backoff: Duration,
    /// How long to wait for an answer.
    pub attempt_timeout: Duration,
}

impl RecoveryPolicy {
    /// The reference's values.
    pub const REFERENCE: Self = Self {
        max_retries: 8,
        initial_backoff: Duration::from_millis(200),
        attempt_timeout: Duration::from_secs(30),
    };
}

/// A question to send to the worker. At most one is out at a time; its outcome goes to [`EventOrder::answered`] or
/// [`EventOrder::failed`], with the token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecoveryRequest {
    /// Names the question; outcomes of others are ignored.
    pub token: u64,
    /// The question.
    pub query: KvQuery,
    /// Send it then.
    pub not_before: Instant,
    /// Count it as failed after this long without an answer.
    pub timeout: Duration,
}

/// What to do about an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observed {
    /// It is the next one: apply it.
    Apply(RankEvent),
    /// Events before it are missing. It is held; ask for them.
    Recover(RecoveryRequest),
    /// It is held until the question that is out is answered.
    Held,
    /// Nothing.
    Drop(DropReason),
}

/// Why an event counts for nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// It was applied or is held already.
    Stale,
    /// It comes from an earlier incarnation of the worker.
    StaleEpoch,
}

/// What to do about the outcome of a question.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    /// Forget what the rank held before applying the events.
    pub replace: bool,
    /// To be applied in order, each on its tier.
    pub events: Vec<(StorageTier, KvCacheEventData)>,
    /// Ask on.
    pub next: Option<RecoveryRequest>,
    /// All tries failed: events are missing for good, until a dump replaces what is there.
    pub gave_up: bool,
}

#[derive(Clone, Copy)]
struct Outstanding {
    token: u64,
    query: KvQuery,
    retries: u32,
}

/// The state of one (worker, rank). It starts without knowing anything: ask for a dump with [`Self::request_dump`].
pub struct EventOrder {
    dp_rank: DpRank,
    epoch: u64,
    policy: RecoveryPolicy,
    /// The last event that was applied; `None` before the first one or a dump.
    last: Option<u64>,
    outstanding: Option<Outstanding>,
    next_token: u64,
    /// Ids ascend; holes are possible.
    held: VecDeque<RankEvent>,
    overflowed: u64,
}

impl EventOrder {
    /// A rank of a worker in an incarnation.
    pub fn new(dp_rank: DpRank, epoch: u64, policy: RecoveryPolicy) -> Self {
        Self {
            dp_rank,
            epoch,
            policy,
            last: None,
            outstanding: None,
            next_token: 0,
            held: VecDeque::new(),
            overflowed: 0,
        }
    }

    /// The incarnation whose events count.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The last event that was applied, if any was.
    pub fn last_event_id(&self) -> Option<u64> {
        self.last
    }

    /// Whether a question is out, so that the index may lack something.
    pub fn is_recovering(&self) -> bool {
        self.outstanding.is_some()
    }

    /// Events that were pushed out of the full buffer.
    pub fn overflowed_events(&self) -> u64 {
        self.overflowed
    }

    /// Judges an event. A higher epoch starts anew: what the index had of the rank is void, which
    /// [`crate::KvIndex::apply`] sees to.
    pub fn observe(&mut self, epoch: u64, event: RankEvent, now: Instant) -> Observed {
        if epoch < self.epoch {
            return Observed::Drop(DropReason::StaleEpoch);
        }
        if epoch > self.epoch {
            self.renew(epoch);
        }
        let id = event.event_id;
        let known = self.held.back().map(|held| held.event_id).max(self.last);
        if known.is_some_and(|known| id <= known) {
            return Observed::Drop(DropReason::Stale);
        }
        // A clear voids whatever is missing before it, and the first event of all has none before it.
        let needs_nothing = event.clears_all() || (self.last.is_none() && id == 1);
        if needs_nothing {
            self.outstanding = None;
            self.held.clear();
        }
        if self.outstanding.is_some() {
            self.hold(event);
            return Observed::Held;
        }
        if needs_nothing || self.last.is_some_and(|last| id == last + 1) {
            self.last = Some(id);
            return Observed::Apply(event);
        }
        self.hold(event);
        let query = self.query_for(id);
        Observed::Recover(self.ask(query, 0, now))
    }

    /// Asks for all that the rank holds: when a worker appears, or when the index found that it lost something.
    /// `None` while a question is out.
    pub fn request_dump(&mut self, now: Instant) -> Option<RecoveryRequest> {
        let query = self.dump_query();
        self.outstanding.is_none().then(|| self.ask(query, 0, now))
    }

    /// The worker answered.
    pub fn answered(&mut self, token: u64, answer: KvQueryAnswer, now: Instant) -> Recovered {
        let Some(asked) = self.take_outstanding(token) else { return Recovered::default() };
        let mut recovered = Recovered::default();
        let before = self.last;
        match answer {
            KvQueryAnswer::Events { events, .. } => {
                for event in events {
                    if self.last.is_some_and(|last| event.event_id == last + 1) {
                        self.last = Some(event.event_id);
                        recovered.events.push(change(event));
                    }
                }
            }
            KvQueryAnswer::TreeDump { events, last_event_id } => {
                recovered.replace = true;
                recovered.events.extend(events.into_iter().map(change));
                self.last = Some(last_event_id);
            }
            KvQueryAnswer::TooNew { .. } | KvQueryAnswer::InvalidRange { .. } => {}
        }
        self.apply_held(&mut recovered.events);
        if let Some(first) = self.held.front().map(|event| event.event_id) {
            if self.last > before {
                let query = self.query_for(first);
                recovered.next = Some(self.ask(query, asked.retries, now));
            } else {
                // The worker does not have what it sent: only all that it has can help.
                self.retry(Outstanding { query: self.dump_query(), ..asked }, &mut recovered, now);
            }
        } else if self.last.is_none() {
            self.retry(Outstanding { query: self.dump_query(), ..asked }, &mut recovered, now);
        }
        recovered
    }

    /// No answer came, or none that could be read.
    pub fn failed(&mut self, token: u64, now: Instant) -> Recovered {
        let mut recovered = Recovered::default();
        if let Some(asked) = self.take_outstanding(token) {
            self.retry(asked, &mut recovered, now);
        }
        recovered
    }

    fn renew(&mut self, epoch: u64) {
        self.epoch = epoch;
        self.last = None;
        self.outstanding = None;
        self.held.clear();
    }

    fn hold(&mut self, event: RankEvent) {
        if self.held.len() == MAX_HELD_EVENTS {
            self.held.pop_front();
            self.overflowed += 1;
        }
        self.held.push_back(event);
    }

    fn dump_query(&self) -> KvQuery {
        KvQuery { dp_rank: self.dp_rank, start_event_id: None, end_event_id: None }
    }

    /// Asks for what lies between the last applied event and `got`.
    fn query_for(&self, got: u64) -> KvQuery {
        match self.last {
            Some(last) => {
                KvQuery { dp_rank: self.dp_rank, start_event_id: Some(last + 1), end_event_id: Some(got - 1) }
            }
            None => self.dump_query(),
        }
    }

    fn ask(&mut self, query: KvQuery, retries: u32, not_before: Instant) -> RecoveryRequest {
        self.next_token += 1;
        let token = self.next_token;
        self.outstanding = Some(Outstanding { token, query, retries });
        RecoveryRequest { token, query, not_before, timeout: self.policy.attempt_timeout }
    }

    fn take_outstanding(&mut self, token: u64) -> Option<Outstanding> {
        self.outstanding.take_if(|outstanding| outstanding.token == token)
    }

    fn retry(&mut self, asked: Outstanding, recovered: &mut Recovered, now: Instant) {
        if asked.retries < self.policy.max_retries {
            let backoff = self.policy.initial_backoff * 2u32.saturating_pow(asked.retries);
            recovered.next = Some(self.ask(asked.query, asked.retries + 1, now + backoff));
            return;
        }
        recovered.gave_up = true;
        if let Some(newest) = self.held.back() {
            self.last = Some(newest.event_id);
        }
        recovered.events.extend(self.held.drain(..).map(change));
    }

    fn apply_held(&mut self, events: &mut Vec<(StorageTier, KvCacheEventData)>) {
        let Some(mut last) = self.last else { return };
        while let Some(event) = self.held.pop_front_if(|event| event.event_id <= last + 1) {
            if event.event_id == last + 1 {
                last += 1;
                events.push(change(event));
            }
        }
        self.last = Some(last);
    }
}

fn change(event: RankEvent) -> (StorageTier, KvCacheEventData) {
    (event.storage_tier, event.data)
}

#[cfg(test)]
mod tests;
