//! What the router knows of the workers' caches: what they say, and what it sent to them.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use dynamo_kv_router::{CachePolicy, IndexCounts, RankMatches, SentPrompts, WorkerRank};
use dynamo_runtime::TaskScope;
use dynamo_tokens::{LocalBlockHash, SequenceHash};
use tokio::time::MissedTickBehavior;

use super::{IndexPlace, RemoteIndex, Router, RouterConfig, Scratch, millis};

/// How often what was sent long ago is forgotten: what is sent counts for so much longer than its time at most.
const FORGET_PERIOD: Duration = Duration::from_millis(100);
/// Blocks that are forgotten at once: some 100 µs, in which nobody is routed.
const FORGET_STEP: usize = 2048;

/// The memory of what is sent, where the configuration asks for it.
pub(super) fn memory(config: &RouterConfig) -> Option<SentPrompts> {
    let memory = config.kv.caches.sent().filter(|_| config.uses_caches())?;
    Some(SentPrompts::new(*memory))
}

/// What says who has cached a prompt.
pub(crate) enum MatchSource {
    /// The router's own index, which events of the workers fill.
    Events,
    /// An index in another process.
    Remote(RemoteIndex),
    /// Nothing: caches do not matter, or what was sent there is all that is known.
    Nothing,
}

impl MatchSource {
    /// What the configuration asks for; `remote` makes an index in another process.
    pub(crate) fn new(config: &RouterConfig, remote: impl FnOnce() -> RemoteIndex) -> Self {
        if !config.uses_caches() || !config.kv.caches.uses_events() {
            return Self::Nothing;
        }
        match config.index_place {
            IndexPlace::Own | IndexPlace::Served => Self::Events,
            IndexPlace::Elsewhere => Self::Remote(remote()),
        }
    }
}

impl Router {
    /// Whether workers' KV events are of any use to it.
    pub(crate) fn wants_events(&self) -> bool {
        matches!(self.source, MatchSource::Events)
    }

    /// Finds out who has the prompt that was hashed. Waits only where the index is in another process; if that one gives no
    /// answer, what was found before stays.
    pub(super) async fn find_matches(&self, scratch: &mut Scratch) {
        let start = Instant::now();
        match &self.source {
            MatchSource::Events => self.index.find_matches(&scratch.local, &mut scratch.matches),
            MatchSource::Remote(remote) => {
                if let Some(answer) = remote.ask(&scratch.local).await
                    && let Err(error) = self.index.find_ranks(&answer, &mut scratch.matches)
                {
                    tracing::warn!(%error, "the answer of a served index is of no use");
                }
            }
            MatchSource::Nothing => {}
        }
        match (&self.source, &self.sent) {
            (MatchSource::Nothing, None) => return,
            (MatchSource::Nothing, Some(sent)) => {
                sent.read().find_matches(&scratch.sequence, &mut scratch.path, &mut scratch.matches);
            }
            (_, Some(sent)) => {
                sent.read().find_matches(&scratch.sequence, &mut scratch.path, &mut scratch.sent);
                scratch.matches.raise(&scratch.sent);
            }
            (_, None) => {}
        }
        self.meters.find_matches.observe(millis(start.elapsed()));
    }

    /// Adds what each rank has of a prompt, by the index alone, for a router in another process.
    pub(crate) fn tell_matches(&self, blocks: &[LocalBlockHash], out: &mut RankMatches) {
        let mut scratch = self.scratch.lock().pop().unwrap_or_default();
        self.index.find_matches(blocks, &mut scratch.matches);
        self.index.name_ranks(&scratch.matches, out);
        self.keep(scratch);
    }

    /// A prompt goes to a worker. It counts there from now on, also if the worker refuses it: that happens seldom, and is
    /// forgotten with the rest.
    pub(super) fn remember_sent(&self, worker: WorkerRank, sequence: &[SequenceHash], now: Instant) {
        if let Some(sent) = &self.sent {
            sent.write().sent(worker, sequence, now);
        }
    }

    /// How much is remembered of what was sent.
    pub(crate) fn sent_counts(&self) -> IndexCounts {
        self.sent.as_ref().map_or_else(IndexCounts::default, |sent| sent.read().counts())
    }

    /// Whether what was sent is forgotten after a time.
    pub(crate) fn forgets_sent(&self) -> bool {
        let memory = self.config.kv.caches.sent();
        self.sent.is_some() && memory.is_some_and(|memory| memory.policy == CachePolicy::Ttl)
    }

    /// Forgets what was sent long ago, until the scope is cancelled.
    pub(crate) async fn forget_sent(self: Arc<Self>, scope: TaskScope) {
        let Some(sent) = &self.sent else { return };
        let mut tick = tokio::time::interval(FORGET_PERIOD);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = scope.cancelled() => return,
                _ = tick.tick() => {}
            }
            while sent.write().expire(Instant::now(), FORGET_STEP) {
                tokio::task::yield_now().await;
            }
        }
    }
}

#[cfg(test)]
mod tests;
