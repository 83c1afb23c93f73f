//! What the router knows of the workers' caches: what they say, and what it sent to them.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use dynamo_kv_router::{CachePolicy, IndexCounts, SentPrompts, WorkerRank};
use dynamo_runtime::TaskScope;
use dynamo_tokens::SequenceHash;
use tokio::time::MissedTickBehavior;

use super::{Router, RouterConfig, RouterMode, Scratch, millis};

/// How often what was sent long ago is forgotten: what is sent counts for so much longer than its time at most.
const FORGET_PERIOD: Duration = Duration::from_millis(100);
/// Blocks that are forgotten at once: some 100 µs, in which nobody is routed.
const FORGET_STEP: usize = 2048;

/// The memory of what is sent, where the configuration asks for it.
pub(super) fn memory(config: &RouterConfig) -> Option<SentPrompts> {
    let memory = config.kv.caches.sent().filter(|_| uses_caches(config))?;
    Some(SentPrompts::new(*memory))
}

fn uses_caches(config: &RouterConfig) -> bool {
    config.mode == RouterMode::Kv && config.kv.uses_caches()
}

impl Router {
    /// Whether workers' KV events are of any use to it.
    pub(crate) fn wants_events(&self) -> bool {
        uses_caches(&self.config) && self.config.kv.caches.uses_events()
    }

    /// Finds out who has the prompt that was hashed.
    pub(super) fn find_matches(&self, scratch: &mut Scratch) {
        let start = Instant::now();
        if self.wants_events() {
            self.index.find_matches(&scratch.local, &mut scratch.matches);
            if let Some(sent) = &self.sent {
                sent.read().find_matches(&scratch.sequence, &mut scratch.path, &mut scratch.sent);
                scratch.matches.raise(&scratch.sent);
            }
        } else if let Some(sent) = &self.sent {
            sent.read().find_matches(&scratch.sequence, &mut scratch.path, &mut scratch.matches);
        } else {
            return;
        }
        self.meters.find_matches.observe(millis(start.elapsed()));
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
