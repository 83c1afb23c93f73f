use std::{sync::Arc, time::Duration};

use dynamo_engine_api::{ExternalBlockHash, KvCacheEventData, StorageTier, StoredBlock};
use dynamo_kv_router::{AffinityConfig, AffinityMode, KvRouterConfig, QueueConfig, WorkerRank};
use dynamo_tokens::{BlockSize, HashSeed, local_block_hashes, sequence_hashes};

use super::*;
use crate::{
    GenerateError, RouterConfig, RouterMode,
    router::{
        Booking, RouteRequest, RoutedWorker, Router, Session, WantedAdapter,
        tests::{WORKER, futures_now, request, route, router_for_tests},
    },
};

const FOUR: BlockSize = BlockSize::new(4).unwrap();

#[test]
fn an_adapter_is_there_as_long_as_a_worker_has_it() {
    let adapters = Adapters::default();
    let sets: [(u64, &[&str], [bool; 2]); 6] = [
        (7, &["a"], [true, false]),
        (8, &["a", "b"], [true, true]),
        (7, &[], [true, true]),
        (8, &["b"], [false, true]),
        (9, &[], [false, true]),
        (8, &[], [false, false]),
    ];
    for (worker_id, names, there) in sets {
        adapters.set(worker_id, &owned(names));
        assert_eq!(["a", "b"].map(|name| adapters.contains(name)), there, "{worker_id} {names:?}");
    }
    assert!(adapters.state.read().of_worker.is_empty());
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

/// Workers 7 to 9, of which 8 has the adapter `sql`.
fn router(config: RouterConfig) -> Arc<Router> {
    let router = router_for_tests(config, FOUR);
    for (worker_id, adapters) in [(7, owned(&[])), (8, owned(&["sql"])), (9, owned(&["chat"]))] {
        assert!(router.set_worker(&RoutedWorker { worker_id, adapters, ..WORKER }));
    }
    router
}

fn wants<'a>(name: &'a str, is_registered: bool, tokens: &'a [u32]) -> RouteRequest<'a> {
    let seed = HashSeed::new(Some(name), None);
    RouteRequest { seed, adapter: Some(WantedAdapter { name, is_registered }), ..request(tokens, &[]) }
}

#[test]
fn requests_for_an_adapter_go_where_it_is_in_every_mode() {
    use RouterMode::{Kv, LeastLoaded, PowerOfTwo, Random, RoundRobin};
    for mode in [RoundRobin, Random, Kv, LeastLoaded, PowerOfTwo] {
        let router = router(RouterConfig::of(mode));
        let tokens = [1; 10];
        let bookings: Vec<Booking> =
            (0..6).map(|_| route(&router, &wants("sql", true, &tokens)).unwrap()).collect();
        assert!(bookings.iter().all(|booking| booking.worker().0 == 8), "{mode}");
        assert!(matches!(route(&router, &wants("nobody's", true, &tokens)), Err(GenerateError::NoWorkers)));
        let pinned = RouteRequest { pinned_worker: Some(7), ..wants("sql", true, &tokens) };
        assert!(matches!(route(&router, &pinned), Err(GenerateError::NoWorkers)), "{mode}");
        router.remove_worker(8);
        assert!(matches!(route(&router, &wants("sql", true, &tokens)), Err(GenerateError::NoWorkers)));
    }
}

#[test]
fn an_adapter_that_no_card_names_binds_nobody_unless_it_is_a_model() {
    let router = router(RouterConfig::of(RouterMode::RoundRobin));
    let tokens = [1; 10];
    let chosen = |name: &str| -> Vec<u64> {
        (0..3).map(|_| route(&router, &wants(name, false, &tokens)).unwrap().worker().0).collect()
    };
    assert_eq!(chosen("nobody's"), [7, 8, 9]);
    assert_eq!(chosen("sql"), [8, 8, 8]);
}

#[test]
fn a_prompt_cached_for_an_adapter_is_found_for_it_and_not_for_its_base_or_another() {
    let kv = KvRouterConfig { room_weight: 0.0, ..KvRouterConfig::DEFAULT };
    let router = router(RouterConfig { kv, ..RouterConfig::of(RouterMode::Kv) });
    let tokens: Vec<u32> = (0..16).collect();
    let (mut locals, mut names) = (Vec::new(), Vec::new());
    local_block_hashes(&tokens, FOUR, HashSeed::new(Some("sql"), None), &mut locals);
    sequence_hashes(&locals, &mut names);
    let blocks = names.iter().zip(&locals);
    let block = |(name, &tokens_hash): (&dynamo_tokens::SequenceHash, _)| StoredBlock {
        block_hash: ExternalBlockHash(name.0),
        tokens_hash,
    };
    let stored = KvCacheEventData::Stored { parent_hash: None, blocks: blocks.map(block).collect() };
    let rank = WorkerRank { worker_id: 8, dp_rank: 0 };
    router.index().apply(rank, 1, StorageTier::Device, stored).unwrap();
    router.index().flush(Duration::from_secs(20)).unwrap();
    let found = |wanted: &RouteRequest<'_>| futures_now(router.best_worker(wanted)).unwrap().1;
    assert_eq!(found(&wants("sql", true, &tokens)), 4);
    assert_eq!(found(&wants("chat", true, &tokens)), 0);
    let on_eight = RouteRequest { pinned_worker: Some(8), ..request(&tokens, &[]) };
    assert_eq!(found(&on_eight), 0);
}

#[test]
fn a_session_leaves_its_worker_for_one_with_the_adapter() {
    let affinity = AffinityConfig { ttl: Duration::from_secs(60), mode: AffinityMode::Hard };
    let router =
        router(RouterConfig { affinity: Some(affinity), ..RouterConfig::of(RouterMode::RoundRobin) });
    let session = Session { id: "s".into(), parent: None, is_final: false };
    let tokens = [1; 10];
    let plain = RouteRequest { session: Some(&session), ..request(&tokens, &[]) };
    assert_eq!(route(&router, &plain).unwrap().worker().0, 7);
    let adapted = RouteRequest { session: Some(&session), ..wants("sql", true, &tokens) };
    assert_eq!(route(&router, &adapted).unwrap().worker().0, 8);
    assert_eq!(route(&router, &plain).unwrap().worker().0, 8, "where it is now");
}

#[tokio::test]
async fn who_waits_for_an_adapters_worker_keeps_nobody_else_waiting() {
    let queue = QueueConfig { threshold: Some(0.0), ..QueueConfig::OFF };
    let kv = KvRouterConfig { queue, ..KvRouterConfig::DEFAULT };
    let router = router(RouterConfig { kv, ..RouterConfig::of(RouterMode::Kv) });
    let tokens = [1; 40];
    let running = route(&router, &wants("sql", true, &tokens)).unwrap();
    let waiting = wants("sql", true, &tokens);
    let mut waiting = std::pin::pin!(router.route(&waiting));
    let waker = std::task::Waker::noop();
    assert!(waiting.as_mut().poll(&mut std::task::Context::from_waker(waker)).is_pending());
    let other = request(&tokens, &[]);
    let other = tokio::time::timeout(Duration::from_secs(20), router.route(&other)).await.unwrap().unwrap();
    assert_ne!(other.worker().0, 8);
    drop(running);
    assert_eq!(waiting.await.unwrap().worker().0, 8);
}
