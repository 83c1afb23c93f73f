//! The engine's handle.

use std::pin::Pin;
use std::sync::Arc;

use dynamo_engine_api::{
    AbortReason, DpRank, Engine, EngineObserver, PreprocessedRequest, Refused, RequestKey, Submission,
};
use dynamo_scheduler::{Scheduler, SubmitError};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::inbox::{Directory, Inbox, Refusal};
use crate::rank::{Rank, Shared};
use crate::stream::{refused_by, shut_down};
use crate::{MockConfigError, MockStats, MockerConfig, SimPool};

/// The task of one rank, to be spawned on a tokio runtime with its timer on.
pub type RankTask = Pin<Box<dyn Future<Output = ()> + Send + 'static>>;

/// A simulated engine. Dropping it ends its tasks, and its requests without another output.
pub struct MockEngine {
    config: Arc<MockerConfig>,
    ranks: Vec<Arc<Shared>>,
    directory: Arc<Directory>,
    ready_at: Instant,
}

impl MockEngine {
    /// Hands one task per rank to `spawn`. The engine takes requests at once, and serves them after the start-up time.
    pub fn start(
        config: MockerConfig,
        observer: Arc<dyn EngineObserver>,
        mut spawn: impl FnMut(RankTask),
    ) -> Result<Self, MockConfigError> {
        config.validate()?;
        let block_size = config.block_size().ok_or(MockConfigError::Zero("block_size"))?;
        let config = Arc::new(config);
        let directory = Arc::new(Directory::default());
        let origin = Instant::now();
        let mut ranks = Vec::new();
        for dp_rank in 0..config.data_parallel_size {
            let mut pool = SimPool::new(block_size, config.num_gpu_blocks, config.enable_prefix_caching);
            pool.set_transfer_time(config.transfer_time());
            let scheduler = Scheduler::new(config.scheduler(), pool)?;
            let shared = Arc::new(Shared {
                inbox: Inbox::new(config.max_waiting as usize),
                stats: Mutex::new(MockStats {
                    total_blocks: u64::from(config.num_gpu_blocks),
                    ..MockStats::default()
                }),
            });
            let parts =
                (Arc::clone(&config), Arc::clone(&shared), Arc::clone(&directory), Arc::clone(&observer));
            let rank = Rank::new(dp_rank, parts.0, scheduler, parts.1, parts.2, parts.3, origin);
            spawn(Box::pin(rank.run()));
            ranks.push(shared);
        }
        let ready_at = origin + config.startup();
        Ok(Self { config, ranks, directory, ready_at })
    }

    /// Returns when the start-up time is over.
    pub async fn ready(&self) {
        tokio::time::sleep_until(self.ready_at).await;
    }

    /// What it was started with.
    pub fn config(&self) -> &MockerConfig {
        &self.config
    }

    /// Gauges over all ranks.
    pub fn stats(&self) -> MockStats {
        let mut sum = MockStats { live: self.directory.len() as u64, ..MockStats::default() };
        for shared in &self.ranks {
            sum += stats_of(shared);
        }
        sum
    }

    /// Gauges of one rank, without the live requests; `None` if there is no such rank.
    pub fn rank_stats(&self, dp_rank: DpRank) -> Option<MockStats> {
        self.ranks.get(dp_rank as usize).map(|shared| stats_of(shared))
    }
}

impl MockEngine {
    /// What the scheduler would refuse, found before the request is accepted. The rank looks again: its queue may fill up
    /// in between.
    fn check(&self, dp_rank: DpRank, request: &PreprocessedRequest) -> Result<&Shared, Refused> {
        let Some(shared) = self.ranks.get(dp_rank as usize) else {
            let ranks = self.ranks.len();
            let why = format!("there is no rank {dp_rank}: this worker has {ranks}");
            return Err(Refused::Unavailable(why));
        };
        let (prompt, limit) = (request.token_ids.len(), self.config.max_prompt());
        if prompt == 0 {
            return Err(refused_by(&SubmitError::EmptyPrompt));
        }
        if prompt > limit {
            return Err(refused_by(&SubmitError::PromptTooLong { prompt, limit }));
        }
        if request.stop_conditions.max_tokens == Some(0) {
            return Err(refused_by(&SubmitError::NothingAsked));
        }
        if stats_of(shared).waiting >= u64::from(self.config.max_waiting) {
            return Err(self.queue_full());
        }
        Ok(shared)
    }

    fn queue_full(&self) -> Refused {
        refused_by(&SubmitError::QueueFull { limit: self.config.max_waiting as usize })
    }
}

fn stats_of(shared: &Shared) -> MockStats {
    let mut stats = *shared.stats.lock();
    stats.waiting += shared.inbox.waiting() as u64;
    stats
}

impl Engine for MockEngine {
    fn submit(&self, mut submission: Submission) {
        let (key, dp_rank) = (submission.key, submission.dp_rank);
        let shared = match self.check(dp_rank, &submission.request) {
            Ok(shared) => shared,
            Err(refused) => return submission.sink.refuse(refused),
        };
        if !self.directory.enter(key, dp_rank) {
            let why = format!("request {} is live already", key.0);
            return submission.sink.refuse(Refused::Unavailable(why));
        }
        if let Err((refusal, mut sink)) = shared.inbox.submit(submission) {
            self.directory.leave(key);
            sink.refuse(match refusal {
                Refusal::Full => self.queue_full(),
                Refusal::Closed => shut_down(),
            });
        }
    }

    fn abort(&self, key: RequestKey, reason: AbortReason) {
        if let Some(dp_rank) = self.directory.take_back(key) {
            self.ranks[dp_rank as usize].inbox.abort(key, reason);
        }
    }

    fn clear_cache(&self) {
        for shared in &self.ranks {
            shared.inbox.clear_cache();
        }
    }
}

impl Drop for MockEngine {
    fn drop(&mut self) {
        for shared in &self.ranks {
            for mut submission in shared.inbox.close() {
                submission.sink.refuse(shut_down());
            }
        }
    }
}
