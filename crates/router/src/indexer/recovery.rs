//! Taking over from a peer at the start: its engines and what they hold.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use dynamo_engine_api::{KvCacheEventData, RouterEvent};
use dynamo_kv_router::{EventStatus, WorkerRank};
use dynamo_runtime::TaskScope;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::{
    api::WorkerEntry,
    config::RecoveryLimits,
    dump_reader::{DumpError, DumpItem, DumpReader},
    peer_client::{PeerError, PeerUrl, PeerUrlError, collect, get},
    progress::Progress,
    refill::{LOOK, Refill},
    registry::{ModelIndex, ModelKey, RegisterError, Registration, Registry},
    shared_index::{Brought, TierEvent},
};

/// The list of a peer's engines at most: a hundred thousand of them.
const MAX_WORKERS_BYTES: usize = 64 << 20;

/// Before the dump is asked for: the subscriptions that were just made should have reached the engines, which do not say
/// when they have one. What a slow one lets fall between the dump and the first message heard is found by its numbers,
/// and asked for again; see [`Progress`](super::progress::Progress).
const SUBSCRIBING: Duration = Duration::from_millis(500);

/// What was taken over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct TakenOver {
    /// Of stored events, on all tiers.
    pub(super) blocks: u64,
    pub(super) events: u64,
    /// Events of engines that are not registered here, or that do not fit.
    pub(super) refused: u64,
    pub(super) engines: u64,
}

/// Why nothing, or not all, was taken over.
#[derive(Debug, thiserror::Error)]
pub(super) enum RecoveryError {
    #[error(transparent)]
    Url(#[from] PeerUrlError),
    #[error(transparent)]
    Peer(#[from] PeerError),
    #[error(transparent)]
    Dump(#[from] DumpError),
    #[error("its list of workers does not read: {0}")]
    Workers(serde_json::Error),
    #[error("it was not done within {0:?}")]
    Slow(Duration),
    #[error("it does not know the rank, or not how far it is")]
    Unknown,
}

/// Asks one peer after the other until one has given all that it has, or the time is over. Returns what came from that
/// peer.
pub(super) async fn recover(
    registry: &Arc<Registry>,
    peers: &[String],
    limits: RecoveryLimits,
    scope: &TaskScope,
) -> Option<TakenOver> {
    registry.set_refill(Refill::new(peers.to_vec(), limits, scope.clone()));
    let deadline = Instant::now() + limits.total;
    for url in peers {
        let began = Instant::now();
        let taking = take_over(registry, url, limits, scope);
        let result = timeout_at(deadline, taking).await.unwrap_or(Err(RecoveryError::Slow(limits.total)));
        match result {
            Ok(taken) => {
                let TakenOver { blocks, events, refused, engines } = taken;
                let elapsed = began.elapsed();
                tracing::info!(
                    peer = url,
                    blocks,
                    events,
                    refused,
                    engines,
                    ?elapsed,
                    "taken over from a peer"
                );
                return Some(taken);
            }
            Err(error) => tracing::warn!(peer = url, %error, "a peer gave nothing to take over, or not all"),
        }
        if Instant::now() >= deadline {
            break;
        }
    }
    None
}

async fn take_over(
    registry: &Arc<Registry>,
    url: &str,
    limits: RecoveryLimits,
    scope: &TaskScope,
) -> Result<TakenOver, RecoveryError> {
    let peer = PeerUrl::parse(url)?;
    let mut taken = TakenOver::default();
    // Engines first: their listeners gather what happens after the dump.
    for entry in peer_workers(&peer, limits.answer, scope).await? {
        taken.engines += adopt(registry, entry);
    }
    sleep(SUBSCRIBING).await;
    let lasts = caught_up(registry, &peer, limits, scope).await?;
    let refused_before = refused(registry);
    let mut applier = Applier { registry, model: None, brought: VecDeque::new(), taken: &mut taken };
    let mut dump = PeerDump::ask(&peer, limits, scope).await?;
    while let Some(item) = dump.next().await? {
        applier.take(item).await;
    }
    registry.caught_up().await;
    taken.refused += refused(registry).saturating_sub(refused_before);
    for (progress, last) in lasts {
        progress.taken_over(last);
    }
    Ok(taken)
}

/// The last batch of each rank that a peer has for certain, once those follow closely before what was heard here: the
/// peer may hear an engine later than we do. Where that takes too long, the lanes will see the hole.
async fn caught_up(
    registry: &Registry,
    peer: &PeerUrl,
    limits: RecoveryLimits,
    scope: &TaskScope,
) -> Result<Vec<(Arc<Progress>, u64)>, RecoveryError> {
    let deadline = Instant::now() + limits.answer;
    loop {
        let mut lasts = Vec::new();
        for entry in peer_workers(peer, limits.answer, scope).await? {
            for (key, rank, last) in entry.last_batches() {
                let own =
                    registry.model(&key).filter(|model| model.block_size.get() as u32 == entry.block_size);
                lasts.extend(own.and_then(|model| model.progress(rank)).map(|progress| (progress, last)));
            }
        }
        let is_behind =
            |progress: &Progress, last: u64| progress.first_heard().is_some_and(|it| it > last + 1);
        let behind = lasts.iter().any(|(progress, last)| is_behind(progress, *last));
        if !behind || Instant::now() >= deadline {
            return Ok(lasts);
        }
        sleep(LOOK).await;
    }
}

/// A peer's engines.
pub(super) async fn peer_workers(
    peer: &PeerUrl,
    limit: Duration,
    scope: &TaskScope,
) -> Result<Vec<WorkerEntry>, RecoveryError> {
    let body = get(peer, "/workers", limit, scope).await?;
    let list = collect(body, MAX_WORKERS_BYTES, limit).await?;
    serde_json::from_slice(&list).map_err(RecoveryError::Workers)
}

/// A peer's dump, as it comes.
pub(super) struct PeerDump {
    body: Incoming,
    /// `None` once the end was reached.
    reader: Option<DumpReader>,
    read: VecDeque<DumpItem>,
    /// For each piece.
    patience: Duration,
}

impl PeerDump {
    /// Asks for it.
    pub(super) async fn ask(
        peer: &PeerUrl,
        limits: RecoveryLimits,
        scope: &TaskScope,
    ) -> Result<Self, RecoveryError> {
        let body = get(peer, "/dump", limits.answer, scope).await?;
        Ok(Self { body, reader: Some(DumpReader::default()), read: VecDeque::new(), patience: limits.total })
    }

    /// What comes next; none at the end of a whole dump.
    pub(super) async fn next(&mut self) -> Result<Option<DumpItem>, RecoveryError> {
        loop {
            if let Some(item) = self.read.pop_front() {
                return Ok(Some(item));
            }
            let Some(reader) = &mut self.reader else { return Ok(None) };
            let frame = timeout(self.patience, self.body.frame()).await;
            match frame.map_err(|_| RecoveryError::Slow(self.patience))? {
                Some(frame) => {
                    let Ok(data) = frame.map_err(PeerError::Http)?.into_data() else { continue };
                    reader.feed(&data, &mut |item| self.read.push_back(item))?;
                }
                None => self.reader.take().map_or(Ok(()), DumpReader::finish)?,
            }
            tokio::task::consume_budget().await;
        }
    }
}

/// Events that did not apply, over all indexes. While a recovery runs, nobody else brings any.
fn refused(registry: &Registry) -> u64 {
    let of = |model: &ModelIndex| -> u64 {
        let counters = model.index.counters();
        counters.iter().filter(|(_, status, _)| *status != EventStatus::Ok).map(|(_, _, count)| count).sum()
    };
    registry.models().iter().map(|(_, model)| of(model)).sum()
}

/// Registers an engine of a peer's here, unless it is; returns how many ranks.
fn adopt(registry: &Registry, entry: WorkerEntry) -> u64 {
    let mut adopted = 0;
    for (&dp_rank, endpoint) in &entry.endpoints {
        let replay = entry.listeners.get(&dp_rank).and_then(|listener| listener.replay_endpoint.clone());
        let registered = registry.register(Registration {
            key: ModelKey {
                model_name: entry.model_name.clone(),
                routing_group: entry.routing_group.clone(),
            },
            block_size: entry.block_size,
            rank: WorkerRank { worker_id: entry.instance_id, dp_rank },
            endpoint: endpoint.clone(),
            replay_endpoint: replay,
        });
        match registered {
            Ok(()) => adopted += 1,
            // The flags named it, or somebody was faster.
            Err(RegisterError::AlreadyRegistered(_)) => {}
            Err(error) => {
                tracing::warn!(worker_id = entry.instance_id, dp_rank, %error, "a peer's engine is not taken on");
            }
        }
    }
    adopted
}

/// Puts a dump's events into the indexes.
struct Applier<'a> {
    registry: &'a Registry,
    model: Option<Arc<ModelIndex>>,
    /// Scratch, empty between two events.
    brought: VecDeque<TierEvent>,
    taken: &'a mut TakenOver,
}

impl Applier<'_> {
    async fn take(&mut self, item: DumpItem) {
        match item {
            DumpItem::Model { key, block_size } => {
                self.model = self.registry.model(&key);
                if self.model.as_ref().is_some_and(|model| model.block_size.get() != block_size as usize) {
                    tracing::warn!(%key, block_size, "a peer's blocks have another size: they are not taken over");
                    self.model = None;
                }
            }
            DumpItem::Event(RouterEvent { worker_id, event, storage_tier }) => {
                self.taken.events += 1;
                let Some(model) = &self.model else {
                    self.taken.refused += 1;
                    return;
                };
                let rank = WorkerRank { worker_id, dp_rank: event.dp_rank };
                if let KvCacheEventData::Stored { blocks, .. } = &event.data {
                    self.taken.blocks += blocks.len() as u64;
                }
                self.brought.push_back((storage_tier, event.data));
                while model.index.bring(rank, &mut self.brought) != Brought::All {
                    model.index.caught_up().await;
                }
            }
        }
    }
}
