//! The engine's handle.

use std::pin::Pin;
use std::sync::Arc;

use dynamo_engine_api::{AbortReason, DpRank, Engine, EngineObserver, RequestKey, Submission};
use dynamo_scheduler::Scheduler;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::inbox::{Directory, Inbox, Refusal};
use crate::rank::{Rank, Shared};
use crate::stream::refuse;
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
            let pool = SimPool::new(block_size, config.num_gpu_blocks, config.enable_prefix_caching);
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

fn stats_of(shared: &Shared) -> MockStats {
    let mut stats = *shared.stats.lock();
    stats.waiting += shared.inbox.waiting() as u64;
    stats
}

impl Engine for MockEngine {
    fn submit(&self, mut submission: Submission) {
        let (key, dp_rank) = (submission.key, submission.dp_rank);
        let Some(shared) = self.ranks.get(dp_rank as usize) else {
            let ranks = self.ranks.len();
            return refuse(
                &mut *submission.sink,
                format!("there is no rank {dp_rank}: this worker has {ranks}"),
            );
        };
        if !self.directory.enter(key, dp_rank) {
            return refuse(&mut *submission.sink, format!("request {} is live already", key.0));
        }
        if let Err((refusal, mut sink)) = shared.inbox.submit(submission) {
            self.directory.leave(key);
            let why = match refusal {
                Refusal::Full => {
                    format!("{} requests are waiting already, which is the limit", self.config.max_waiting)
                }
                Refusal::Closed => "the engine has shut down: send the request to another worker".into(),
            };
            refuse(&mut *sink, why);
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
                refuse(
                    &mut *submission.sink,
                    "the engine has shut down: send the request to another worker".into(),
                );
            }
        }
    }
}
