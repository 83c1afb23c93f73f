//! Ranks of which the index turned out to lack something.

use std::collections::BTreeSet;

use dynamo_kv_router::WorkerRank;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// Filled by the lanes that apply events, emptied by whoever asks workers for dumps. No more than there are ranks.
#[derive(Default)]
pub(crate) struct LostRanks {
    ranks: Mutex<BTreeSet<WorkerRank>>,
    news: Notify,
}

impl LostRanks {
    pub(crate) fn add(&self, rank: WorkerRank) {
        if self.ranks.lock().insert(rank) {
            self.news.notify_one();
        }
    }

    /// Waits until there are some.
    pub(crate) async fn some(&self) -> BTreeSet<WorkerRank> {
        loop {
            let ranks = std::mem::take(&mut *self.ranks.lock());
            if !ranks.is_empty() {
                return ranks;
            }
            self.news.notified().await;
        }
    }
}
