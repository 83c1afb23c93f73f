use std::time::{Duration, Instant};

use dynamo_engine_api::{ExternalBlockHash, KvCacheEventData, StorageTier, StoredBlock};
use dynamo_kv_router::MatchBuffer;
use dynamo_runtime::Runtime;
use dynamo_tokens::LocalBlockHash;

use super::*;
use crate::indexer::{fake_source::FakeSource, source::Delivery};

fn key(model: &str) -> ModelKey {
    ModelKey { model_name: model.into(), routing_group: "default".into() }
}

fn rank(worker_id: u64, dp_rank: u32) -> WorkerRank {
    WorkerRank { worker_id, dp_rank }
}

fn registration(rank: WorkerRank) -> Registration {
    Registration {
        key: key("m"),
        block_size: 4,
        rank,
        endpoint: "tcp://127.0.0.1:5557".into(),
        replay_endpoint: None,
    }
}

fn stored(names: std::ops::Range<u64>) -> Delivery {
    let block = |name| StoredBlock { block_hash: ExternalBlockHash(name), tokens_hash: LocalBlockHash(name) };
    let event = KvCacheEventData::Stored { parent_hash: None, blocks: names.map(block).collect() };
    Delivery::Batch { sequence: 0, events: vec![(StorageTier::Device, event)] }
}

fn world() -> (Arc<FakeSource>, Registry, Runtime) {
    let runtime = Runtime::new(tokio::runtime::Handle::current());
    let source = Arc::new(FakeSource::default());
    let choice = IndexChoice::new(2, None).unwrap();
    let registry = Registry::new(source.clone(), choice, runtime.scope().child("test"));
    (source, registry, runtime)
}

fn held(registry: &Registry, hashes: std::ops::Range<u64>) -> Vec<(WorkerRank, u32)> {
    let local: Vec<LocalBlockHash> = hashes.map(LocalBlockHash).collect();
    let Some(model) = registry.model(&key("m")) else { return Vec::new() };
    let found = model.index.find_matches(&local, Instant::now(), &mut MatchBuffer::default());
    let mut found: Vec<_> = found.iter().map(|held| (held.rank, held.device)).collect();
    found.sort();
    found
}

async fn eventually(registry: &Registry, what: &[(WorkerRank, u32)]) {
    let look = async {
        while held(registry, 0..100) != what {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let found = tokio::time::timeout(Duration::from_secs(10), look).await;
    assert!(found.is_ok(), "{:?} is not {what:?}", held(registry, 0..100));
}

#[tokio::test]
async fn what_is_delivered_is_applied_once_the_registry_is_open() {
    let (source, registry, _runtime) = world();
    registry.register(registration(rank(7, 0))).unwrap();
    registry.register(registration(rank(7, 2))).unwrap();
    source.deliver(rank(7, 0), stored(0..3)).await.unwrap();
    source.deliver(rank(7, 2), stored(0..5)).await.unwrap();
    tokio::task::yield_now().await;
    assert_eq!(held(&registry, 0..100), []);
    registry.resume();
    eventually(&registry, &[(rank(7, 0), 3), (rank(7, 2), 5)]).await;
    source.deliver(rank(7, 2), Delivery::Restarted).await.unwrap();
    source.deliver(rank(7, 2), stored(0..1)).await.unwrap();
    eventually(&registry, &[(rank(7, 0), 3), (rank(7, 2), 1)]).await;
}

#[tokio::test]
async fn more_than_one_call_takes_is_applied_in_pieces_and_in_order() {
    let (source, registry, _runtime) = world();
    registry.resume();
    registry.register(registration(rank(7, 0))).unwrap();
    let mut events = Vec::new();
    for name in 0..5000u64 {
        let parent_hash = name.checked_sub(1).map(ExternalBlockHash);
        let block = StoredBlock { block_hash: ExternalBlockHash(name), tokens_hash: LocalBlockHash(name) };
        events.push((StorageTier::Device, KvCacheEventData::Stored { parent_hash, blocks: vec![block] }));
    }
    source.deliver(rank(7, 0), Delivery::Batch { sequence: 1, events }).await.unwrap();
    eventually(&registry, &[(rank(7, 0), 100)]).await;
}

#[tokio::test]
async fn a_late_delivery_of_an_earlier_registration_counts_for_nothing() {
    let (source, registry, _runtime) = world();
    registry.register(registration(rank(7, 0))).unwrap();
    registry.register(registration(rank(7, 1))).unwrap();
    // It waits in the lane while the rank goes and comes back.
    source.deliver(rank(7, 0), stored(0..9)).await.unwrap();
    registry.unregister(&key("m"), 7, Some(0)).unwrap();
    assert!(source.listens(rank(7, 0)).is_none());
    registry.register(registration(rank(7, 0))).unwrap();
    source.deliver(rank(7, 0), stored(0..2)).await.unwrap();
    registry.resume();
    eventually(&registry, &[(rank(7, 0), 2)]).await;
}

#[tokio::test]
async fn the_last_engine_takes_its_index_with_it() {
    let (source, registry, _runtime) = world();
    registry.resume();
    registry.register(registration(rank(7, 0))).unwrap();
    registry.register(registration(rank(8, 5))).unwrap();
    source.deliver(rank(7, 0), stored(0..3)).await.unwrap();
    source.deliver(rank(8, 5), stored(0..4)).await.unwrap();
    eventually(&registry, &[(rank(7, 0), 3), (rank(8, 5), 4)]).await;
    assert_eq!(
        registry.unregister(&key("m"), 8, Some(0)).unwrap_err(),
        UnregisterError::UnknownRank(rank(8, 0))
    );
    registry.unregister(&key("m"), 7, None).unwrap();
    assert_eq!(held(&registry, 0..100), [(rank(8, 5), 4)]);
    registry.unregister(&key("m"), 8, None).unwrap();
    assert!(registry.model(&key("m")).is_none());
    assert_eq!(registry.unregister(&key("m"), 8, None).unwrap_err(), UnregisterError::UnknownInstance(8));
    // The size of its blocks is free to change.
    registry.register(Registration { block_size: 8, ..registration(rank(8, 5)) }).unwrap();
    assert_eq!(held(&registry, 0..100), []);
    // What nobody listens to any more is not waited for.
    let refused = async { while source.deliver(rank(7, 0), stored(0..3)).await.is_ok() {} };
    tokio::time::timeout(Duration::from_secs(10), refused).await.unwrap();
}

#[tokio::test]
async fn registrations_that_contradict_are_refused_and_change_nothing() {
    let (_source, registry, _runtime) = world();
    let first = registration(rank(7, 0));
    registry.register(first.clone()).unwrap();
    assert_eq!(
        registry.register(first.clone()).unwrap_err().to_string(),
        "instance 7 dp_rank 0 already registered"
    );
    let other = Registration { block_size: 8, ..registration(rank(8, 0)) };
    assert_eq!(
        registry.register(other).unwrap_err().to_string(),
        "block_size mismatch for model=m routing_group=default: existing=4, requested=8"
    );
    let bad = Registration { endpoint: "bogus".into(), key: key("other"), ..first.clone() };
    assert!(matches!(registry.register(bad), Err(RegisterError::Endpoint(_))));
    let bad = Registration { replay_endpoint: Some("bad".into()), key: key("other"), ..first.clone() };
    assert_eq!(
        registry.register(bad).unwrap_err().to_string(),
        "invalid replay endpoint `bad`: invalid ZMQ endpoint `bad`: missing scheme"
    );
    let none = Registration { block_size: 0, key: key("other"), ..first.clone() };
    assert!(matches!(registry.register(none), Err(RegisterError::NoBlockSize)));
    let far = Registration { rank: rank(7, 1 << 20), ..first };
    assert!(matches!(registry.register(far), Err(RegisterError::Worker(_))));
    assert_eq!(registry.models().len(), 1);
    assert_eq!(registry.model(&key("m")).unwrap().ranks(), [rank(7, 0)]);
}
