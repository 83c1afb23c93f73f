//! Keeps one model's prefix index up to date: events as they come, and what was lost by asking the worker.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use bytes::Bytes;
use dynamo_engine_api::{DpRank, KvCacheEventData, RouterEvent, StorageTier};
use dynamo_kv_router::{
    KvQueryAnswer, LaneIndex, Recovered, RecoveryRequest, RouterEventDecoder, TryApplyError, WorkerRank,
};
use dynamo_runtime::{
    Client, TaskScope, WorkerId,
    events::{EventItem, EventSubscriber},
    request_plane::OutgoingRequest,
};
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    time::Instant,
};

use crate::{
    kv_orders::{Answered, Ask, KvOrders, Outcome, Step},
    router::Router,
    warmup::Warmup,
};

/// News of workers on their way to the follower. Workers come and go seldom; who sends waits for room.
pub(crate) const WORKER_NEWS_CAPACITY: usize = 256;
/// The largest answer to a query that is taken: a dump of some five million blocks.
const MAX_ANSWER_BYTES: usize = 256 << 20;
/// Questions that are out at once, so that a frontend that starts beside many workers has room for their answers.
const CONCURRENT_QUERIES: usize = 4;
/// Answers of more bytes than this are decoded in the blocking pool.
const INLINE_ANSWER_BYTES: usize = 32 << 10;
/// Room for so many events is kept between messages; a publisher puts no more into one.
const KEPT_EVENTS: usize = 128;
/// How often dumps that had to wait are looked at.
const TICK: Duration = Duration::from_secs(1);

/// What the catalogue tells the follower.
pub(crate) enum WorkerNews {
    /// A worker is there, or is there again with a higher epoch.
    Added { worker_id: u64, epoch: u64, ranks: std::ops::Range<DpRank> },
    /// A worker is gone.
    Removed { worker_id: u64 },
}

/// An event of a rank that is to be applied.
type Due = (WorkerRank, StorageTier, KvCacheEventData);

/// Follows the events of one model's workers until the scope is cancelled.
pub(crate) struct Follower {
    router: Arc<Router>,
    /// Asks workers for what was lost.
    queries: Client,
    turns: Arc<Semaphore>,
    warmup: Arc<Warmup>,
    scope: TaskScope,
    orders: KvOrders,
    outcomes: mpsc::Sender<Outcome>,
    arrived: mpsc::Receiver<Outcome>,
    decoder: RouterEventDecoder,
    // Scratch space, kept for its memory.
    decoded: Vec<RouterEvent>,
    due: Vec<Due>,
}

impl Follower {
    pub(crate) fn new(router: Arc<Router>, queries: Client, warmup: Arc<Warmup>, scope: TaskScope) -> Self {
        let (outcomes, arrived) = mpsc::channel(WORKER_NEWS_CAPACITY);
        let turns = Arc::new(Semaphore::new(CONCURRENT_QUERIES));
        Self {
            router,
            queries,
            turns,
            warmup,
            scope,
            orders: KvOrders::default(),
            outcomes,
            arrived,
            decoder: RouterEventDecoder::new(),
            decoded: Vec::new(),
            due: Vec::new(),
        }
    }

    pub(crate) async fn run(mut self, mut events: EventSubscriber, mut news: mpsc::Receiver<WorkerNews>) {
        let mut tick = tokio::time::interval(TICK);
        let (scope, router) = (self.scope.clone(), self.router.clone());
        loop {
            tokio::select! {
                () = scope.cancelled() => return,
                Some(news) = news.recv() => self.on_news(news),
                Some(outcome) = self.arrived.recv() => self.on_outcome(outcome).await,
                ranks = router.lost().some() => self.on_lost(ranks),
                item = events.next() => match item {
                    Some(EventItem::Event { envelope, payload }) => {
                        self.on_events(envelope.publisher.epoch.get(), &payload).await;
                    }
                    // What was lost shows in the events' own numbers, rank by rank.
                    Some(EventItem::Gap { .. } | EventItem::PublisherGone(_)) => {}
                    None => return,
                },
                _ = tick.tick() => {
                    self.ask_for_dumps();
                    self.give_up_waiting();
                }
            }
        }
    }

    fn on_news(&mut self, news: WorkerNews) {
        match news {
            WorkerNews::Added { worker_id, epoch, ranks } => {
                self.warmup.added(worker_id, ranks.clone(), now());
                for ask in self.orders.add(worker_id, epoch, ranks, now()) {
                    self.ask(ask);
                }
            }
            WorkerNews::Removed { worker_id } => {
                self.warmup.removed(worker_id);
                self.orders.remove(worker_id);
            }
        }
    }

    fn on_lost(&mut self, ranks: BTreeSet<WorkerRank>) {
        for rank in ranks {
            self.orders.lost(rank);
        }
        self.ask_for_dumps();
    }

    fn give_up_waiting(&self) {
        for worker_id in self.warmup.expire(now()) {
            tracing::warn!(
                worker_id,
                "what a worker holds did not come in time: it is routed to as if it held nothing"
            );
        }
    }

    async fn on_events(&mut self, epoch: u64, payload: &Bytes) {
        let (mut decoded, mut due) = (std::mem::take(&mut self.decoded), std::mem::take(&mut self.due));
        // What comes before a defect is lost too: the next event of its rank shows the gap.
        match self.decoder.decode(payload, &mut decoded) {
            Ok(()) => self.judge(epoch, &mut decoded, &mut due),
            Err(error) => tracing::warn!(%error, "KV events that do not decode are dropped"),
        }
        decoded.clear();
        self.apply(epoch, &mut due).await;
        decoded.shrink_to(KEPT_EVENTS);
        due.shrink_to(KEPT_EVENTS);
        (self.decoded, self.due) = (decoded, due);
    }

    fn judge(&mut self, epoch: u64, decoded: &mut Vec<RouterEvent>, due: &mut Vec<Due>) {
        let now = now();
        for event in decoded.drain(..) {
            let worker_id = event.worker_id;
            let rank = WorkerRank { worker_id, dp_rank: event.event.dp_rank };
            match self.orders.observe(rank, epoch, event.into(), now) {
                Step::Apply(tier, data) => {
                    // Its first event needs no dump.
                    self.warmup.recovered(rank);
                    due.push((rank, tier, data));
                }
                Step::Ask(ask) => {
                    tracing::info!(worker_id, query = ?ask.request.query, "KV events are missing");
                    self.ask(ask);
                }
                Step::Nothing => {}
            }
        }
    }

    async fn on_outcome(&mut self, outcome: Outcome) {
        let rank = outcome.rank;
        let Some(Answered { epoch, recovered, next }) = self.orders.answered(outcome, now()) else { return };
        let Recovered { replace, events, gave_up, .. } = recovered;
        if replace {
            self.router.index().clear_rank(rank);
        }
        let mut due: Vec<Due> = events.into_iter().map(|(tier, data)| (rank, tier, data)).collect();
        self.apply(epoch, &mut due).await;
        if replace {
            let warmup = self.warmup.clone();
            self.router.index().flush_with(move |_| warmup.recovered(rank));
        }
        if gave_up {
            tracing::warn!(
                worker_id = rank.worker_id,
                "lost KV events were not recovered; the worker is routed to as it is known"
            );
        }
        if let Some(ask) = next {
            self.ask(ask);
        }
        self.ask_for_dumps();
    }

    /// Hands events to the index's lanes, at their pace, and takes the memory of those that are applied.
    async fn apply(&mut self, epoch: u64, due: &mut Vec<Due>) {
        let index = self.router.index();
        for (rank, tier, mut data) in due.drain(..) {
            // What comes of the others is counted and, where it matters, told by the lanes.
            while let Err(TryApplyError::Full(back)) = index.try_apply(rank, epoch, tier, data) {
                data = back;
                caught_up(index).await;
            }
        }
        index.take_spent(|data| self.decoder.recycle(data));
    }

    fn ask_for_dumps(&mut self) {
        for ask in self.orders.due_dumps(now()) {
            let WorkerRank { worker_id, dp_rank } = ask.rank;
            tracing::info!(worker_id, dp_rank, "the index lost events: asking for a dump");
            self.ask(ask);
        }
    }

    /// Sends a question; its outcome comes back through the channel.
    fn ask(&self, ask: Ask) {
        let (client, outcomes, turns) = (self.queries.clone(), self.outcomes.clone(), self.turns.clone());
        let scope = self.scope.clone();
        self.scope.spawn("kv-query", async move {
            let Ask { rank, generation, request } = ask;
            let asking = async {
                tokio::time::sleep_until(request.not_before.into()).await;
                let _turn = turns.acquire().await;
                match tokio::time::timeout(request.timeout, query(&client, rank.worker_id, &request)).await {
                    Ok(answer) => answer,
                    Err(_) => Err("no answer in time".to_owned()),
                }
            };
            tokio::select! {
                () = scope.cancelled() => {}
                answer = asking => {
                    // A follower that is gone needs no answer.
                    let _ = outcomes.send(Outcome { rank, generation, token: request.token, answer }).await;
                }
            }
        });
    }
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}

/// Waits until the lanes have applied what they were given.
async fn caught_up(index: &LaneIndex) {
    let (done, told) = oneshot::channel();
    index.flush_with(move |_| {
        // Nobody waits any more.
        let _ = done.send(());
    });
    let _ = told.await;
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
    let decode = |bytes: &[u8]| rmp_serde::from_slice(bytes).map_err(|error| error.to_string());
    if bytes.len() <= INLINE_ANSWER_BYTES {
        return decode(&bytes);
    }
    tokio::task::spawn_blocking(move || decode(&bytes)).await.map_err(|error| text(&error))?
}
