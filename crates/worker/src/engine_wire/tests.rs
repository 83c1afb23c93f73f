use std::{net::Ipv4Addr, time::Duration};

use dynamo_engine_api::{ExternalBlockHash, RouterEvent, StoredBlock};
use dynamo_runtime::{
    DistributedRuntime, EventItem, EventScope, EventSubscriber, Runtime, RuntimeConfig, ShutdownReason,
    events::decode_payload,
};
use dynamo_tokens::{BlockSize, HashSeed, LocalBlockHash};
use tokio::time::timeout;

use super::*;
use crate::{EngineEventSource, EngineIntakeMetrics, EngineListener, KvPublisher, LoadGauges, SourceMetrics};

/// Long enough for a busy machine; no test waits it out.
const PATIENCE: Duration = Duration::from_secs(20);
const SIZE: u32 = 4;

fn tokens(blocks: std::ops::Range<u32>) -> Vec<TokenId> {
    (blocks.start * SIZE..blocks.end * SIZE).collect()
}

fn stored(parent: Option<u64>, blocks: std::ops::Range<u32>) -> KvCacheEventData {
    stored_under(HashSeed::PLAIN, parent, blocks)
}

fn stored_under(seed: HashSeed, parent: Option<u64>, blocks: std::ops::Range<u32>) -> KvCacheEventData {
    let block = |(number, own): (u32, &[TokenId])| StoredBlock {
        block_hash: ExternalBlockHash(u64::from(number) + 1),
        tokens_hash: LocalBlockHash::of(own, seed),
    };
    let own = tokens(blocks.clone());
    let blocks = blocks.zip(own.chunks(SIZE as usize)).map(block).collect();
    KvCacheEventData::Stored { parent_hash: parent.map(ExternalBlockHash), blocks }
}

/// A simulated engine's sockets and the worker that listens there.
struct Setting {
    runtime: DistributedRuntime,
    wire: Arc<EngineWire>,
    _listeners: Vec<EngineListener>,
    metrics: SourceMetrics,
    subscriber: EventSubscriber,
    adapters: Arc<LoadedAdapters>,
}

impl Setting {
    async fn new(ranks: u32, block_size: u32) -> Self {
        let runtime = Runtime::new(tokio::runtime::Handle::current());
        let runtime = DistributedRuntime::new(runtime, RuntimeConfig::process_local()).await.unwrap();
        let about = EventScope::component("ns", "backend");
        let subscriber = runtime.event_plane().subscribe(about.clone(), "kv-events").await.unwrap();
        let publisher = runtime.event_plane().publisher(about, "kv-events").await.unwrap();
        let load = LoadGauges::new(runtime.metrics()).unwrap();
        let publisher = KvPublisher::start(7, 0..ranks, publisher, &load, runtime.scope());
        let host = Ipv4Addr::LOCALHOST.into();
        let adapters: Arc<LoadedAdapters> = Arc::default();
        let wire =
            EngineWire::start(host, WirePorts::default(), ranks, SIZE, adapters.clone(), publisher.clone())
                .unwrap();

        let metrics = EngineIntakeMetrics::new(runtime.metrics()).unwrap().of_worker(7);
        let size = BlockSize::new(block_size).unwrap();
        let listen = |endpoint: &EngineEndpoint| {
            let source = EngineEventSource::new("engine", publisher.clone(), size, 0, metrics.clone());
            EngineListener::start(endpoint.clone(), source, metrics.clone()).unwrap()
        };
        let listeners = wire.endpoints().iter().map(listen).collect();
        Self { runtime, wire: Arc::new(wire), _listeners: listeners, metrics, subscriber, adapters }
    }

    async fn event(&mut self) -> RouterEvent {
        let mut events = self.events().await;
        assert_eq!(events.len(), 1);
        events.remove(0)
    }

    /// Those of the next message.
    async fn events(&mut self) -> Vec<RouterEvent> {
        loop {
            match timeout(PATIENCE, self.subscriber.next()).await.unwrap().unwrap() {
                EventItem::Event { payload, .. } => {
                    return decode_payload(&payload).unwrap();
                }
                EventItem::Gap { .. } => panic!("events were dropped"),
                _ => {}
            }
        }
    }
}

#[tokio::test]
async fn what_a_simulated_engine_publishes_comes_out_as_it_was() {
    let mut setting = Setting::new(2, SIZE).await;
    let wire = setting.wire.clone();
    let removed = KvCacheEventData::Removed { block_hashes: vec![ExternalBlockHash(2)] };
    for (rank, data, own) in [
        (0, stored(None, 0..3), tokens(0..3)),
        (1, stored(None, 5..6), tokens(5..6)),
        (0, stored(Some(3), 3..5), tokens(3..5)),
        (0, removed, vec![]),
        (0, KvCacheEventData::Cleared, vec![]),
    ] {
        wire.kv_events_with_tokens(rank, vec![data.clone()], &own);
        let event = setting.event().await;
        assert_eq!((event.worker_id, event.event.dp_rank, event.event.data), (7, rank, data));
    }
    assert_eq!((setting.metrics.batches.get(), setting.metrics.lost.get()), (5, 0));
    setting.runtime.runtime().shutdown(ShutdownReason::Requested);
}

#[tokio::test]
async fn blocks_of_an_adapter_keep_its_hashes_over_the_wire() {
    let mut setting = Setting::new(1, SIZE).await;
    setting.adapters.load("sql");
    let wire = setting.wire.clone();
    let seed = HashSeed::new(Some("sql"), None);
    // The base model's and the adapter's in one batch, and one that continues the adapter's.
    let both = vec![stored(None, 0..2), stored_under(seed, None, 7..9)];
    wire.kv_events_with_tokens(0, both.clone(), &[tokens(0..2), tokens(7..9)].concat());
    let came: Vec<KvCacheEventData> = setting.events().await.into_iter().map(|it| it.event.data).collect();
    assert_eq!(came, both);
    setting.adapters.unload("sql");
    let next = stored_under(seed, Some(9), 9..10);
    wire.kv_events_with_tokens(0, vec![next.clone()], &tokens(9..10));
    assert_eq!(setting.event().await.event.data, next, "of a request that still runs");
    setting.runtime.runtime().shutdown(ShutdownReason::Requested);
}

#[tokio::test]
async fn blocks_of_another_size_are_left_out_and_take_no_number() {
    let mut setting = Setting::new(1, 2 * SIZE).await;
    setting.wire.kv_events_with_tokens(0, vec![stored(None, 0..3)], &tokens(0..3));
    setting.wire.kv_events_with_tokens(0, vec![KvCacheEventData::Cleared], &[]);
    let event = setting.event().await;
    assert_eq!((event.event.event_id, event.event.data), (1, KvCacheEventData::Cleared));
    let mut text = String::new();
    setting.runtime.metrics().encode_text(&mut text);
    let filtered =
        "dynamo_component_kv_publisher_zmq_events_filtered_total{reason=\"block_size\",worker_id=\"7\"} 1";
    assert!(text.contains(filtered), "{text}");
    setting.runtime.runtime().shutdown(ShutdownReason::Requested);
}

#[test]
fn ports_that_there_are_not_are_refused() {
    struct Nobody;
    impl EngineObserver for Nobody {
        fn kv_events(&self, _: DpRank, _: Vec<KvCacheEventData>) {}
        fn load(&self, _: ActiveLoad) {}
    }
    let start = |ports, ranks| {
        EngineWire::start(Ipv4Addr::LOCALHOST.into(), ports, ranks, SIZE, Arc::default(), Arc::new(Nobody))
            .err()
    };
    let refused = start(WirePorts { events: u16::MAX, replay: 0 }, 2);
    assert!(matches!(refused, Some(EngineWireError::Ports { ranks: 2, .. })));
    let taken = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let events = taken.local_addr().unwrap().port();
    assert!(matches!(start(WirePorts { events, replay: 0 }, 1), Some(EngineWireError::Bind { .. })));
}
