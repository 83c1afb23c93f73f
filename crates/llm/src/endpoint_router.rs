//! A router for one endpoint, for processes that route for others: preprocessed requests in, opaque items out.

mod wishes;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use dynamo_engine_api::{DpRank, PreprocessedRequest};
use dynamo_kv_router::{IndexCounts, PotentialLoad, QueueDepth, RankEvent, SlotLoad, WorkerRank};
use dynamo_runtime::{
    Change, Client, DistributedRuntime, EndpointId, Incarnation, Query, Record, RecordKey, TaskScope,
    metrics::MetricsError,
    request_plane::{ResponseStream, StreamError},
};
use dynamo_tokens::BlockSize;
use parking_lot::RwLock;
use wishes::Wishes;

use crate::{
    GenerateError, ModelCard, RouterConfig,
    adapters::{AdapterCards, adapter_at},
    dispatch::{self, Accepted, Envelope, SendError, unavailable},
    routed_endpoint::{RoutedEndpoint, RoutingContext},
    router::Booking,
    warmup::DUMP_PATIENCE,
    worker_sync::{WorkerCard, WorkerCards},
};

/// How often bookings that expire are looked at, and an endpoint that could not be followed is tried again.
const TICK: Duration = Duration::from_secs(1);
/// How long the index may take to write down what a rank holds.
const DUMP_TIME: Duration = Duration::from_secs(10);
/// The code of a request that no worker will serve.
const INVALID_REQUEST: u16 = 400;

/// What an endpoint's router needs to know.
#[derive(Clone, Debug)]
pub struct EndpointRouterConfig {
    /// Whose requests.
    pub endpoint: EndpointId,
    /// How a worker is chosen.
    pub router: RouterConfig,
    /// Tokens per block; absent: what the workers' cards say. Workers with another size are not used.
    pub block_size: Option<u32>,
    /// How long a worker's dump is waited for.
    pub dump_patience: Duration,
}

impl EndpointRouterConfig {
    /// The usual patience.
    pub const DUMP_PATIENCE: Duration = DUMP_PATIENCE;
}

/// How an endpoint's router stands.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct EndpointStatus {
    /// Whether requests go to somebody.
    pub has_workers: bool,
    /// Whether what workers hold is known, or was not to be had in time.
    pub settled: bool,
    /// Workers that are routed to as if they held nothing, for their dump is not in.
    pub cold_workers: usize,
    /// How often a worker's dump did not come in time.
    pub late_dumps: usize,
    /// Workers that are not used because their blocks have another size.
    pub mismatched_workers: usize,
    /// Workers that report blocks among which nothing that they served is ever found.
    pub unfound_workers: usize,
    /// The index of the devices' blocks.
    pub index: IndexCounts,
    /// What is remembered of prompts that were sent, where that counts.
    pub sent: IndexCounts,
}

/// Routes requests to the workers of one endpoint. Clones are the same one.
#[derive(Clone)]
pub struct EndpointRouter {
    shared: Arc<Shared>,
}

struct Shared {
    /// There once the size of a block is known.
    routed: RwLock<Option<Arc<RoutedEndpoint>>>,
    /// The first worker's card; for those who tell others what is served here.
    card: RwLock<Option<ModelCard>>,
    mismatched: RwLock<BTreeSet<u64>>,
}

/// A request's answer on its way from the worker, with its place in the worker's load.
pub struct RoutedStream {
    /// The items. Not to be taken out: the booking ends with it.
    pub stream: ResponseStream,
    incarnation: Incarnation,
    client: Client,
    booking: Booking,
}

/// A request that is counted on a worker and is not sent there by this router.
pub struct HeldBooking(Booking);

impl EndpointRouter {
    /// Follows the endpoint on tasks of `scope` until that is cancelled.
    pub fn start(
        runtime: &DistributedRuntime,
        config: EndpointRouterConfig,
        scope: TaskScope,
    ) -> Result<Self, MetricsError> {
        let routing = Arc::new(RoutingContext::new(runtime, config.router.clone())?);
        let shared = Arc::new(Shared {
            routed: RwLock::new(None),
            card: RwLock::new(None),
            mismatched: RwLock::default(),
        });
        let follow = CardFollower {
            routing,
            config,
            shared: shared.clone(),
            records: BTreeMap::new(),
            scope: scope.clone(),
        };
        scope.spawn("cards", follow.run());
        Ok(Self { shared })
    }

    fn routed(&self) -> Option<Arc<RoutedEndpoint>> {
        self.shared.routed.read().clone()
    }

    /// How it stands.
    pub fn status(&self) -> EndpointStatus {
        let mismatched_workers = self.shared.mismatched.read().len();
        let Some(routed) = self.routed() else {
            return EndpointStatus { mismatched_workers, ..EndpointStatus::default() };
        };
        let warmup = routed.warmup();
        EndpointStatus {
            has_workers: routed.has_workers(),
            settled: routed.is_settled(),
            cold_workers: warmup.cold_workers(),
            late_dumps: warmup.late_dumps(),
            mismatched_workers,
            unfound_workers: routed.router.unfound_workers(),
            index: routed.router.index().counts(),
            sent: routed.router.sent_counts(),
        }
    }

    /// Whether requests go to somebody.
    pub fn has_workers(&self) -> bool {
        self.routed().is_some_and(|routed| routed.has_workers())
    }

    /// Whether what workers hold is known, or was not to be had in time.
    pub fn is_settled(&self) -> bool {
        self.routed().is_some_and(|routed| routed.is_settled())
    }

    /// The card of the first worker that registered.
    pub fn card(&self) -> Option<ModelCard> {
        self.shared.card.read().clone()
    }

    /// Tokens per block, once it is known.
    pub fn block_size(&self) -> Option<u32> {
        Some(self.routed()?.router.block_size().get() as u32)
    }

    /// How much waits for a worker.
    pub fn queue_depth(&self) -> QueueDepth {
        self.routed().map_or_else(QueueDepth::default, |routed| routed.router.queue_depth())
    }

    /// Prompt tokens that ranks compute in a second, of those whose speed is measured and known.
    pub fn prefill_speeds(&self) -> Vec<(WorkerRank, f64)> {
        self.routed().map_or_else(Vec::new, |routed| routed.router.prefill_speeds())
    }

    /// What runs on each rank for this router.
    pub fn loads(&self) -> Vec<(WorkerRank, SlotLoad)> {
        self.routed().map_or_else(Vec::new, |routed| routed.router.loads())
    }

    /// Everything that the index has, as events by rank; for tests and diagnosis. Takes as long as a dump.
    pub fn dump(&self) -> Vec<(WorkerRank, Vec<RankEvent>)> {
        let Some(routed) = self.routed() else { return Vec::new() };
        let ranks: Vec<WorkerRank> = routed.router.loads().into_iter().map(|(rank, _)| rank).collect();
        let index = routed.router.index();
        let of_rank = |rank| {
            let mut dump = index.dump(rank, DUMP_TIME).ok()?;
            Some((rank, dump.next_chunk(usize::MAX).into_iter().map(RankEvent::from).collect()))
        };
        ranks.into_iter().filter_map(of_rank).collect()
    }

    /// Chooses a worker, sends the request there with the choice in its hints, and books it until the stream is dropped.
    /// A worker that refuses or is gone before it accepts is left for another.
    pub async fn forward(
        &self,
        request: &mut PreprocessedRequest,
        id: Arc<str>,
        deadline: Option<Instant>,
        metadata: Vec<(String, String)>,
    ) -> Result<RoutedStream, StreamError> {
        let routed = self.routed().ok_or_else(no_workers)?;
        let wishes = Wishes::of(request)?;
        let wanted = wishes.route_request(&[], &[], deadline);
        let envelope = Envelope { id, deadline, metadata };
        let Accepted { stream, incarnation, booking } =
            dispatch::send(&routed.router, &routed.client, request, &wanted, &envelope).await.map_err(
                |error| match error {
                    SendError::Route(error) => refusal(error),
                    SendError::Worker(error) => error,
                },
            )?;
        Ok(RoutedStream { stream, incarnation, client: routed.client.clone(), booking })
    }

    /// Whom a request would go to, and how many leading blocks of its prompt that one is believed to hold.
    pub async fn best_worker(&self, request: &PreprocessedRequest) -> Result<(WorkerRank, u32), StreamError> {
        let routed = self.routed().ok_or_else(no_workers)?;
        let wishes = Wishes::of(request)?;
        let avoided = unavailable(&routed.client);
        let tokens = &request.token_ids;
        let found = match routed.router.best_worker(&wishes.route_request(tokens, &avoided, None)).await {
            Err(GenerateError::NoWorkers) if !avoided.is_empty() => {
                routed.router.best_worker(&wishes.route_request(tokens, &[], None)).await
            }
            found => found,
        };
        found.map_err(refusal)
    }

    /// Chooses a worker and books the request there, for a caller that sends it itself. The choice counts until the
    /// booking is dropped.
    pub async fn book(
        &self,
        request: &PreprocessedRequest,
        deadline: Option<Instant>,
    ) -> Result<(WorkerRank, u32, HeldBooking), StreamError> {
        let routed = self.routed().ok_or_else(no_workers)?;
        let wishes = Wishes::of(request)?;
        let avoided = unavailable(&routed.client);
        let wanted = wishes.route_request(&request.token_ids, &avoided, deadline);
        let booked = match routed.router.route(&wanted).await {
            Err(GenerateError::NoWorkers) if !avoided.is_empty() => {
                let anybody = wishes.route_request(&request.token_ids, &[], deadline);
                routed.router.route(&anybody).await
            }
            booked => booked,
        };
        let booking = booked.map_err(refusal)?;
        let (worker_id, dp_rank) = booking.worker();
        Ok((WorkerRank { worker_id, dp_rank }, booking.overlap_blocks(), HeldBooking(booking)))
    }

    /// What would be on each rank if a request went there.
    pub async fn potential_loads(
        &self,
        request: &PreprocessedRequest,
    ) -> Result<Vec<PotentialLoad>, StreamError> {
        let routed = self.routed().ok_or_else(no_workers)?;
        let wishes = Wishes::of(request)?;
        Ok(routed.router.potential_loads(&wishes.route_request(&request.token_ids, &[], None)).await)
    }
}

impl RoutedStream {
    /// The worker and rank that serve it.
    pub fn worker(&self) -> (u64, DpRank) {
        self.booking.worker()
    }

    /// Leading blocks of the prompt that the worker is believed to hold.
    pub fn overlap_blocks(&self) -> u32 {
        self.booking.overlap_blocks()
    }

    /// Items came; each counts as a token. The first ones end the prefill.
    pub fn on_items(&mut self, items: usize, now: Instant) {
        self.booking.on_progress(items, now);
    }

    /// The stream broke off: a worker whose connection is lost is avoided for a while.
    pub fn on_failure(&mut self, error: &StreamError) {
        self.booking.release();
        if *error == StreamError::Disconnected {
            self.client.report_lost(self.incarnation);
        }
    }
}

impl HeldBooking {
    /// The first token came.
    pub fn mark_prefill(&mut self, now: Instant) {
        self.0.on_progress(0, now);
    }
}

fn no_workers() -> StreamError {
    StreamError::Unavailable("no worker of this endpoint is known".to_owned())
}

fn refusal(error: GenerateError) -> StreamError {
    match error {
        GenerateError::NoWorkers => no_workers(),
        GenerateError::Overloaded => StreamError::Overloaded("all workers are overloaded".to_owned()),
        GenerateError::QueueTimeout => StreamError::Overloaded(error.to_string()),
        GenerateError::DeadlineExceeded => StreamError::DeadlineExceeded,
        GenerateError::Invalid { message, .. } => StreamError::Application { code: INVALID_REQUEST, message },
        other => StreamError::Application { code: 500, message: other.to_string() },
    }
}

/// Follows the cards that are registered for the endpoint.
struct CardFollower {
    routing: Arc<RoutingContext>,
    config: EndpointRouterConfig,
    shared: Arc<Shared>,
    records: BTreeMap<RecordKey, (Incarnation, ModelCard)>,
    scope: TaskScope,
}

impl CardFollower {
    async fn run(mut self) {
        let mut watch = self.routing.runtime.discovery().watch(Query::AllModels);
        let mut tick = tokio::time::interval(TICK);
        let scope = self.scope.clone();
        loop {
            tokio::select! {
                () = scope.cancelled() => return,
                change = watch.next() => match change {
                    Some(change) => self.on_change(change),
                    None => return,
                },
                _ = tick.tick() => self.expire(),
            }
            self.reconcile().await;
        }
    }

    fn expire(&self) {
        let Some(routed) = self.shared.routed.read().clone() else { return };
        let expired = routed.router.expire();
        if expired > 0 {
            tracing::warn!(expired, "requests without a sign of life no longer count");
        }
    }

    fn on_change(&mut self, change: Change) {
        match change {
            Change::Snapshot(records) => {
                self.records.clear();
                records.into_iter().for_each(|record| self.put(record));
            }
            Change::Put(record) => self.put(record),
            Change::Removed(key) => {
                self.records.remove(&key);
            }
        }
    }

    fn put(&mut self, record: Record) {
        let key = record.key();
        let Record::Model(record) = record else { return };
        if record.endpoint != self.config.endpoint {
            return;
        }
        match serde_json::from_value::<ModelCard>(record.card) {
            Ok(card) => {
                self.records.insert(key, (record.incarnation, card));
            }
            Err(error) => {
                tracing::warn!(%error, "a model card does not read: its worker is not used");
                self.records.remove(&key);
            }
        }
    }

    /// Starts to route when the size of a block is known, and says who the workers are.
    async fn reconcile(&mut self) {
        let is_base =
            |(key, (_, card)): &(&RecordKey, &(Incarnation, ModelCard))| adapter_at(key, card).is_none();
        let mut bases = self.records.iter().filter(is_base);
        let Some((_, (_, first))) = bases.next() else {
            if let Some(routed) = self.shared.routed.read().clone() {
                routed.set_workers(WorkerCards::default());
            }
            return;
        };
        let known = self.shared.routed.read().clone();
        let routed = match known {
            Some(routed) => routed,
            None => {
                let size = self.config.block_size.unwrap_or(first.kv_cache_block_size);
                let Some(block_size) = BlockSize::new(size) else {
                    tracing::warn!("a card says that blocks have no tokens; give --router-block-size");
                    return;
                };
                let (endpoint, patience) = (&self.config.endpoint, self.config.dump_patience);
                let (model, scope) = (&first.display_name, self.scope.child("routed"));
                let starting =
                    RoutedEndpoint::start(&self.routing, endpoint, model, block_size, patience, scope);
                match starting.await {
                    Ok(routed) => {
                        let routed = Arc::new(routed);
                        *self.shared.card.write() = Some(first.clone());
                        *self.shared.routed.write() = Some(routed.clone());
                        routed
                    }
                    Err(error) => {
                        tracing::warn!(%error, "the endpoint cannot be followed; trying again");
                        return;
                    }
                }
            }
        };
        let size = routed.router.block_size().get() as u32;
        let mut cards = WorkerCards::default();
        let mut mismatched = BTreeSet::new();
        let adapters =
            AdapterCards::of(self.records.iter().map(|(key, (incarnation, card))| (key, *incarnation, card)));
        for (_, (incarnation, card)) in self.records.iter().filter(is_base) {
            let worker_id = incarnation.worker_id.get();
            if card.kv_cache_block_size != size {
                mismatched.insert(worker_id);
                cards.others.insert(worker_id);
                continue;
            }
            let runtime_config = card.runtime_config.clone();
            let (epoch, adapters) =
                (incarnation.epoch.get(), adapters.names_of(&self.config.endpoint, *incarnation));
            cards.own.insert(worker_id, WorkerCard { epoch, runtime_config, adapters });
        }
        let told = std::mem::replace(&mut *self.shared.mismatched.write(), mismatched.clone());
        for worker_id in mismatched.difference(&told) {
            tracing::warn!(
                worker_id,
                block_size = size,
                "a worker's blocks have another size than this router's: it is not used"
            );
        }
        routed.set_workers(cards);
    }
}
