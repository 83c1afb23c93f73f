//! One suite of behaviours for every backend.

use std::collections::BTreeMap;
use std::time::Duration;

use tempfile::TempDir;
use tokio::runtime::Handle;
use tokio::time::timeout;

use super::test_records::{channel, endpoint, model};
use super::{Change, Discovery, DiscoveryError, MemStore, Query, Record, RecordKey, RecordState, Watch};
use crate::identity::{EndpointId, Epoch, WorkerId};
use crate::scope::TaskScope;

/// Long enough for a busy machine; no test waits it out.
const PATIENCE: Duration = Duration::from_secs(20);

/// One store that any number of clients join.
enum Fixture {
    Mem(MemStore),
    File(TempDir),
}

impl Fixture {
    fn mem() -> Self {
        Self::Mem(MemStore::new())
    }

    fn file() -> Self {
        Self::File(tempfile::tempdir().unwrap())
    }

    async fn client(&self) -> Discovery {
        let scope = TaskScope::root(Handle::current());
        match self {
            Self::Mem(store) => Discovery::mem(store.clone(), scope),
            Self::File(root) => Discovery::file(root.path(), scope).await.unwrap(),
        }
    }
}

/// What a watch adds up to.
pub(super) struct View {
    watch: Watch,
    pub(super) records: BTreeMap<RecordKey, Record>,
    /// Every state each endpoint was seen in, `None` for removed.
    states: Vec<(RecordKey, Option<RecordState>)>,
}

impl View {
    pub(super) fn new(watch: Watch) -> Self {
        Self { watch, records: BTreeMap::new(), states: Vec::new() }
    }

    async fn step(&mut self) {
        let change = timeout(PATIENCE, self.watch.next()).await.expect("a change in time").expect("open");
        match change {
            Change::Snapshot(records) => {
                self.records = records.into_iter().map(|record| (record.key(), record)).collect();
            }
            Change::Put(record) => {
                if let Record::Endpoint(endpoint) = &record {
                    self.states.push((record.key(), Some(endpoint.state)));
                }
                self.records.insert(record.key(), record);
            }
            Change::Removed(key) => {
                self.records.remove(&key);
                self.states.push((key, None));
            }
        }
    }

    pub(super) async fn until(&mut self, done: impl Fn(&BTreeMap<RecordKey, Record>) -> bool) {
        // The first change is a snapshot, even of nothing.
        self.step().await;
        while !done(&self.records) {
            self.step().await;
        }
    }
}

macro_rules! on_every_backend {
    ($($behaviour:ident),* $(,)?) => {
        mod mem {
            $(#[tokio::test] async fn $behaviour() { super::$behaviour(super::Fixture::mem()).await; })*
        }
        mod file {
            $(#[tokio::test] async fn $behaviour() { super::$behaviour(super::Fixture::file()).await; })*
        }
    };
}

on_every_backend!(
    what_one_registers_others_list_and_watch,
    names_match_whole,
    a_changed_record_replaces_the_old_one,
    leaving_is_seen_as_draining_then_gone,
    dropping_a_registration_leaves,
    another_worker_under_the_same_id_is_refused,
    a_later_incarnation_takes_over,
    a_key_is_registered_once,
    a_key_can_be_registered_again_at_once_after_leaving,
    an_update_keeps_its_key,
    closing_removes_what_is_left,
    many_clients_end_up_with_the_same_view,
);

async fn what_one_registers_others_list_and_watch(fixture: Fixture) {
    let (ours, theirs) = (fixture.client().await, fixture.client().await);
    let first = ours.register(endpoint("ns/comp/ep", 1)).await.unwrap();
    assert_eq!(theirs.list(&Query::AllEndpoints).await.unwrap(), vec![endpoint("ns/comp/ep", 1)]);
    let mut view = View::new(theirs.watch(Query::AllEndpoints));
    let second = ours.register(endpoint("ns/comp/ep", 2)).await.unwrap();
    view.until(|records| records.len() == 2).await;
    drop((first, second));
}

async fn names_match_whole(fixture: Fixture) {
    let client = fixture.client().await;
    let mut held = Vec::new();
    for record in [
        endpoint("ns/a/ep", 1),
        endpoint("ns/ab/ep", 2),
        endpoint("ns/a/ep2", 3),
        model("ns/a/ep", 1, None),
        model("ns/a/ep", 1, Some("adapter")),
        channel("ns", "kv-events", 1),
        channel("nsx", "kv-events", 2),
        channel("ns", "kv-events-2", 3),
    ] {
        held.push(client.register(record).await.unwrap());
    }
    let found = client.list(&Query::Endpoint(EndpointId::new("ns", "a", "ep"))).await.unwrap();
    assert_eq!(found, vec![endpoint("ns/a/ep", 1)]);
    assert_eq!(client.list(&Query::AllEndpoints).await.unwrap().len(), 3);
    assert_eq!(client.list(&Query::AllModels).await.unwrap().len(), 2);
    let channels = |namespace: Option<&str>| Query::EventChannels {
        namespace: namespace.map(str::to_owned),
        topic: "kv-events".into(),
    };
    assert_eq!(client.list(&channels(Some("ns"))).await.unwrap(), vec![channel("ns", "kv-events", 1)]);
    assert_eq!(client.list(&channels(None)).await.unwrap().len(), 2);
}

fn moved(id: u64, address: &str) -> Record {
    let Record::Endpoint(mut record) = endpoint("ns/comp/ep", id) else { unreachable!() };
    record.address = address.to_owned();
    Record::Endpoint(record)
}

async fn a_changed_record_replaces_the_old_one(fixture: Fixture) {
    let (ours, theirs) = (fixture.client().await, fixture.client().await);
    let mut view = View::new(theirs.watch(Query::AllEndpoints));
    let mut registration = ours.register(endpoint("ns/comp/ep", 1)).await.unwrap();
    view.until(|records| records.len() == 1).await;
    registration.update(moved(1, "127.0.0.1:1/new")).await.unwrap();
    while view.records.values().next() != Some(&moved(1, "127.0.0.1:1/new")) {
        view.step().await;
    }
}

async fn leaving_is_seen_as_draining_then_gone(fixture: Fixture) {
    let (ours, theirs) = (fixture.client().await, fixture.client().await);
    let registration = ours.register(endpoint("ns/comp/ep", 1)).await.unwrap();
    let mut view = View::new(theirs.watch(Query::AllEndpoints));
    view.until(|records| records.len() == 1).await;
    registration.leave().await.unwrap();
    while !view.records.is_empty() {
        view.step().await;
    }
    let key = endpoint("ns/comp/ep", 1).key();
    assert!(
        view.states.ends_with(&[(key.clone(), Some(RecordState::Draining)), (key, None)]),
        "{:?}",
        view.states
    );
}

async fn dropping_a_registration_leaves(fixture: Fixture) {
    let (ours, theirs) = (fixture.client().await, fixture.client().await);
    let kept = ours.register(model("ns/comp/ep", 1, None)).await.unwrap();
    let dropped = ours.register(model("ns/comp/ep", 2, None)).await.unwrap();
    let mut view = View::new(theirs.watch(Query::AllModels));
    view.until(|records| records.len() == 2).await;
    drop(dropped);
    while view.records.len() > 1 {
        view.step().await;
    }
    assert!(view.records.contains_key(&model("ns/comp/ep", 1, None).key()));
    drop(kept);
}

async fn another_worker_under_the_same_id_is_refused(fixture: Fixture) {
    let (ours, theirs) = (fixture.client().await, fixture.client().await);
    let _held = ours.register(endpoint("ns/comp/ep", 1)).await.unwrap();
    let Record::Endpoint(mut other) = endpoint("ns/other/ep", 1) else { unreachable!() };
    other.worker_name = "impostor".into();
    let refused = theirs.register(Record::Endpoint(other)).await.err().unwrap();
    let text = refused.to_string();
    assert!(matches!(refused, DiscoveryError::Collision { .. }), "{text}");
    assert!(text.contains("impostor") && text.contains("worker-1"), "{text}");
    let refused = theirs.next_epoch(WorkerId::from_bits(1), "impostor").await.unwrap_err();
    assert!(matches!(refused, DiscoveryError::Collision { .. }));
    assert_eq!(theirs.list(&Query::AllEndpoints).await.unwrap().len(), 1);
}

async fn a_later_incarnation_takes_over(fixture: Fixture) {
    let (ours, theirs) = (fixture.client().await, fixture.client().await);
    let mut old = ours.register(endpoint("ns/comp/ep", 1)).await.unwrap();
    let same_epoch = theirs.register(endpoint("ns/comp/ep", 1)).await.err().unwrap();
    assert!(matches!(same_epoch, DiscoveryError::Superseded { .. }), "{same_epoch}");

    let Record::Endpoint(mut later) = endpoint("ns/comp/ep", 1) else { unreachable!() };
    later.incarnation.epoch = theirs.next_epoch(WorkerId::from_bits(1), "worker-1").await.unwrap();
    assert!(later.incarnation.epoch > Epoch::from_unix_ms(1000));
    let later = Record::Endpoint(later);
    let _new = theirs.register(later.clone()).await.unwrap();
    let outdated = old.update(moved(1, "127.0.0.1:1/old")).await.unwrap_err();
    assert!(matches!(outdated, DiscoveryError::Superseded { .. }), "{outdated}");
    old.leave().await.unwrap_err();
    // The older one's leaving must not take the later one's record along.
    let mut view = View::new(ours.watch(Query::AllEndpoints));
    view.until(|records| records.values().eq([&later])).await;
    assert_eq!(theirs.list(&Query::AllEndpoints).await.unwrap(), vec![later]);
}

async fn a_key_is_registered_once(fixture: Fixture) {
    let client = fixture.client().await;
    let _held = client.register(endpoint("ns/comp/ep", 1)).await.unwrap();
    let twice = client.register(endpoint("ns/comp/ep", 1)).await.err().unwrap();
    assert!(matches!(twice, DiscoveryError::AlreadyRegistered { .. }), "{twice}");
}

async fn a_key_can_be_registered_again_at_once_after_leaving(fixture: Fixture) {
    let client = fixture.client().await;
    for round in 0..3 {
        let registration = client.register(moved(1, &format!("127.0.0.1:{round}/x"))).await.unwrap();
        registration.leave().await.unwrap();
    }
    let _held = client.register(moved(1, "127.0.0.1:9/x")).await.unwrap();
    let other = fixture.client().await;
    // Longer than the removals of the earlier rounds take; what must not happen has no condition to wait for.
    tokio::time::sleep(super::FAREWELL * 2).await;
    assert_eq!(other.list(&Query::AllEndpoints).await.unwrap(), vec![moved(1, "127.0.0.1:9/x")]);
}

async fn an_update_keeps_its_key(fixture: Fixture) {
    let client = fixture.client().await;
    let mut registration = client.register(endpoint("ns/comp/ep", 1)).await.unwrap();
    let refused = registration.update(endpoint("ns/comp/other", 1)).await.unwrap_err();
    assert!(matches!(refused, DiscoveryError::KeyChanged { .. }), "{refused}");
}

async fn closing_removes_what_is_left(fixture: Fixture) {
    let (ours, theirs) = (fixture.client().await, fixture.client().await);
    let _held = ours.register(endpoint("ns/comp/ep", 1)).await.unwrap();
    ours.close().await;
    assert_eq!(theirs.list(&Query::AllEndpoints).await.unwrap(), vec![]);
}

async fn many_clients_end_up_with_the_same_view(fixture: Fixture) {
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(fixture.client().await);
    }
    let registering = clients.iter().enumerate().map(|(n, client)| {
        let client = client.clone();
        TaskScope::root(Handle::current()).spawn("register", async move {
            let mut held = Vec::new();
            for round in 0..8 {
                held.push(client.register(endpoint("ns/comp/ep", (n * 8 + round + 1) as u64)).await.unwrap());
            }
            held
        })
    });
    let mut held = Vec::new();
    for task in registering.collect::<Vec<_>>() {
        held.extend(task.await.unwrap());
    }
    for client in &clients {
        View::new(client.watch(Query::AllEndpoints)).until(|records| records.len() == 32).await;
    }
    drop(held);
}
