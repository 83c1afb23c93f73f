//! From what an engine reports to whom a router chooses, through discovery and both planes.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use dynamo_engine_api::{ExternalBlockHash, PreprocessedRequest, StoredBlock};
use dynamo_kv_router::{KvRouterConfig, RankEvent};
use dynamo_llm::{
    CardOptions, EndpointRouter, EndpointRouterConfig, IndexPlace, KV_EVENTS_TOPIC, KV_QUERY_ENDPOINT,
    ModelCard, RouterConfig, RouterMode,
};
use dynamo_runtime::{
    Announcement, DistributedRuntime, EndpointId, EventScope, ModelRecord, Record, RuntimeConfig,
    ServedEndpoint, ShutdownReason,
};
use dynamo_tokens::{BlockSize, HashSeed, LocalBlockHash, TokenId, local_block_hashes};

use super::*;

/// Long enough for a busy machine; no test waits it out.
const PATIENCE: Duration = Duration::from_secs(20);
const FOUR: BlockSize = BlockSize::new(4).unwrap();
/// Four blocks and a bit.
const PROMPT: [TokenId; 17] = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2];

fn generate() -> EndpointId {
    EndpointId::new("ns", "backend", "generate")
}

/// A worker whose engine is the test.
struct Worker {
    runtime: DistributedRuntime,
    publisher: Arc<KvPublisher>,
    _registered: ([ServedEndpoint; 2], Announcement),
}

/// Members of one deployment in this process.
struct Deployment(RuntimeConfig);

impl Deployment {
    fn new() -> Self {
        Self(RuntimeConfig::process_local())
    }

    async fn member(&self, worker_id: Option<u64>) -> DistributedRuntime {
        crate::test_member::member(&self.0, worker_id).await
    }

    /// A worker, or its next incarnation.
    async fn worker(&self, worker_id: u64) -> Worker {
        let runtime = self.member(Some(worker_id)).await;
        let about = EventScope::component("ns", "backend");
        let events = runtime.event_plane().publisher(about, KV_EVENTS_TOPIC).await.unwrap();
        let load = LoadGauges::new(runtime.metrics()).unwrap();
        let scope = runtime.scope().child("engine");
        let publisher = KvPublisher::start(worker_id, 0..1, events, &load, &scope);
        let queries = Arc::new(KvQueryHandler::new(publisher.clone(), scope));
        let beside = EndpointId { endpoint: KV_QUERY_ENDPOINT.to_owned(), ..generate() };
        let queries = runtime.serve_endpoint(beside, queries).await.unwrap();
        // Nobody is sent a request.
        let refuse = |_: IncomingRequest, _: Responder| {};
        let served = runtime.serve_endpoint(generate(), Arc::new(refuse)).await.unwrap();
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/tiny-llama");
        let options = CardOptions { kv_cache_block_size: 4, ..CardOptions::default() };
        let card = serde_json::to_value(ModelCard::from_directory(&model, options).unwrap()).unwrap();
        let incarnation = runtime.incarnation();
        let record = ModelRecord { endpoint: generate(), incarnation, card, suffix: None };
        let model = runtime.announce(Record::Model(record)).await.unwrap();
        Worker { runtime, publisher, _registered: ([queries, served], model) }
    }

    async fn router(&self, kv: KvRouterConfig) -> Router {
        self.router_of(RouterConfig { kv, ..RouterConfig::of(RouterMode::Kv) }).await
    }

    async fn router_with(&self, index_place: IndexPlace) -> Router {
        self.router_of(RouterConfig { index_place, ..RouterConfig::of(RouterMode::Kv) }).await
    }

    async fn router_of(&self, router: RouterConfig) -> Router {
        let runtime = self.member(None).await;
        let config =
            EndpointRouterConfig { endpoint: generate(), router, block_size: None, dump_patience: PATIENCE };
        let router = EndpointRouter::start(&runtime, config, runtime.scope().child("router")).unwrap();
        Router { router, runtime }
    }
}

struct Router {
    router: EndpointRouter,
    runtime: DistributedRuntime,
}

impl Router {
    async fn until(&self, what: &str, mut is_so: impl AsyncFnMut(&EndpointRouter) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so(&self.router).await {
            assert!(Instant::now() < deadline, "{what}: {:?}", self.router.dump());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn until_settled(&self, workers: usize) {
        self.until("settled", async |router| router.is_settled() && router.loads().len() == workers).await;
    }

    /// Whom the prompt goes to, if it is the same one each time, and how much that one has on its device.
    async fn choice(&self) -> Option<(u64, u32)> {
        let request = PreprocessedRequest { token_ids: PROMPT.to_vec(), ..PreprocessedRequest::default() };
        let mut first = None;
        for _ in 0..20 {
            let (rank, held) = self.router.best_worker(&request).await.ok()?;
            let choice = (rank.worker_id, held);
            if *first.get_or_insert(choice) != choice {
                return None;
            }
        }
        first
    }

    /// Questions to indexes elsewhere that ended so.
    fn asked(&self, status: &str) -> u64 {
        let mut text = String::new();
        self.runtime.metrics().encode_text(&mut text);
        let series = format!("dynamo_kvrouter_remote_index_queries_total{{status=\"{status}\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&series)?.parse().ok()).unwrap_or(0)
    }

    fn held(&self, worker_id: u64) -> Vec<RankEvent> {
        let dumps = self.router.dump();
        let own = dumps.into_iter().filter(|(rank, _)| rank.worker_id == worker_id);
        own.flat_map(|(_, events)| events).collect()
    }
}

/// The prompt's blocks from `from` on, as an engine stores them on a tier; its names are its own.
fn stored(tier: StorageTier, blocks: std::ops::Range<usize>) -> EngineEvent {
    let mut locals: Vec<LocalBlockHash> = Vec::new();
    local_block_hashes(&PROMPT, FOUR, HashSeed::PLAIN, &mut locals);
    let name = |place: usize| ExternalBlockHash(100 + place as u64);
    let block = |place: usize| StoredBlock { block_hash: name(place), tokens_hash: locals[place] };
    let parent_hash = blocks.start.checked_sub(1).map(name);
    EngineEvent { tier, data: KvCacheEventData::Stored { parent_hash, blocks: blocks.map(block).collect() } }
}

#[tokio::test]
async fn what_one_put_into_shared_storage_counts_for_all_where_a_router_is_told_of_it() {
    let deployment = Deployment::new();
    let (_seven, eight) = (deployment.worker(7).await, deployment.worker(8).await);
    let apart = KvRouterConfig { room_weight: 0.0, ..KvRouterConfig::DEFAULT };
    let sharing = KvRouterConfig { shared_cache_multiplier: 1.0, ..apart.clone() };
    let (apart, sharing) = (deployment.router(apart).await, deployment.router(sharing).await);
    for router in [&apart, &sharing] {
        router.until_settled(2).await;
    }
    eight.publisher.report(0, [stored(StorageTier::External, 0..4)]);
    apart.until("it is 8's", async |_| apart.choice().await == Some((8, 0))).await;
    sharing.until("it was told", async |_| !sharing.held(8).is_empty()).await;
    assert_eq!(sharing.choice().await, None, "both can load it, at the same price");
}

#[tokio::test]
async fn blocks_on_the_host_count_for_a_router_that_saw_them_come_and_for_one_that_asks() {
    let deployment = Deployment::new();
    let (seven, eight) = (deployment.worker(7).await, deployment.worker(8).await);
    let early = deployment.router(KvRouterConfig::DEFAULT).await;
    early.until_settled(2).await;
    // One block on the device of 8, and all four in the memory of 7's host.
    eight.publisher.report(0, [stored(StorageTier::Device, 0..1)]);
    seven.publisher.report(0, [stored(StorageTier::HostPinned, 0..3), stored(StorageTier::Disk, 3..4)]);
    early.until("it saw them", async |_| early.choice().await == Some((7, 0))).await;
    let late = deployment.router(KvRouterConfig::DEFAULT).await;
    late.until_settled(2).await;
    late.until("it was told", async |_| late.choice().await == Some((7, 0))).await;
    let tiers = |router: &Router| {
        router.held(7).iter().map(|event| event.storage_tier).collect::<std::collections::BTreeSet<_>>()
    };
    let lower = [StorageTier::HostPinned, StorageTier::Disk].into();
    assert_eq!((tiers(&early), tiers(&late)), (lower, [StorageTier::HostPinned, StorageTier::Disk].into()));
    // To one that does not care, neither for these tiers nor for room, the device's block is all there is.
    let weights = KvRouterConfig {
        host_cache_hit_weight: 0.0,
        disk_cache_hit_weight: 0.0,
        room_weight: 0.0,
        ..KvRouterConfig::DEFAULT
    };
    let careless = deployment.router(weights).await;
    careless.until_settled(2).await;
    careless.until("it looks at devices", async |_| careless.choice().await == Some((8, 1))).await;
    // What was offloaded comes back.
    seven.publisher.report(0, [stored(StorageTier::Device, 0..4)]);
    for router in [&early, &late, &careless] {
        router.until("it is on the device again", async |_| router.choice().await == Some((7, 4))).await;
    }
}

#[tokio::test]
async fn a_worker_that_is_back_with_a_higher_epoch_starts_empty() {
    let deployment = Deployment::new();
    let first = deployment.worker(7).await;
    let router = deployment.router(KvRouterConfig::DEFAULT).await;
    router.until_settled(1).await;
    for block in 0..4 {
        first.publisher.report(0, [stored(StorageTier::Device, block..block + 1)]);
    }
    first.publisher.report(0, [stored(StorageTier::HostPinned, 0..2)]);
    router
        .until("it has the prompt", async |_| {
            router.choice().await == Some((7, 4)) && router.held(7).len() > 1
        })
        .await;
    let second = deployment.worker(7).await;
    assert!(second.runtime.incarnation() > first.runtime.incarnation());
    router.until("nothing is left, on any tier", async |_| router.held(7).is_empty()).await;
    router.until_settled(1).await;
    assert_eq!(router.choice().await, Some((7, 0)));
    // Its events begin with 1 again, and are not taken for old ones.
    second.publisher.report(0, [stored(StorageTier::Device, 0..2)]);
    router.until("it has what the second one has", async |_| router.choice().await == Some((7, 2))).await;
    // The first one is still there and speaks: nobody listens. What the second says after it comes after it.
    first.publisher.report(0, [stored(StorageTier::Device, 0..4)]);
    first.publisher.publish(&first.publisher.ranks[&0], &mut first.publisher.ranks[&0].published.lock());
    second.publisher.report(0, [stored(StorageTier::Device, 2..3)]);
    router.until("it has one block more", async |_| router.choice().await == Some((7, 3))).await;
    // A router that comes now asks the second one.
    let late = deployment.router(KvRouterConfig::DEFAULT).await;
    late.until_settled(1).await;
    late.until("it was told", async |_| late.choice().await == Some((7, 3))).await;
}

#[tokio::test]
async fn a_router_without_an_index_chooses_by_one_that_is_served_and_without_it_as_if_nothing_were_cached() {
    let deployment = Deployment::new();
    let (seven, eight) = (deployment.worker(7).await, deployment.worker(8).await);
    let asking = deployment.router_with(IndexPlace::Elsewhere).await;
    asking.until_settled(2).await;
    seven.publisher.report(0, [stored(StorageTier::Device, 0..2)]);
    eight.publisher.report(0, [stored(StorageTier::Device, 0..1), stored(StorageTier::HostPinned, 1..4)]);
    let request = PreprocessedRequest { token_ids: PROMPT.to_vec(), ..PreprocessedRequest::default() };
    assert_eq!(asking.router.best_worker(&request).await.map(|(_, held)| held), Ok(0), "nobody to ask");
    assert!(asking.asked("no_server") > 0);
    let serving = deployment.router_with(IndexPlace::Served).await;
    serving.until_settled(2).await;
    serving.until("it knows", async |_| serving.choice().await == Some((8, 1))).await;
    // On the device and the host together, as the one that has the index chooses.
    asking.until("it is told", async |_| asking.choice().await == Some((8, 1))).await;
    assert!(asking.asked("ok") >= 20);
    assert_eq!((asking.router.status().index.blocks, serving.asked("ok")), (0, 0));
    assert!(serving.router.status().index.blocks > 0);
    // Blocks of running requests are its own to count, and what it books counts by what it was told.
    let (rank, held, booked) = asking.router.book(&request, None).await.unwrap();
    assert_eq!((rank.worker_id, held), (8, 1));
    drop(booked);
    // The server goes.
    serving.runtime.runtime().shutdown(ShutdownReason::Requested);
    let before = asking.asked("ok");
    asking
        .until("it is gone", async |router| router.best_worker(&request).await.map(|it| it.1) == Ok(0))
        .await;
    // And another one comes.
    let other = deployment.router_with(IndexPlace::Served).await;
    other.until_settled(2).await;
    asking.until("it asks the other", async |_| asking.choice().await == Some((8, 1))).await;
    assert!(asking.asked("ok") > before);
}
