use dynamo_kv_router::{ApproximateConfig, CacheSource, KvRouterConfig};
use dynamo_tokens::BlockSize;

use super::*;
use crate::router::{
    Booking, RoutedWorker, RouterMode, router_for_tests,
    tests::{WORKER, request},
};

const MEMORY: ApproximateConfig = ApproximateConfig::REFERENCE;

fn router(mode: RouterMode, caches: CacheSource) -> Arc<Router> {
    let kv = KvRouterConfig { caches, ..KvRouterConfig::REFERENCE };
    let router = router_for_tests(RouterConfig { kv, ..RouterConfig::of(mode) }, BlockSize::new(4).unwrap());
    for worker_id in [7, 8] {
        assert!(router.set_worker(&RoutedWorker { worker_id, ..WORKER }));
    }
    router
}

async fn send(router: &Arc<Router>, tokens: &[u32]) -> Booking {
    router.route(&request(tokens, &[])).await.unwrap()
}

#[tokio::test]
async fn without_events_a_prompt_is_where_it_was_sent_until_the_worker_goes() {
    let router = router(RouterMode::Kv, CacheSource::Sent(MEMORY));
    assert!(!router.wants_events() && router.forgets_sent());
    let tokens: Vec<u32> = (0..42).collect();
    router.advise(&request(&tokens, &[])).await.unwrap();
    assert_eq!(router.sent_counts().blocks, 0, "advice sends nothing");
    let first = send(&router, &tokens).await;
    let (worker_id, overlap) = (first.worker().0, first.overlap_blocks());
    drop(first);
    let again = send(&router, &tokens).await;
    assert_eq!((again.worker().0, overlap, again.overlap_blocks()), (worker_id, 0, 10));
    drop(again);
    let other = send(&router, &[9; 40]).await;
    assert_eq!(other.overlap_blocks(), 0);
    drop(other);
    assert!(router.set_worker(&RoutedWorker { worker_id, epoch: 2, ..WORKER }));
    assert_eq!(send(&router, &tokens).await.overlap_blocks(), 0, "it began anew");
    for worker_id in [7, 8] {
        router.remove_worker(worker_id);
    }
    assert_eq!(router.sent_counts().blocks, 0);
}

#[tokio::test]
async fn beside_events_the_longer_run_counts_and_the_index_knows_nothing_of_what_was_sent() {
    let router = router(RouterMode::Kv, CacheSource::EventsAndSent(MEMORY));
    assert!(router.wants_events());
    let tokens: Vec<u32> = (0..40).collect();
    let sent = send(&router, &tokens).await;
    let (worker_id, dp_rank) = sent.worker();
    drop(sent);
    let best = WorkerRank { worker_id, dp_rank };
    assert_eq!(router.best_worker(&request(&tokens, &[])).await.unwrap(), (best, 10));
    // A rank's card is compared with what it said itself.
    assert_eq!((router.index().held_blocks(best), router.sent_counts().blocks), (0, 10));
}

#[tokio::test]
async fn who_does_not_look_at_caches_remembers_nothing() {
    let blind = router(RouterMode::RoundRobin, CacheSource::Sent(MEMORY));
    drop(send(&blind, &[1; 40]).await);
    assert_eq!((blind.sent_counts().blocks, blind.forgets_sent()), (0, false));
    let lru = ApproximateConfig { policy: CachePolicy::Lru, ..MEMORY };
    let lru = router(RouterMode::Kv, CacheSource::Sent(lru));
    drop(send(&lru, &[1; 40]).await);
    assert_eq!((lru.sent_counts().blocks, lru.forgets_sent()), (10, false));
}
