//! What is asked of a rank, and who asked which rank.

use std::collections::VecDeque;

use dynamo_engine_api::{AbortReason, DpRank, OutputSink, RequestKey, Submission};
use parking_lot::Mutex;
use rustc_hash::FxHashMap;
use tokio::sync::Notify;

/// Asked since the rank looked last. The two sides swap it, so its memory is reused.
#[derive(Default)]
pub(crate) struct Asked {
    pub(crate) submissions: VecDeque<Submission>,
    /// Not more than there are live requests: a request is taken back once.
    pub(crate) aborts: Vec<(RequestKey, AbortReason)>,
    pub(crate) clear_cache: bool,
    pub(crate) closed: bool,
}

/// Why a submission did not get into an inbox.
pub(crate) enum Refusal {
    Full,
    Closed,
}

/// The way into a rank's task.
pub(crate) struct Inbox {
    asked: Mutex<Asked>,
    notify: Notify,
    limit: usize,
}

impl Inbox {
    /// Takes up to `limit` submissions between two looks.
    pub(crate) fn new(limit: usize) -> Self {
        Self { asked: Mutex::default(), notify: Notify::new(), limit }
    }

    /// A refusal gives the sink back.
    pub(crate) fn submit(&self, submission: Submission) -> Result<(), (Refusal, Box<dyn OutputSink>)> {
        let mut asked = self.asked.lock();
        if asked.closed {
            return Err((Refusal::Closed, submission.sink));
        }
        if asked.submissions.len() >= self.limit {
            return Err((Refusal::Full, submission.sink));
        }
        asked.submissions.push_back(submission);
        drop(asked);
        self.notify.notify_one();
        Ok(())
    }

    pub(crate) fn abort(&self, key: RequestKey, reason: AbortReason) {
        self.asked.lock().aborts.push((key, reason));
        self.notify.notify_one();
    }

    pub(crate) fn clear_cache(&self) {
        self.asked.lock().clear_cache = true;
        self.notify.notify_one();
    }

    /// Nothing is taken any more, and what waits here is given back.
    pub(crate) fn close(&self) -> VecDeque<Submission> {
        let mut asked = self.asked.lock();
        asked.closed = true;
        let waiting = std::mem::take(&mut asked.submissions);
        drop(asked);
        self.notify.notify_one();
        waiting
    }

    /// Swaps what was asked with `empty`.
    pub(crate) fn take(&self, empty: &mut Asked) {
        let mut asked = self.asked.lock();
        empty.closed = asked.closed;
        std::mem::swap(&mut *asked, empty);
    }

    /// Returns once something was asked since the last call.
    pub(crate) async fn asked(&self) {
        self.notify.notified().await;
    }

    pub(crate) fn waiting(&self) -> usize {
        self.asked.lock().submissions.len()
    }
}

/// The rank of every live request. Bounded by the inboxes and queues of the ranks.
#[derive(Default)]
pub(crate) struct Directory {
    ranks: Mutex<FxHashMap<RequestKey, (DpRank, bool)>>,
}

impl Directory {
    /// False if the key is taken.
    pub(crate) fn enter(&self, key: RequestKey, rank: DpRank) -> bool {
        let mut ranks = self.ranks.lock();
        let free = !ranks.contains_key(&key);
        if free {
            ranks.insert(key, (rank, false));
        }
        free
    }

    /// The rank of a request that was not taken back yet.
    pub(crate) fn take_back(&self, key: RequestKey) -> Option<DpRank> {
        let mut ranks = self.ranks.lock();
        let (rank, taken_back) = ranks.get_mut(&key)?;
        (!std::mem::replace(taken_back, true)).then_some(*rank)
    }

    /// Whether a request was taken back, perhaps before its rank heard of it.
    pub(crate) fn is_taken_back(&self, key: RequestKey) -> bool {
        self.ranks.lock().get(&key).is_some_and(|(_, taken_back)| *taken_back)
    }

    pub(crate) fn leave(&self, key: RequestKey) {
        self.ranks.lock().remove(&key);
    }

    pub(crate) fn leave_all(&self, rank: DpRank) {
        self.ranks.lock().retain(|_, (other, _)| *other != rank);
    }

    pub(crate) fn len(&self) -> usize {
        self.ranks.lock().len()
    }
}
