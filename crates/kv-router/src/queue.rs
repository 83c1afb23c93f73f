//! Requests that wait until a worker has room.

mod lanes;
mod policy;

use std::time::{Duration, Instant};

use lanes::{Lanes, Order};
pub use policy::{ParseQueuePolicyError, QueuePolicy};

/// Whether and how requests wait.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QueueConfig {
    /// A request waits while all ranks that may serve it have more prompt tokens outstanding than this many of their
    /// largest steps, at least 0; absent: nobody waits.
    pub threshold: Option<f64>,
    /// Who is next.
    pub policy: QueuePolicy,
    /// Requests that wait at most.
    pub max_requests: usize,
    /// Prompt tokens of requests that wait, at most: each takes some bytes.
    pub max_isl_tokens: u64,
    /// Nobody waits longer, whatever deadline it came with.
    pub max_wait: Duration,
}

impl QueueConfig {
    /// Nobody waits.
    pub const OFF: Self = Self {
        threshold: None,
        policy: QueuePolicy::Fcfs,
        // Ten seconds of the rate that one frontend serves; what waits longer than that, waits for nothing.
        max_requests: 10_000,
        // A quarter of a gigabyte of token ids.
        max_isl_tokens: 64 << 20,
        max_wait: Duration::from_secs(60),
    };
    /// The largest step of a worker that does not say, in tokens: so many that nobody waits for it.
    pub const UNKNOWN_STEP: u64 = 10_000_000;
}

/// Names a waiting request; never used again while the queue lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(u64);

/// A request that is to wait.
#[derive(Clone, Copy, Debug)]
pub struct Waiting {
    /// Requests that the same ranks may serve wait in one lane, so that one whose worker is full holds up no others. 0 is
    /// for those that any rank may serve; what numbers the rest have is the caller's affair.
    pub lane: u64,
    /// A higher one is always first.
    pub strict_priority: u32,
    /// Seconds by which it counts as come earlier, or what the policy makes of it; below 0 counts as 0.
    pub priority_jump: f64,
    /// Tokens of the prompt.
    pub isl_tokens: usize,
    /// Of those, what the rank that caches the most (of those that may serve it) has.
    pub cached_tokens: usize,
    /// When waiting is of no use any more.
    pub deadline: Option<Instant>,
}

/// Why a request cannot wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueRejected {
    /// As many wait as may.
    #[error("{0} requests are waiting for a worker, which is the limit")]
    RequestLimit(usize),
    /// As many tokens wait as may.
    #[error("requests of {0} prompt tokens are waiting for a worker, which is the limit")]
    IslTokenLimit(u64),
    /// Its time was over when it came.
    #[error("the request's time was over before it could wait")]
    DeadlineExceeded,
}

impl QueueRejected {
    /// All labels of [`Self::reason`].
    pub const REASONS: [&str; 3] = ["request_limit", "raw_isl_token_limit", "deadline_exceeded"];

    /// The label in metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::RequestLimit(_) => Self::REASONS[0],
            Self::IslTokenLimit(_) => Self::REASONS[1],
            Self::DeadlineExceeded => Self::REASONS[2],
        }
    }
}

/// How much waits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueDepth {
    /// Requests.
    pub requests: usize,
    /// Tokens of their prompts.
    pub isl_tokens: u64,
    /// Of those, tokens that some worker has cached.
    pub cached_tokens: u64,
}

/// Requests that wait, each with a `T` of the caller's: a state machine without clock or tasks.
pub struct RouterQueue<T> {
    config: QueueConfig,
    /// Arrivals count from here.
    start: Instant,
    lanes: Lanes<T>,
    next: u64,
    depth: QueueDepth,
}

impl<T> RouterQueue<T> {
    /// Nobody waits yet.
    pub fn new(config: QueueConfig, now: Instant) -> Self {
        Self { config, start: now, lanes: Lanes::default(), next: 0, depth: QueueDepth::default() }
    }

    /// Lets a request wait; gives its `T` back where it cannot.
    pub fn push(&mut self, waiting: Waiting, value: T, now: Instant) -> Result<Ticket, (QueueRejected, T)> {
        let isl_tokens = waiting.isl_tokens as u64;
        if waiting.deadline.is_some_and(|deadline| deadline <= now) {
            return Err((QueueRejected::DeadlineExceeded, value));
        }
        if self.depth.requests >= self.config.max_requests {
            return Err((QueueRejected::RequestLimit(self.config.max_requests), value));
        }
        if self.depth.isl_tokens.saturating_add(isl_tokens) > self.config.max_isl_tokens {
            return Err((QueueRejected::IslTokenLimit(self.config.max_isl_tokens), value));
        }
        let arrival = now.saturating_duration_since(self.start).as_secs_f64();
        let score = self.config.policy.score(&waiting, arrival, self.start);
        let ticket = Ticket(self.next);
        self.next += 1;
        self.lanes.insert(waiting, Order::new(waiting.strict_priority, score, ticket.0), value);
        self.depth.requests += 1;
        self.depth.isl_tokens += isl_tokens;
        self.depth.cached_tokens += waiting.cached_tokens as u64;
        Ok(ticket)
    }

    /// Takes out the first request that `admits` lets pass; asks once per lane, the foremost first.
    pub fn pop(&mut self, admits: impl FnMut(&T) -> bool) -> Option<T> {
        let (waiting, value) = self.lanes.pop(admits)?;
        self.count_out(&waiting);
        Some(value)
    }

    /// Takes out a request that is no longer wanted; `None` if it waits no more.
    pub fn remove(&mut self, ticket: Ticket) -> Option<T> {
        let (waiting, value) = self.lanes.remove(ticket.0)?;
        self.count_out(&waiting);
        Some(value)
    }

    /// Takes out a request whose deadline has passed, if there is one.
    pub fn pop_expired(&mut self, now: Instant) -> Option<T> {
        let ticket = self.lanes.first_deadline().filter(|(deadline, _)| *deadline <= now)?.1;
        self.remove(Ticket(ticket))
    }

    /// The next deadline.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.lanes.first_deadline().map(|(deadline, _)| deadline)
    }

    /// How much waits.
    pub fn depth(&self) -> QueueDepth {
        self.depth
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.depth.requests == 0
    }

    fn count_out(&mut self, waiting: &Waiting) {
        self.depth.requests -= 1;
        self.depth.isl_tokens -= waiting.isl_tokens as u64;
        self.depth.cached_tokens -= waiting.cached_tokens as u64;
    }
}

#[cfg(test)]
mod tests;
