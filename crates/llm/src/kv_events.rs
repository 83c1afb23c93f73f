//! Keeps one model's prefix index up to date: events as they come, and what was lost by asking the worker.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use dynamo_engine_api::{DpRank, KvCacheEventData, RouterEvent, StorageTier};
use dynamo_kv_router::{
    ApplyError, DropReason, EventOrder, IndexError, KvQueryAnswer, Observed, Recovered, RecoveryPolicy,
    RecoveryRequest, WorkerRank,
};
use dynamo_runtime::{
    Client, TaskScope, WorkerId,
    events::{EventItem, EventSubscriber, decode_payload},
    request_plane::OutgoingRequest,
};
use tokio::sync::mpsc;

use crate::router::Router;

/// News of workers on their way to the follower. Workers come and go seldom; who sends waits for room.
pub(crate) const WORKER_NEWS_CAPACITY: usize = 256;
/// The largest answer to a query that is taken: a dump of some five million blocks.
const MAX_ANSWER_BYTES: usize = 256 << 20;

/// An index that disagrees with its worker asks for all that the worker holds, but not more often than this: a worker
/// whose events never fit would be asked for nothing else.
const DUMP_PAUSE: Duration = Duration::from_secs(5);

/// What the catalogue tells the follower.
pub(crate) enum WorkerNews {
    /// A worker is there, or is there again with a higher epoch.
    Added { worker_id: u64, epoch: u64, ranks: std::ops::Range<DpRank> },
    /// A worker is gone.
    Removed { worker_id: u64 },
}

/// The outcome of a question to a worker.
struct Outcome {
    rank: WorkerRank,
    epoch: u64,
    token: u64,
    answer: Result<KvQueryAnswer, String>,
}

/// Follows the events of one model's workers until the scope is cancelled.
pub(crate) struct Follower {
    router: Arc<Router>,
    /// Asks workers for what was lost.
    queries: Client,
    scope: TaskScope,
    orders: HashMap<(u64, DpRank), EventOrder>,
    dumped: HashMap<WorkerRank, Instant>,
    outcomes: mpsc::Sender<Outcome>,
    arrived: mpsc::Receiver<Outcome>,
}

impl Follower {
    pub(crate) fn new(router: Arc<Router>, queries: Client, scope: TaskScope) -> Self {
        let (outcomes, arrived) = mpsc::channel(WORKER_NEWS_CAPACITY);
        Self { router, queries, scope, orders: HashMap::new(), dumped: HashMap::new(), outcomes, arrived }
    }

    pub(crate) async fn run(mut self, mut events: EventSubscriber, mut news: mpsc::Receiver<WorkerNews>) {
        loop {
            tokio::select! {
                () = self.scope.cancelled() => return,
                Some(news) = news.recv() => self.on_news(news),
                Some(outcome) = self.arrived.recv() => self.on_outcome(outcome),
                item = events.next() => match item {
                    Some(EventItem::Event { envelope, payload }) => {
                        self.on_events(envelope.publisher.epoch.get(), &payload);
                    }
                    // What was lost shows in the events' own numbers, rank by rank.
                    Some(EventItem::Gap { .. } | EventItem::PublisherGone(_)) => {}
                    None => return,
                },
            }
        }
    }

    fn on_news(&mut self, news: WorkerNews) {
        match news {
            WorkerNews::Added { worker_id, epoch, ranks } => {
                for dp_rank in ranks {
                    let order = EventOrder::new(dp_rank, epoch, RecoveryPolicy::REFERENCE);
                    let known = self.orders.entry((worker_id, dp_rank)).or_insert(order);
                    if known.epoch() < epoch {
                        *known = EventOrder::new(dp_rank, epoch, RecoveryPolicy::REFERENCE);
                    }
                    if known.last_event_id().is_none()
                        && let Some(request) = known.request_dump(Instant::now())
                    {
                        self.ask(WorkerRank { worker_id, dp_rank }, epoch, request);
                    }
                }
            }
            WorkerNews::Removed { worker_id } => {
                self.orders.retain(|(worker, _), _| *worker != worker_id);
                self.dumped.retain(|rank, _| rank.worker_id != worker_id);
            }
        }
    }

    fn on_events(&mut self, epoch: u64, payload: &Bytes) {
        let events: Vec<RouterEvent> = match decode_payload(payload) {
            Ok(events) => events,
            Err(error) => {
                tracing::warn!(%error, "KV events that do not decode are dropped");
                return;
            }
        };
        let now = Instant::now();
        let mut due: Vec<(WorkerRank, KvCacheEventData)> = Vec::with_capacity(events.len());
        for RouterEvent { worker_id, event, storage_tier } in events {
            // The index has one tier.
            if storage_tier != StorageTier::Device {
                continue;
            }
            let rank = WorkerRank { worker_id, dp_rank: event.dp_rank };
            // A worker that discovery has not named yet: its dump will hold what these events say.
            let Some(order) = self.orders.get_mut(&(worker_id, event.dp_rank)) else { continue };
            match order.observe(epoch, event, now) {
                Observed::Apply(event) => due.push((rank, event.data)),
                Observed::Recover(request) => {
                    tracing::info!(worker_id, query = ?request.query, "KV events are missing");
                    self.ask(rank, epoch, request);
                }
                Observed::Held | Observed::Drop(DropReason::Stale | DropReason::StaleEpoch) => {}
            }
        }
        self.apply(epoch, &due);
    }

    fn on_outcome(&mut self, outcome: Outcome) {
        let Outcome { rank, epoch, token, answer } = outcome;
        let Some(order) = self.orders.get_mut(&(rank.worker_id, rank.dp_rank)) else { return };
        let now = Instant::now();
        let Recovered { replace, events, next, gave_up } = match answer {
            Ok(answer) => order.answered(token, answer, now),
            Err(error) => {
                tracing::debug!(worker_id = rank.worker_id, error, "a KV query was not answered");
                order.failed(token, now)
            }
        };
        if replace {
            self.router.index().write().clear_rank(rank);
        }
        let due: Vec<_> = events.into_iter().map(|data| (rank, data)).collect();
        self.apply(epoch, &due);
        if gave_up {
            tracing::warn!(
                worker_id = rank.worker_id,
                "lost KV events were not recovered; the worker is routed to as it is known"
            );
        }
        if let Some(request) = next {
            self.ask(rank, epoch, request);
        }
    }

    fn apply(&mut self, epoch: u64, due: &[(WorkerRank, KvCacheEventData)]) {
        if due.is_empty() {
            return;
        }
        let mut lost = Vec::new();
        let mut index = self.router.index().write();
        for (rank, data) in due {
            if index.apply(*rank, epoch, data).is_err_and(asks_for_dump) && !lost.contains(rank) {
                lost.push(*rank);
            }
        }
        drop(index);
        for rank in lost {
            let now = Instant::now();
            if self.dumped.get(&rank).is_some_and(|&at| now < at + DUMP_PAUSE) {
                continue;
            }
            self.dumped.insert(rank, now);
            let order = self.orders.get_mut(&(rank.worker_id, rank.dp_rank));
            if let Some(request) = order.and_then(|order| order.request_dump(now)) {
                tracing::info!(
                    worker_id = rank.worker_id,
                    dp_rank = rank.dp_rank,
                    "the index lost events: asking for a dump"
                );
                self.ask(rank, epoch, request);
            }
        }
    }

    /// Sends a question; its outcome comes back through the channel. One at a time is out for a rank.
    fn ask(&self, rank: WorkerRank, epoch: u64, request: RecoveryRequest) {
        let (client, outcomes) = (self.queries.clone(), self.outcomes.clone());
        let scope = self.scope.clone();
        self.scope.spawn("kv-query", async move {
            let wait = request.not_before.saturating_duration_since(Instant::now());
            let asking = async {
                tokio::time::sleep(wait).await;
                match tokio::time::timeout(request.timeout, query(&client, rank.worker_id, &request)).await {
                    Ok(answer) => answer,
                    Err(_) => Err("no answer in time".to_owned()),
                }
            };
            tokio::select! {
                () = scope.cancelled() => {}
                answer = asking => {
                    // A follower that is gone needs no answer.
                    let _ = outcomes.send(Outcome { rank, epoch, token: request.token, answer }).await;
                }
            }
        });
    }
}

/// Whether the index and its worker disagree on what the worker holds.
fn asks_for_dump(error: IndexError) -> bool {
    matches!(
        error,
        IndexError::OverCapacity { .. }
            | IndexError::Apply(ApplyError::ParentBlockNotFound | ApplyError::BlockNotFound)
    )
}

async fn query(client: &Client, worker_id: u64, request: &RecoveryRequest) -> Result<KvQueryAnswer, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let payload = rmp_serde::to_vec_named(&request.query).map_err(|error| text(&error))?;
    let outgoing = OutgoingRequest {
        id: "kv-query".into(),
        payload: payload.into(),
        time_left: Some(request.timeout),
        metadata: Vec::new(),
    };
    let opened =
        client.direct(outgoing, WorkerId::from_bits(worker_id)).await.map_err(|error| text(&error))?;
    let mut stream = opened.stream;
    let mut bytes = Vec::new();
    while let Some(piece) = stream.next().await {
        let piece = piece.map_err(|error| text(&error))?;
        if bytes.len() + piece.len() > MAX_ANSWER_BYTES {
            return Err(format!("the answer has more than {MAX_ANSWER_BYTES} bytes"));
        }
        bytes.extend_from_slice(&piece);
    }
    rmp_serde::from_slice(&bytes).map_err(|error| text(&error))
}
