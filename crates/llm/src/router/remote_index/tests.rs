use std::{sync::atomic::AtomicU64, time::Instant as Clock};

use dynamo_kv_router::{RankMatch, WorkerRank};
use dynamo_runtime::{
    DistributedRuntime, EndpointId, Metrics, Runtime, RuntimeConfig, ServedEndpoint,
    request_plane::{Handler, IncomingRequest, Responder},
};

use super::*;

/// Long enough for a busy machine; no test waits it out.
const LIMIT: Duration = Duration::from_secs(20);
const FOUR: BlockSize = BlockSize::new(4).unwrap();
const BLOCKS: [LocalBlockHash; 2] = [LocalBlockHash(1), LocalBlockHash(2)];

fn endpoint() -> EndpointId {
    EndpointId::new("ns", "backend", "kv_index")
}

/// Members of one deployment in this process.
struct Deployment(RuntimeConfig);

impl Deployment {
    fn new() -> Self {
        Self(RuntimeConfig::process_local())
    }

    async fn member(&self) -> DistributedRuntime {
        let config = RuntimeConfig { metrics: Metrics::new(), ..self.0.clone() };
        let runtime = Runtime::with_limits(tokio::runtime::Handle::current(), config.shutdown);
        DistributedRuntime::new(runtime, config).await.unwrap()
    }

    async fn server(&self, handler: impl Handler) -> (DistributedRuntime, ServedEndpoint) {
        let member = self.member().await;
        let served = member.serve_endpoint(endpoint(), Arc::new(handler)).await.unwrap();
        (member, served)
    }

    /// Asks `servers` servers, which have time enough.
    async fn remote(&self, servers: usize) -> (DistributedRuntime, RemoteIndex) {
        let member = self.member().await;
        let queries = member.metrics().counter_vec("queries_total", "Questions", &["status"]).unwrap();
        let client = member.client(endpoint());
        let mut instances = client.watch();
        let all = instances.wait_for(|instances| instances.len() == servers);
        let _ = tokio::time::timeout(LIMIT, all).await.expect("the servers are found");
        let remote = RemoteIndex { patience: LIMIT, ..RemoteIndex::new(client, FOUR, queries) };
        (member, remote)
    }
}

/// What a future gives without waiting.
async fn at_once<T>(future: impl Future<Output = T>) -> T {
    tokio::select! {
        biased;
        found = future => found,
        () = std::future::ready(()) => panic!("it waits"),
    }
}

fn counted(remote: &RemoteIndex) -> [u64; 4] {
    [QueryStatus::Ok, QueryStatus::Timeout, QueryStatus::Error, QueryStatus::NoServer]
        .map(|status| remote.queries.with_label_values(&[status.label()]).get())
}

/// Says that worker 7 has as many blocks as are asked for, and counts.
fn answering(asked: Arc<AtomicU64>) -> impl Handler {
    move |request: IncomingRequest, mut responder: Responder| {
        asked.fetch_add(1, Ordering::Relaxed);
        let query: IndexQuery = rmp_serde::from_slice(&request.payload).unwrap();
        let mut blocks = Vec::new();
        query.read_blocks(&mut blocks).unwrap();
        let device_blocks = blocks.len() as u32;
        let mut answer = RankMatches::default();
        answer.push(&RankMatch {
            worker: WorkerRank { worker_id: 7, dp_rank: 0 },
            epoch: 1,
            held_blocks: query.block_size,
            device_blocks,
            host_blocks: device_blocks,
            any_blocks: device_blocks,
        });
        responder.push(&rmp_serde::to_vec_named(&answer).unwrap());
        responder.finish();
    }
}

#[tokio::test]
async fn servers_are_asked_in_turn() {
    let deployment = Deployment::new();
    let asked: [Arc<AtomicU64>; 2] = Default::default();
    let _first = deployment.server(answering(asked[0].clone())).await;
    let _second = deployment.server(answering(asked[1].clone())).await;
    let (_member, remote) = deployment.remote(2).await;
    for _ in 0..6 {
        let answer = remote.ask(&BLOCKS).await.expect("an answer");
        let found: Vec<RankMatch> = answer.iter().unwrap().collect();
        assert_eq!((found[0].device_blocks, found[0].held_blocks), (2, 4));
    }
    assert_eq!(asked.map(|asked| asked.load(Ordering::Relaxed)), [3, 3]);
    assert_eq!(counted(&remote), [6, 0, 0, 0]);
    assert!(remote.ask(&[]).await.is_none(), "there is nothing to ask");
    assert_eq!(counted(&remote), [6, 0, 0, 0]);
}

#[tokio::test]
async fn where_nobody_is_there_nobody_waits() {
    let deployment = Deployment::new();
    let (_member, remote) = deployment.remote(0).await;
    assert!(at_once(remote.ask(&BLOCKS)).await.is_none());
    assert_eq!(counted(&remote), [0, 0, 0, 1]);
}

#[tokio::test]
async fn a_silent_server_is_waited_for_once_and_then_left_alone() {
    let deployment = Deployment::new();
    let held = Arc::new(Mutex::new(Vec::new()));
    let kept = held.clone();
    let _silent =
        deployment.server(move |_: IncomingRequest, responder: Responder| kept.lock().push(responder)).await;
    let (_member, mut remote) = deployment.remote(1).await;
    remote.patience = PATIENCE;
    assert!(remote.ask(&BLOCKS).await.is_none());
    assert_eq!(counted(&remote), [0, 1, 0, 0]);
    // Each time the pause is longer for which it is left alone.
    let deadline = Clock::now() + LIMIT;
    while counted(&remote)[3] == 0 {
        assert!(remote.ask(&BLOCKS).await.is_none() && Clock::now() < deadline);
        tokio::task::yield_now().await;
    }
    // Another one that comes is asked at once.
    let asked = Arc::new(AtomicU64::new(0));
    let _other = deployment.server(answering(asked.clone())).await;
    let client = remote.client.clone();
    let mut instances = client.watch();
    let both = instances.wait_for(|instances| instances.len() == 2);
    let _ = tokio::time::timeout(LIMIT, both).await.unwrap();
    while remote.ask(&BLOCKS).await.is_none() {
        assert!(Clock::now() < deadline);
        tokio::task::yield_now().await;
    }
    assert!(asked.load(Ordering::Relaxed) > 0);
}

#[tokio::test]
async fn nonsense_and_refusals_are_no_answers_and_the_next_server_is_asked() {
    let deployment = Deployment::new();
    let garbage = |_: IncomingRequest, mut responder: Responder| {
        responder.push(b"\xc1");
        responder.finish();
    };
    let refuse = |_: IncomingRequest, responder: Responder| {
        responder.fail(StreamError::Application { code: 400, message: "no such blocks".to_owned() });
    };
    let empty = |_: IncomingRequest, responder: Responder| responder.finish();
    let _servers =
        [deployment.server(garbage).await, deployment.server(refuse).await, deployment.server(empty).await];
    let (_member, remote) = deployment.remote(3).await;
    for _ in 0..3 {
        assert!(remote.ask(&BLOCKS).await.is_none());
    }
    assert_eq!(counted(&remote), [0, 0, 3, 0]);
    let _good = deployment.server(answering(Arc::default())).await;
    let mut instances = remote.client.watch();
    let all = instances.wait_for(|instances| instances.len() == 4);
    let _ = tokio::time::timeout(LIMIT, all).await.unwrap();
    for _ in 0..4 {
        assert!(remote.ask(&BLOCKS).await.is_some(), "one of four answers");
    }
}

#[test]
fn an_outage_is_told_of_once_until_it_is_over() {
    let (outage, now) = (Outage::default(), Instant::now());
    assert!(!outage.answered(now), "nothing was wrong");
    assert!(outage.failed(now));
    assert!(!outage.answered(now + CALM / 2) && !outage.failed(now + CALM / 2));
    assert!(!outage.answered(now + CALM), "it failed since");
    assert!(outage.answered(now + CALM * 3 / 2));
    assert!(!outage.answered(now + CALM * 2));
    assert!(outage.failed(now + CALM * 2), "the next one is news");
}
