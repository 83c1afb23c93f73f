//! Requests that wait until a worker has room.

mod classes;
mod config;
mod lanes;
mod policy;
mod turns;

use std::time::Instant;

pub use classes::{
    ClassId, ClassQuery, ClassRule, PolicyClass, PolicyClasses, PolicyFileError, UnknownClass,
};
pub use config::QueueConfig;
use lanes::{Lanes, Order};
pub use policy::{ParseQueuePolicyError, QueuePolicy};
use turns::{Offer, Turns};

/// Names a waiting request; never used again while the queue lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket {
    number: u64,
    class: ClassId,
}

/// A request that is to wait.
#[derive(Clone, Copy, Debug)]
pub struct Waiting {
    /// Its class, of the queue's configuration.
    pub class: ClassId,
    /// Requests that the same ranks may serve wait in one lane, so that one whose worker is full holds up no others. 0 is
    /// for those that any rank may serve; what numbers the rest have is the caller's affair.
    pub lane: u64,
    /// Of one class, a higher one is always first.
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

impl Waiting {
    /// What it takes of its class's share: the tokens that are to be computed, at least 1.
    fn cost(&self) -> u64 {
        self.isl_tokens.saturating_sub(self.cached_tokens).max(1) as u64
    }
}

/// Why a request cannot wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueRejected {
    /// As many wait as may.
    #[error("{0} requests of all classes or of its own are waiting for a worker, which is the limit")]
    RequestLimit(usize),
    /// As many tokens wait as may.
    #[error(
        "with it more than {0} prompt tokens would wait, of all classes or of its own, which is the limit"
    )]
    IslTokenLimit(u64),
    /// As many tokens of its class wait as may that some worker has cached.
    #[error(
        "with it more than {0} prompt tokens of its class would wait that are cached, which is the limit"
    )]
    CachedTokenLimit(u64),
    /// Its time was over when it came.
    #[error("the request's time was over before it could wait")]
    DeadlineExceeded,
}

impl QueueRejected {
    /// All labels of [`Self::reason`].
    pub const REASONS: [&str; 4] =
        ["request_limit", "raw_isl_token_limit", "deadline_exceeded", "cached_token_limit"];

    /// The label in metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::RequestLimit(_) => Self::REASONS[0],
            Self::IslTokenLimit(_) => Self::REASONS[1],
            Self::DeadlineExceeded => Self::REASONS[2],
            Self::CachedTokenLimit(_) => Self::REASONS[3],
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

impl QueueDepth {
    fn add(&mut self, waiting: &Waiting) {
        self.requests += 1;
        self.isl_tokens += waiting.isl_tokens as u64;
        self.cached_tokens += waiting.cached_tokens as u64;
    }

    fn take(&mut self, waiting: &Waiting) {
        self.requests -= 1;
        self.isl_tokens -= waiting.isl_tokens as u64;
        self.cached_tokens -= waiting.cached_tokens as u64;
    }
}

/// What waits of one class.
struct ClassQueue<T> {
    lanes: Lanes<T>,
    depth: QueueDepth,
}

/// Requests that wait, each with a `T` of the caller's: a state machine without clock or tasks.
pub struct RouterQueue<T> {
    config: QueueConfig,
    /// Arrivals count from here.
    start: Instant,
    /// By [`ClassId::index`].
    classes: Vec<ClassQueue<T>>,
    turns: Turns,
    next: u64,
    depth: QueueDepth,
}

impl<T> RouterQueue<T> {
    /// Nobody waits yet.
    pub fn new(config: QueueConfig, now: Instant) -> Self {
        let empty = |_| ClassQueue { lanes: Lanes::default(), depth: QueueDepth::default() };
        Self {
            classes: (0..config.class_count()).map(empty).collect(),
            turns: Turns::new(config.class_names().map(|(class, _)| config.quantum_of(class))),
            config,
            start: now,
            next: 0,
            depth: QueueDepth::default(),
        }
    }

    /// Lets a request wait; gives its `T` back where it cannot.
    pub fn push(
        &mut self,
        mut waiting: Waiting,
        value: T,
        now: Instant,
    ) -> Result<Ticket, (QueueRejected, T)> {
        if waiting.class.index() >= self.classes.len() {
            waiting.class = ClassId::DEFAULT;
        }
        if let Err(rejected) = self.admit(&waiting, now) {
            return Err((rejected, value));
        }
        let arrival = now.saturating_duration_since(self.start).as_secs_f64();
        let score = self.config.policy_of(waiting.class).score(&waiting, arrival, self.start);
        let ticket = Ticket { number: self.next, class: waiting.class };
        self.next += 1;
        self.depth.add(&waiting);
        let class = &mut self.classes[waiting.class.index()];
        class.depth.add(&waiting);
        class.lanes.insert(waiting, Order::new(waiting.strict_priority, score, ticket.number), value);
        Ok(ticket)
    }

    fn admit(&self, waiting: &Waiting, now: Instant) -> Result<(), QueueRejected> {
        if waiting.deadline.is_some_and(|deadline| deadline <= now) {
            return Err(QueueRejected::DeadlineExceeded);
        }
        let within = |depth: &QueueDepth, requests: Option<usize>, isl: Option<u64>, cached: Option<u64>| {
            if let Some(limit) = requests.filter(|&limit| depth.requests >= limit) {
                return Err(QueueRejected::RequestLimit(limit));
            }
            let beyond = |held: u64, more: usize, limit: &u64| held.saturating_add(more as u64) > *limit;
            if let Some(limit) = isl.filter(|limit| beyond(depth.isl_tokens, waiting.isl_tokens, limit)) {
                return Err(QueueRejected::IslTokenLimit(limit));
            }
            match cached.filter(|limit| beyond(depth.cached_tokens, waiting.cached_tokens, limit)) {
                Some(limit) => Err(QueueRejected::CachedTokenLimit(limit)),
                None => Ok(()),
            }
        };
        if let Some(class) = self.config.class(waiting.class) {
            let depth = &self.classes[waiting.class.index()].depth;
            within(depth, class.request_limit, class.raw_isl_token_limit, class.cached_token_limit)?;
        }
        within(&self.depth, Some(self.config.max_requests), Some(self.config.max_isl_tokens), None)
    }

    /// Takes out the request whose turn it is: of the class whose turn it is, the first that `admits` lets pass. Asks once
    /// per class and lane, the foremost first.
    pub fn pop(&mut self, mut admits: impl FnMut(&T) -> bool) -> Option<T> {
        let classes = &self.classes;
        let (class, offer) = self.turns.next(|class| {
            let (ticket, waiting) = classes[class].lanes.first(&mut admits)?;
            Some(Offer { ticket, cost: waiting.cost() })
        })?;
        self.remove(Ticket { number: offer.ticket, class: ClassId::new(class) })
    }

    /// Takes out a request that is no longer wanted; `None` if it waits no more.
    pub fn remove(&mut self, ticket: Ticket) -> Option<T> {
        let place = ticket.class.index();
        let class = self.classes.get_mut(place)?;
        let (waiting, value) = class.lanes.remove(ticket.number)?;
        class.depth.take(&waiting);
        self.depth.take(&waiting);
        if class.depth.requests == 0 {
            self.turns.ran_out(place);
        }
        Some(value)
    }

    /// Takes out a request whose deadline has passed, if there is one.
    pub fn pop_expired(&mut self, now: Instant) -> Option<T> {
        let (_, ticket) = self.first_deadline().filter(|(deadline, _)| *deadline <= now)?;
        self.remove(ticket)
    }

    /// The next deadline.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.first_deadline().map(|(deadline, _)| deadline)
    }

    fn first_deadline(&self) -> Option<(Instant, Ticket)> {
        let firsts = self.classes.iter().enumerate().filter_map(|(class, queue)| {
            let (deadline, number) = queue.lanes.first_deadline()?;
            Some((deadline, Ticket { number, class: ClassId::new(class) }))
        });
        firsts.min()
    }

    /// How much waits.
    pub fn depth(&self) -> QueueDepth {
        self.depth
    }

    /// How much waits of one class.
    pub fn depth_of(&self, class: ClassId) -> QueueDepth {
        self.classes.get(class.index()).map_or_else(QueueDepth::default, |class| class.depth)
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.depth.requests == 0
    }

    #[cfg(test)]
    fn is_spotless(&self) -> bool {
        self.turns.is_spotless() && self.classes.iter().all(|class| class.lanes.is_spotless())
    }
}

#[cfg(test)]
mod tests;
