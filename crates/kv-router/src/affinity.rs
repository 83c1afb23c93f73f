//! Sessions that stay with their worker.

use std::{
    collections::BTreeMap,
    str::FromStr,
    sync::Arc,
    time::{Duration, Instant},
};

use rustc_hash::FxHashMap;

use crate::{WorkerId, WorkerRank};

/// How strictly a session stays with its worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AffinityMode {
    /// As long as the worker is there.
    #[default]
    Hard,
    /// As long as the worker takes requests at once.
    Soft,
}

impl FromStr for AffinityMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.to_ascii_lowercase().as_str() {
            "hard" => Ok(Self::Hard),
            "soft" => Ok(Self::Soft),
            _ => Err("use hard or soft".to_owned()),
        }
    }
}

/// The settings of session affinity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AffinityConfig {
    /// A session that sends nothing for so long is forgotten; at least a second.
    pub ttl: Duration,
    /// How strictly sessions stay.
    pub mode: AffinityMode,
}

/// Bytes of a session's name at most; a longer one is no session.
pub const MAX_SESSION_ID: usize = 256;
/// Sessions that are remembered at most, those that were silent longest are forgotten first: some 50 MB with the longest
/// names.
const MAX_SESSIONS: usize = 100_000;

struct Session {
    worker: WorkerRank,
    last_use: Instant,
    /// Its place in the order of use.
    turn: u64,
}

/// Which session is where.
pub struct SessionTable {
    config: AffinityConfig,
    limit: usize,
    sessions: FxHashMap<Arc<str>, Session>,
    /// By turn, the one that was used longest ago first.
    order: BTreeMap<u64, Arc<str>>,
    next_turn: u64,
}

impl SessionTable {
    /// No sessions yet.
    pub fn new(config: AffinityConfig) -> Self {
        Self {
            config,
            limit: MAX_SESSIONS,
            sessions: FxHashMap::default(),
            order: BTreeMap::new(),
            next_turn: 0,
        }
    }

    /// How strictly sessions stay.
    pub fn mode(&self) -> AffinityMode {
        self.config.mode
    }

    /// Where a session is; one that is new is where its parent is.
    pub fn worker(&self, session: &str, parent: Option<&str>, now: Instant) -> Option<WorkerRank> {
        let alive =
            |name: &str| self.sessions.get(name).filter(|session| now < session.last_use + self.config.ttl);
        alive(session).or_else(|| alive(parent?)).map(|session| session.worker)
    }

    /// A request of the session went to a worker.
    pub fn bind(&mut self, session: &str, worker: WorkerRank, now: Instant) {
        if session.is_empty() || session.len() > MAX_SESSION_ID {
            return;
        }
        self.forget(session);
        if self.sessions.len() >= self.limit
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.sessions.remove(&oldest);
        }
        let name: Arc<str> = session.into();
        self.order.insert(self.next_turn, name.clone());
        self.sessions.insert(name, Session { worker, last_use: now, turn: self.next_turn });
        self.next_turn += 1;
    }

    /// The session is over.
    pub fn forget(&mut self, session: &str) {
        if let Some(session) = self.sessions.remove(session) {
            self.order.remove(&session.turn);
        }
    }

    /// Forgets all sessions of a worker that is gone.
    pub fn forget_worker(&mut self, worker_id: WorkerId) {
        self.sessions.retain(|_, session| {
            let keeps = session.worker.worker_id != worker_id;
            if !keeps {
                self.order.remove(&session.turn);
            }
            keeps
        });
    }

    /// Forgets sessions that were silent for too long; returns how many. Cheap: look every second or so.
    pub fn expire(&mut self, now: Instant) -> usize {
        let before = self.sessions.len();
        while let Some(oldest) = self.order.first_entry() {
            let is_over = |session: &Session| now >= session.last_use + self.config.ttl;
            if !self.sessions.get(oldest.get()).is_none_or(is_over) {
                break;
            }
            self.sessions.remove(&oldest.remove());
        }
        before - self.sessions.len()
    }

    /// Sessions that are remembered.
    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Whether none is remembered.
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> SessionTable {
        SessionTable::new(AffinityConfig { ttl: Duration::from_secs(10), mode: AffinityMode::Hard })
    }

    fn worker(worker_id: WorkerId) -> WorkerRank {
        WorkerRank { worker_id, dp_rank: 0 }
    }

    #[test]
    fn a_session_stays_until_it_is_silent_too_long() {
        let (mut table, start) = (table(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        table.bind("a", worker(1), start);
        table.bind("b", worker(2), at(5));
        table.bind("a", worker(3), at(9));
        assert_eq!(table.worker("a", None, at(18)), Some(worker(3)));
        assert_eq!(table.worker("b", None, at(15)), None, "silent for ten seconds");
        assert_eq!((table.expire(at(15)), table.len()), (1, 1));
        table.forget("a");
        assert!(table.is_empty() && table.order.is_empty());
    }

    #[test]
    fn a_new_session_is_where_its_parent_is() {
        let (mut table, now) = (table(), Instant::now());
        table.bind("parent", worker(4), now);
        assert_eq!(table.worker("child", Some("parent"), now), Some(worker(4)));
        table.bind("child", worker(5), now);
        assert_eq!(table.worker("child", Some("parent"), now), Some(worker(5)));
        table.forget_worker(4);
        assert_eq!((table.worker("parent", None, now), table.order.len()), (None, 1));
    }

    #[test]
    fn the_session_that_was_silent_longest_makes_room() {
        let (mut table, now) = (SessionTable { limit: 2, ..table() }, Instant::now());
        for (name, id) in [("a", 1), ("b", 2), ("a", 1), ("c", 3)] {
            table.bind(name, worker(id), now);
        }
        assert_eq!((table.worker("b", None, now), table.len()), (None, 2));
        assert_eq!(table.worker("a", None, now), Some(worker(1)));
        table.bind(&"x".repeat(MAX_SESSION_ID + 1), worker(9), now);
        assert_eq!(table.len(), 2, "too long a name is no session");
    }
}
