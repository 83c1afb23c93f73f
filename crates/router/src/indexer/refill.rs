//! What a rank lacks, got from a peer that heard it.

use std::{collections::VecDeque, time::Duration};

use dynamo_kv_router::WorkerRank;
use dynamo_runtime::TaskScope;
use tokio::{
    sync::Mutex,
    time::{Instant, sleep, timeout, timeout_at},
};

use super::{
    api::WorkerEntry,
    config::RecoveryLimits,
    dump_reader::DumpItem,
    peer_client::{PeerError, PeerUrl},
    recovery::{PeerDump, RecoveryError, peer_workers},
    registry::ModelKey,
    shared_index::TierEvent,
};

/// Between two looks at how far a peer is: it hears the same engine, a moment earlier or later.
pub(super) const LOOK: Duration = Duration::from_millis(50);
/// After a try in vain peers are left alone for so long: a lane waits meanwhile, and others may want the same. One who
/// says at once that it does not know a rank keeps nobody waiting, and may know the next.
const PAUSE: Duration = Duration::from_secs(10);

/// Asks peers for what a rank holds. One rank at a time, for its events are in memory.
pub(super) struct Refill {
    peers: Vec<String>,
    limits: RecoveryLimits,
    scope: TaskScope,
    /// When the last try failed, if it did.
    failed: Mutex<Option<Instant>>,
}

impl Refill {
    pub(super) fn new(peers: Vec<String>, limits: RecoveryLimits, scope: TaskScope) -> Self {
        Self { peers, limits, scope, failed: Mutex::new(None) }
    }

    /// All that a peer has of a rank, once it has the batch `up_to`; to be applied to a rank that is empty.
    pub(super) async fn rank(
        &self,
        key: &ModelKey,
        rank: WorkerRank,
        up_to: u64,
    ) -> Option<VecDeque<TierEvent>> {
        let mut failed = self.failed.lock().await;
        if failed.is_some_and(|at| at.elapsed() < PAUSE) {
            return None;
        }
        let deadline = Instant::now() + self.limits.total;
        let mut is_slow = false;
        for url in &self.peers {
            let asking = self.ask(url, key, rank, up_to);
            match timeout_at(deadline, asking).await.unwrap_or(Err(RecoveryError::Slow(self.limits.total))) {
                Ok(events) => {
                    *failed = None;
                    return Some(events);
                }
                Err(error) => {
                    is_slow |= !matches!(error, RecoveryError::Unknown);
                    tracing::info!(peer = url, %error, "a peer does not give what a rank lacks");
                }
            }
        }
        *failed = is_slow.then(Instant::now);
        None
    }

    async fn ask(
        &self,
        url: &str,
        key: &ModelKey,
        rank: WorkerRank,
        up_to: u64,
    ) -> Result<VecDeque<TierEvent>, RecoveryError> {
        let peer = PeerUrl::parse(url)?;
        let behind = async {
            loop {
                match self.last_batch(&peer, key, rank).await? {
                    Some(last) if last >= up_to => return Ok::<_, RecoveryError>(()),
                    Some(_) => sleep(LOOK).await,
                    None => return Err(RecoveryError::Unknown),
                }
            }
        };
        let slow = |_| RecoveryError::Peer(PeerError::Slow(self.limits.answer));
        timeout(self.limits.answer, behind).await.map_err(slow)??;
        let (mut events, mut is_own) = (VecDeque::new(), false);
        let mut dump = PeerDump::ask(&peer, self.limits, &self.scope).await?;
        while let Some(item) = dump.next().await? {
            match item {
                DumpItem::Model { key: of, .. } => is_own = of == *key,
                DumpItem::Event(event) => {
                    if is_own && event.worker_id == rank.worker_id && event.event.dp_rank == rank.dp_rank {
                        events.push_back((event.storage_tier, event.event.data));
                    }
                }
            }
        }
        Ok(events)
    }

    async fn last_batch(
        &self,
        peer: &PeerUrl,
        key: &ModelKey,
        rank: WorkerRank,
    ) -> Result<Option<u64>, RecoveryError> {
        let workers = peer_workers(peer, self.limits.answer, &self.scope).await?;
        let mut lasts = workers.iter().flat_map(WorkerEntry::last_batches);
        Ok(lasts.find(|(of, at, _)| of == key && *at == rank).map(|(.., last)| last))
    }
}
