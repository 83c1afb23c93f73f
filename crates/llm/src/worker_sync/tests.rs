use dynamo_tokens::BlockSize;

use super::*;
use crate::{RouterConfig, RouterMode};

fn sync() -> WorkerSync {
    let router =
        crate::router::router_for_tests(RouterConfig::of(RouterMode::Kv), BlockSize::new(4).unwrap());
    WorkerSync::new(router, None, Arc::new(WorkerCount::new(0)))
}

fn seen(worker_id: u64, epoch: u64, state: InstanceState) -> Seen {
    Seen { worker_id, epoch, state }
}

fn registered(workers: &[(u64, u64)]) -> WorkerCards {
    let card = |&(worker_id, epoch): &(u64, u64)| {
        let runtime_config = RuntimeConfigCard::default();
        (worker_id, WorkerCard { epoch, runtime_config, adapters: Vec::new() })
    };
    WorkerCards { own: workers.iter().map(card).collect(), others: BTreeSet::new() }
}

/// `+` for each worker that was added, `-` for each that was removed.
fn told(news: Vec<WorkerNews>) -> String {
    let sign = |news: &WorkerNews| match news {
        WorkerNews::Added { worker_id, epoch, .. } => format!("+{worker_id}@{epoch}"),
        WorkerNews::Removed { worker_id } => format!("-{worker_id}"),
    };
    news.iter().map(sign).collect::<Vec<_>>().join(" ")
}

#[test]
fn a_worker_whose_records_vanished_keeps_its_place_until_it_is_given_up() {
    let mut sync = sync();
    assert_eq!(told(sync.update(&[seen(7, 1, InstanceState::Ready)], registered(&[(7, 1)]))), "+7@1");
    let doubtful = [seen(7, 1, InstanceState::InDoubt)];
    assert_eq!(told(sync.update(&doubtful, registered(&[]))), "");
    assert!(!sync.routed[&7].draining);
    assert_eq!(sync.count.now(), 1);
    assert_eq!(told(sync.update(&[], registered(&[]))), "-7");
    assert!(sync.remembered.is_empty());
    assert_eq!(sync.count.now(), 0);
}

#[test]
fn a_worker_needs_both_records_of_the_same_incarnation() {
    let mut sync = sync();
    assert_eq!(told(sync.update(&[seen(7, 1, InstanceState::Ready)], registered(&[]))), "");
    // The card of the next incarnation comes before its endpoint.
    assert_eq!(told(sync.update(&[seen(7, 1, InstanceState::Ready)], registered(&[(7, 2)]))), "");
    assert_eq!(told(sync.update(&[seen(7, 2, InstanceState::Ready)], registered(&[(7, 2)]))), "+7@2");
    assert_eq!(told(sync.update(&[seen(7, 3, InstanceState::Ready)], registered(&[]))), "-7");
}

#[test]
fn a_worker_that_registers_another_model_is_not_remembered() {
    let mut sync = sync();
    let ready = [seen(7, 1, InstanceState::Ready)];
    sync.update(&ready, registered(&[(7, 1)]));
    let other = WorkerCards { own: BTreeMap::new(), others: [7].into() };
    assert_eq!(told(sync.update(&ready, other)), "-7");
}

#[test]
fn a_worker_that_cannot_be_taken_on_is_not_told_of() {
    let mut sync = sync();
    let mut cards = registered(&[(7, 1)]);
    let runtime_config = RuntimeConfigCard {
        data_parallel_size: u32::MAX,
        data_parallel_start_rank: u32::MAX,
        ..RuntimeConfigCard::default()
    };
    cards.own.get_mut(&7).unwrap().runtime_config = runtime_config;
    assert_eq!(told(sync.update(&[seen(7, 1, InstanceState::Ready)], cards)), "");
    assert!(sync.routed.is_empty());
}

#[test]
fn a_worker_in_doubt_keeps_its_adapters_and_one_that_unloads_does_not() {
    let mut sync = sync();
    let ready = [seen(7, 1, InstanceState::Ready)];
    let with = |adapters: &[&str]| {
        let mut cards = registered(&[(7, 1)]);
        cards.own.get_mut(&7).unwrap().adapters = adapters.iter().map(|&name| name.to_owned()).collect();
        cards
    };
    assert_eq!(told(sync.update(&ready, with(&["sql"]))), "+7@1");
    assert!(sync.router.has_adapter("sql"));
    assert_eq!(told(sync.update(&ready, with(&["chat", "sql"]))), "", "it is the same worker");
    assert!(sync.router.has_adapter("chat"));
    sync.update(&ready, with(&["chat"]));
    assert!(!sync.router.has_adapter("sql"));
    sync.update(&[seen(7, 1, InstanceState::InDoubt)], registered(&[]));
    assert!(sync.router.has_adapter("chat"));
    sync.update(&[], registered(&[]));
    assert!(!sync.router.has_adapter("chat"));
}
