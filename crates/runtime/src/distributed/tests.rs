mod processes;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::{DistributedRuntime, RequestPlaneSource, RuntimeConfig, ServeError, ServedEndpoint, StartError};
use crate::client::{Client, ClientError, InstanceState, Opened};
use crate::discovery::{DiscoveryConfig, DiscoveryError, Query};
use crate::identity::{EndpointId, WorkerId};
use crate::request_plane::{Handler, IncomingRequest, OutgoingRequest, Responder};
use crate::runtime::Runtime;
use crate::shutdown::{Phase, ShutdownLimits, ShutdownReason};

/// Long enough for a busy machine; no test waits it out.
const PATIENCE: Duration = Duration::from_secs(20);

fn endpoint() -> EndpointId {
    EndpointId::new("ns", "backend", "generate")
}

/// Runtimes of which each can be shut down alone, with one store.
struct Cluster {
    config: RuntimeConfig,
}

impl Cluster {
    fn new() -> Self {
        Self { config: RuntimeConfig::process_local() }
    }

    async fn member(&self) -> DistributedRuntime {
        self.member_with(|_| {}).await.unwrap()
    }

    async fn member_with(
        &self,
        edit: impl FnOnce(&mut RuntimeConfig),
    ) -> Result<DistributedRuntime, StartError> {
        let mut config = self.config.clone();
        config.metrics = crate::metrics::Metrics::new();
        edit(&mut config);
        DistributedRuntime::new(Runtime::with_limits(Handle::current(), config.shutdown), config).await
    }

    /// A worker that answers with its id, in hex.
    async fn worker(&self) -> (DistributedRuntime, ServedEndpoint) {
        let worker = self.member().await;
        let served = serve_name(&worker).await;
        (worker, served)
    }
}

async fn serve_name(worker: &DistributedRuntime) -> ServedEndpoint {
    let name = format!("{:x}", worker.incarnation().worker_id);
    let handler = move |_: IncomingRequest, mut responder: Responder| {
        responder.push(name.as_bytes());
        responder.finish();
    };
    worker.serve_endpoint(endpoint(), Arc::new(handler)).await.unwrap()
}

fn request() -> OutgoingRequest {
    OutgoingRequest {
        id: "test".into(),
        payload: Bytes::from_static(b"hello"),
        time_left: Some(PATIENCE),
        metadata: vec![],
    }
}

async fn answer(mut opened: Opened) -> String {
    let item = timeout(PATIENCE, opened.stream.next()).await.unwrap().unwrap().unwrap();
    assert!(timeout(PATIENCE, opened.stream.next()).await.unwrap().is_none(), "the stream ends");
    String::from_utf8(item.to_vec()).unwrap()
}

fn name(worker: &DistributedRuntime) -> String {
    format!("{:x}", worker.incarnation().worker_id)
}

async fn wait_for(client: &Client, wanted: impl Fn(&[(WorkerId, InstanceState)]) -> bool) {
    let mut changes = client.watch();
    let seen = changes.wait_for(|instances| {
        wanted(&instances.iter().map(|i| (i.worker_id(), i.state())).collect::<Vec<_>>())
    });
    let seen = timeout(PATIENCE, seen).await.map(|result| result.is_ok());
    assert_eq!(seen, Ok(true), "instances: {:?}", client.instances());
}

#[tokio::test]
async fn requests_take_turns_and_reach_whom_they_name() {
    let cluster = Cluster::new();
    let ((first, _a), (second, _b)) = (cluster.worker().await, cluster.worker().await);
    let client = cluster.member().await.client(endpoint());
    wait_for(&client, |all| all.len() == 2).await;

    let mut seen = Vec::new();
    for _ in 0..4 {
        seen.push(answer(client.round_robin(request()).await.unwrap()).await);
    }
    assert_eq!((&seen[0], &seen[1]), (&seen[2], &seen[3]));
    assert_eq!(seen.iter().cloned().collect::<BTreeSet<_>>(), BTreeSet::from([name(&first), name(&second)]));

    for worker in [&first, &second] {
        let opened = client.direct(request(), worker.incarnation().worker_id).await.unwrap();
        assert_eq!(opened.instance.incarnation(), worker.incarnation());
        assert_eq!(answer(opened).await, name(worker));
    }
    let unknown = client.direct(request(), WorkerId::from_bits(1)).await.err().unwrap();
    assert!(matches!(unknown, ClientError::UnknownInstance { .. }), "{unknown}");
    answer(client.random(request()).await.unwrap()).await;
}

#[tokio::test]
async fn without_a_worker_it_is_an_error_and_the_first_one_is_waited_for() {
    let cluster = Cluster::new();
    let asker = cluster.member().await;
    let client = asker.client(endpoint());
    let nobody = client.round_robin(request()).await.err().unwrap();
    assert!(matches!(nobody, ClientError::NoInstances { .. }), "{nobody}");
    let nobody = client.wait_for_instances(Duration::from_millis(1)).await.err().unwrap();
    assert!(matches!(nobody, ClientError::NobodyCame { .. }), "{nobody}");
    let (_worker, _served) = cluster.worker().await;
    assert_eq!(client.wait_for_instances(PATIENCE).await.unwrap().len(), 1);
}

#[tokio::test]
async fn an_endpoint_that_left_is_refused_and_can_come_back() {
    let cluster = Cluster::new();
    let ((sleeper, served), (other, _b)) = (cluster.worker().await, cluster.worker().await);
    let client = cluster.member().await.client(endpoint());
    wait_for(&client, |all| all.len() == 2).await;
    let before = client.instance(sleeper.incarnation().worker_id).unwrap();
    served.leave().await.unwrap();
    assert!(!sleeper.system().is_ready());
    wait_for(&client, |all| all.len() == 1).await;
    for _ in 0..3 {
        assert_eq!(answer(client.round_robin(request()).await.unwrap()).await, name(&other));
    }
    // It still serves what was on the way.
    let stream = client.open(&before, request()).await.unwrap();
    assert_eq!(answer(Opened { instance: before, stream }).await, name(&sleeper));
    served.come_back().await.unwrap();
    wait_for(&client, |all| all.len() == 2).await;
    assert!(sleeper.system().is_ready());
}

#[tokio::test]
async fn a_worker_that_died_is_avoided_and_costs_no_request() {
    let cluster = Cluster::new();
    let ((dead, _a), (alive, _b)) = (cluster.worker().await, cluster.worker().await);
    let client = cluster.member().await.client(endpoint());
    wait_for(&client, |all| all.len() == 2).await;
    for _ in 0..2 {
        answer(client.round_robin(request()).await.unwrap()).await;
    }
    // All its sockets close and nothing is said in discovery.
    dead.runtime().planes_scope().cancel();
    timeout(PATIENCE, dead.runtime().planes_scope().closed()).await.unwrap();
    for _ in 0..20 {
        assert_eq!(answer(client.round_robin(request()).await.unwrap()).await, name(&alive));
    }
    // Its record goes without draining; the failed attempts have told already that it is not there.
    dead.discovery().close().await;
    wait_for(&client, |all| all.iter().any(|(_, state)| *state == InstanceState::InDoubt)).await;
    assert_eq!(answer(client.random(request()).await.unwrap()).await, name(&alive));
}

#[tokio::test]
async fn a_worker_in_doubt_is_the_last_resort_and_given_up_when_it_does_not_answer() {
    let cluster = Cluster::new();
    let (worker, _served) = cluster.worker().await;
    let asker = cluster.member().await;
    let client = asker.client(endpoint());
    wait_for(&client, |all| all.len() == 1).await;
    worker.discovery().close().await;
    wait_for(&client, |all| matches!(all, [(_, InstanceState::InDoubt)])).await;
    let mut text = String::new();
    asker.metrics().encode_text(&mut text);
    assert!(text.contains("dynamo_discovery_instances_in_doubt 1"), "{text}");
    assert_eq!(answer(client.round_robin(request()).await.unwrap()).await, name(&worker), "it lives");
    worker.runtime().planes_scope().cancel();
    timeout(PATIENCE, worker.runtime().planes_scope().closed()).await.unwrap();
    let refused = client.round_robin(request()).await.err().unwrap();
    assert!(matches!(refused, ClientError::Refused { attempts: 1, .. }), "{refused}");
    assert_eq!(client.instances().len(), 0);
    let mut text = String::new();
    asker.metrics().encode_text(&mut text);
    assert!(text.contains("dynamo_discovery_instances_in_doubt 0"), "{text}");
}

#[tokio::test]
async fn shutting_down_a_worker_fails_no_request_and_ends_no_stream() {
    let cluster = Cluster::new();
    let (_other, _served) = cluster.worker().await;
    let leaver = cluster
        .member_with(|config| {
            config.shutdown = ShutdownLimits { grace: Duration::from_millis(100), ..ShutdownLimits::LOCAL }
        })
        .await
        .unwrap();
    let release = Arc::new(Notify::new());
    let slow = {
        let (release, scope) = (release.clone(), leaver.scope().clone());
        move |request: IncomingRequest, mut responder: Responder| {
            responder.push(b"first");
            responder.flush();
            if &*request.id != "slow" {
                return responder.finish();
            }
            let release = release.clone();
            scope.spawn("answer slowly", async move {
                release.notified().await;
                responder.push(b"last");
                responder.finish();
            });
        }
    };
    let _slow = leaver.serve_endpoint(endpoint(), Arc::new(slow)).await.unwrap();
    let client = cluster.member().await.client(endpoint());
    wait_for(&client, |all| all.len() == 2).await;
    let mut slow = request();
    slow.id = "slow".into();
    let mut running = client.direct(slow, leaver.incarnation().worker_id).await.unwrap().stream;
    assert_eq!(running.next().await.unwrap().unwrap(), "first");

    let stop = Arc::new(AtomicBool::new(false));
    let load = leaver.scope().spawn("load", {
        let (client, stop) = (client.clone(), stop.clone());
        async move {
            let mut sent = 0;
            while !stop.load(Ordering::Relaxed) {
                let mut opened = client.round_robin(request()).await.expect("somebody accepts");
                while let Some(item) = opened.stream.next().await {
                    item.expect("and answers");
                }
                sent += 1;
                tokio::task::yield_now().await;
            }
            sent
        }
    });
    leaver.runtime().shutdown(ShutdownReason::Requested);
    assert!(!leaver.system().is_ready() || leaver.runtime().is_shutting_down());
    let mut phases = leaver.runtime().phase();
    timeout(PATIENCE, phases.wait_for(|phase| *phase == Phase::Draining)).await.unwrap().unwrap();
    wait_for(&client, |all| all.len() == 1).await;
    stop.store(true, Ordering::Relaxed);
    assert!(timeout(PATIENCE, load).await.unwrap().unwrap() > 0);
    assert_eq!(*leaver.runtime().phase().borrow(), Phase::Draining, "a stream is open");
    release.notify_one();
    assert_eq!(running.next().await.unwrap().unwrap(), "last");
    assert!(running.next().await.is_none());
    drop(running);
    timeout(PATIENCE, leaver.runtime().closed()).await.unwrap();
    let late = leaver.serve_endpoint(endpoint(), Arc::new(|_: IncomingRequest, _: Responder| {})).await;
    assert!(matches!(late.err(), Some(ServeError::ShuttingDown)));
}

#[tokio::test]
async fn an_id_belongs_to_one_name_and_a_restart_is_a_later_incarnation() {
    let cluster = Cluster::new();
    let named = |name: &'static str| {
        move |config: &mut RuntimeConfig| {
            config.worker_id = Some(WorkerId::from_bits(42));
            config.worker_name = Some(name.to_owned());
        }
    };
    let first = cluster.member_with(named("pod-a")).await.unwrap();
    let _served = serve_name(&first).await;
    let refused = cluster.member_with(named("pod-b")).await.err().unwrap();
    assert!(matches!(refused, StartError::Discovery(DiscoveryError::Collision { .. })), "{refused}");
    let again = cluster.member_with(named("pod-a")).await.unwrap();
    assert!(again.incarnation() > first.incarnation());
    let _served_again = serve_name(&again).await;
    let records = again.discovery().list(&Query::AllEndpoints).await.unwrap();
    assert_eq!(records.len(), 1);
    assert_eq!(records[0].incarnation(), again.incarnation());
}

#[tokio::test]
async fn runtimes_with_one_plane_use_no_socket() {
    let cluster = Cluster::new();
    let (worker, _served) = cluster.worker().await;
    let plane = worker.request_plane().clone();
    let asker = cluster
        .member_with(|config| config.request_plane = RequestPlaneSource::Shared(plane.clone()))
        .await
        .unwrap();
    let client = asker.client(endpoint());
    client.wait_for_instances(PATIENCE).await.unwrap();
    assert_eq!(answer(client.round_robin(request()).await.unwrap()).await, name(&worker));
    assert_eq!(plane.connections(), 0);
}

#[tokio::test]
async fn workers_are_found_through_files() {
    let root = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::new();
    cluster.config.discovery = DiscoveryConfig::File { root: root.path().to_owned() };
    let (worker, served) = cluster.worker().await;
    let client = cluster.member().await.client(endpoint());
    client.wait_for_instances(PATIENCE).await.unwrap();
    assert_eq!(answer(client.round_robin(request()).await.unwrap()).await, name(&worker));
    served.leave().await.unwrap();
    // Never in doubt: it was seen to drain.
    wait_for(&client, |all| {
        assert!(all.iter().all(|(_, state)| *state != InstanceState::InDoubt));
        all.is_empty()
    })
    .await;
    worker.runtime().shutdown(ShutdownReason::Requested);
    timeout(PATIENCE, worker.runtime().closed()).await.unwrap();
    assert_eq!(std::fs::read_dir(root.path().join("v1/instances")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_request_that_is_refused_goes_to_those_that_were_not_asked() {
    let cluster = Cluster::new();
    let (accepting, _served) = cluster.worker().await;
    let mut refusing = Vec::new();
    for _ in 0..3 {
        let worker = cluster.member().await;
        let overloaded: Arc<dyn Handler> = Arc::new(|_: IncomingRequest, responder: Responder| {
            responder.fail(crate::request_plane::StreamError::Overloaded("full".into()));
        });
        let served = worker.serve_endpoint(endpoint(), overloaded).await.unwrap();
        refusing.push((worker, served));
    }
    let client = cluster.member().await.client(endpoint());
    wait_for(&client, |all| all.len() == 4).await;
    for _ in 0..8 {
        assert_eq!(answer(client.round_robin(request()).await.unwrap()).await, name(&accepting));
    }
    assert!(client.instances().iter().all(|i| i.is_available()), "backpressure is no failure");
}

#[tokio::test(start_paused = true)]
async fn a_worker_in_doubt_is_given_up_after_a_minute() {
    let cluster = Cluster::new();
    let (worker, _served) = cluster.worker().await;
    let client = cluster.member().await.client(endpoint());
    wait_for(&client, |all| all.len() == 1).await;
    worker.discovery().close().await;
    wait_for(&client, |all| matches!(all, [(_, InstanceState::InDoubt)])).await;
    tokio::time::sleep(Duration::from_secs(59)).await;
    assert_eq!(client.instances().len(), 1);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(client.instances().len(), 0);
}
