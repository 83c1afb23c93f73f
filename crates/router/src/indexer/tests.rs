//! The service over HTTP, with listeners that deliver what the tests say.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use dynamo_engine_api::{ExternalBlockHash, KvCacheEventData, StorageTier, StoredBlock};
use dynamo_kv_router::WorkerRank;
use dynamo_runtime::{Metrics, Runtime};
use dynamo_tokens::LocalBlockHash;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use super::{
    Delivery, EventSource, IndexChoice, IndexerConfig, IndexerService, ModelKey, RecoveryLimits, Registry,
    WorkerSpec, fake_source::FakeSource,
};

mod frequencies;
mod holes;
mod tiers;

struct Served {
    address: SocketAddr,
    source: Arc<FakeSource>,
    registry: Arc<Registry>,
    runtime: Runtime,
}

fn config(peers: &[String]) -> IndexerConfig {
    IndexerConfig {
        workers: Vec::new(),
        block_size: None,
        model_name: "default".into(),
        routing_group: "default".into(),
        index: IndexChoice::new(2, None).unwrap(),
        peers: peers.to_vec(),
        recovery: RecoveryLimits { answer: Duration::from_secs(5), total: Duration::from_secs(20) },
        access_log: None,
        trace_id_header: "x-trace-id".into(),
        max_connections: 64,
    }
}

async fn serve(config: IndexerConfig) -> Served {
    let source = Arc::new(FakeSource::default());
    Served { source: source.clone(), ..serve_from(config, source, Metrics::new()).await }
}

async fn serve_from(config: IndexerConfig, source: Arc<dyn EventSource>, metrics: Metrics) -> Served {
    let runtime = Runtime::new(tokio::runtime::Handle::current());
    let service = IndexerService::start(&runtime, config, ("127.0.0.1", 0), source, metrics).await.unwrap();
    let address = service.address().unwrap();
    let registry = service.registry().clone();
    runtime.scope().spawn("service", service.serve());
    Served { address, source: Arc::default(), registry, runtime }
}

impl Served {
    async fn call(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        self.runtime.scope().spawn("client", connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "test")
            .header("x-trace-id", "abc")
            .body(Full::new(bytes::Bytes::from(body.to_owned())))
            .unwrap();
        let response = sender.send_request(request).await.unwrap();
        let status = response.status().as_u16();
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(bytes.to_vec()).unwrap())
    }

    async fn post(&self, path: &str, body: Value) -> (u16, Value) {
        let (status, text) = self.call("POST", path, &body.to_string()).await;
        (status, serde_json::from_str(&text).unwrap())
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        let (status, text) = self.call("GET", path, "").await;
        (status, if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() })
    }

    async fn dump_fails(&self) -> bool {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        self.runtime.scope().spawn("client", connection);
        let request =
            Request::get("/dump").header("host", "test").body(Full::<bytes::Bytes>::default()).unwrap();
        sender.send_request(request).await.unwrap().into_body().collect().await.is_err()
    }

    /// Asks until the answer is as wanted.
    async fn until(&self, path: &str, body: &Value, wanted: impl Fn(&Value) -> bool) -> Value {
        let ask = async {
            loop {
                let (_, answer) = match body {
                    Value::Null => self.get(path).await,
                    body => self.post(path, body.clone()).await,
                };
                if wanted(&answer) {
                    return answer;
                }
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), ask).await.expect("the answer comes")
    }

    async fn healthy(&self) {
        let wait = async {
            while self.get("/health").await.0 != 200 {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), wait).await.expect("it becomes healthy");
    }
}

fn rank(worker_id: u64, dp_rank: u32) -> WorkerRank {
    WorkerRank { worker_id, dp_rank }
}

/// The local hashes of [1, 2, 3, 4] and [5, 6, 7, 8].
const LOCAL: [u64; 2] = [14643705804678351452, 16777012769546811212];

fn stored(parent: Option<u64>, blocks: &[(u64, u64)]) -> (StorageTier, KvCacheEventData) {
    let block = |&(name, local)| StoredBlock {
        block_hash: ExternalBlockHash(name),
        tokens_hash: LocalBlockHash(local),
    };
    let event = KvCacheEventData::Stored {
        parent_hash: parent.map(ExternalBlockHash),
        blocks: blocks.iter().map(block).collect(),
    };
    (StorageTier::Device, event)
}

fn batch(events: Vec<(StorageTier, KvCacheEventData)>) -> Delivery {
    Delivery::Batch { sequence: 0, events }
}

fn engine(instance: u64) -> Value {
    json!({"instance_id": instance, "endpoint": "tcp://127.0.0.1:9", "model_name": "m", "block_size": 4})
}

#[tokio::test]
async fn answers_are_the_ecosystems() {
    let served = serve(config(&[])).await;
    served.healthy().await;
    assert_eq!(served.get("/workers").await, (200, json!([])));
    assert_eq!(served.get("/peers").await, (200, json!([])));
    assert_eq!(served.get("/dump").await, (200, json!({})));
    let query = json!({"token_ids": [1, 2, 3, 4, 5, 6, 7, 8, 9], "model_name": "m"});
    assert_eq!(
        served.post("/query", query.clone()).await,
        (404, json!({"error": "no indexer for model=m routing_group=default"}))
    );
    assert_eq!(served.post("/register", engine(7)).await, (201, json!({"status": "ok"})));
    assert_eq!(
        served.post("/register", engine(7)).await,
        (409, json!({"error": "instance 7 dp_rank 0 already registered"}))
    );
    let mut second = engine(7);
    second["dp_rank"] = json!(1);
    second["tenant_id"] = json!("default");
    assert_eq!(served.post("/register", second).await.0, 201);
    let (status, answer) = served.get("/workers").await;
    let listener = json!({"endpoint": "tcp://127.0.0.1:9", "status": "active"});
    assert_eq!(status, 200);
    assert_eq!(
        answer,
        json!([{
            "instance_id": 7, "source": "zmq", "status": "active", "model_name": "m",
            "routing_group": "default", "block_size": 4,
            "endpoints": {"0": "tcp://127.0.0.1:9", "1": "tcp://127.0.0.1:9"},
            "listeners": {"0": listener, "1": listener},
        }])
    );
    let events = vec![stored(None, &[(100, LOCAL[0]), (101, LOCAL[1])])];
    served.source.deliver(rank(7, 0), batch(events)).await.unwrap();
    let found = served.until("/query", &query, |answer| answer["scores"]["7"]["0"] == 8).await;
    assert_eq!(
        found,
        json!({
            "scores": {"7": {"0": 8}}, "frequencies": [],
            "instances": {"7": {"longest_matched": 8, "gpu": 8, "dp": {"0": 8}, "cpu": 8, "disk": 8}},
        })
    );
    let empty = json!({"scores": {}, "frequencies": [], "instances": {}});
    let short = json!({"token_ids": [1, 2, 3], "model_name": "m"});
    assert_eq!(served.post("/query", short).await, (200, empty.clone()));
    let adapter = json!({"token_ids": [1, 2, 3, 4], "model_name": "m", "lora_name": "l"});
    assert_eq!(served.post("/query", adapter).await, (200, empty));
    for first in [json!(LOCAL[0]), json!(LOCAL[0] as i64)] {
        let by_hash = json!({"block_hashes": [first], "model_name": "m"});
        assert_eq!(served.post("/query_by_hash", by_hash).await.1["scores"], json!({"7": {"0": 4}}));
    }
    let (_, dump) = served.get("/dump").await;
    let event = &dump["m:default"]["events"][0];
    assert_eq!(dump["m:default"]["block_size"], 4);
    assert_eq!((&event["worker_id"], &event["residency_domain"]), (&json!(7), &json!("worker")));
    assert_eq!(event["event"]["data"]["stored"]["blocks"][1]["tokens_hash"], json!(LOCAL[1]));
    let group = json!({"token_ids": [1, 2, 3, 4], "model_name": "m", "tenant_id": "x"});
    assert_eq!(served.post("/query", group).await.0, 404);
    let gone = json!({"instance_id": 99, "model_name": "m"});
    assert_eq!(served.post("/unregister", gone).await, (404, json!({"error": "instance 99 not found"})));
    let all = json!({"instance_id": 7, "model_name": "m"});
    assert_eq!(served.post("/unregister", all).await, (200, json!({"status": "ok"})));
    assert_eq!(served.post("/query", query).await.0, 404);
}

#[tokio::test]
async fn faults_are_json_with_the_ecosystems_codes() {
    let served = serve(config(&[])).await;
    let cases = [
        ("POST", "/register", "{bad", 400),
        ("POST", "/register", "{\"instance_id\": 9, \"model_name\": \"m\"}", 422),
        ("POST", "/query", "{}", 422),
        ("GET", "/query", "", 405),
        ("GET", "/nope", "", 404),
        ("POST", "/register_peer", "{\"url\": \"bad\"}", 400),
        ("POST", "/deregister_peer", "{\"url\": \"http://127.0.0.1:1\"}", 404),
    ];
    for (method, path, body, code) in cases {
        let (status, text) = served.call(method, path, body).await;
        assert_eq!(status, code, "{method} {path} {body}");
        let answer: Value = serde_json::from_str(&text).unwrap();
        assert!(answer["error"].is_string(), "{text}");
    }
    let mut long = engine(8);
    long["endpoint"] = json!("x".repeat(9 << 20));
    assert_eq!(served.post("/register", long).await.0, 413);
    let peer = json!({"url": "http://127.0.0.1:1"});
    assert_eq!(served.post("/register_peer", peer.clone()).await.0, 201);
    assert_eq!(served.post("/register_peer", peer.clone()).await.0, 201);
    assert_eq!(served.get("/peers").await.1, json!(["http://127.0.0.1:1"]));
    assert_eq!(served.post("/deregister_peer", peer).await.0, 200);
    let (_, metrics) = served.call("GET", "/metrics", "").await;
    for line in [
        "dynamo_kvindexer_errors_total{endpoint=\"/register\",status_class=\"4xx\"} 3",
        "dynamo_kvindexer_errors_total{endpoint=\"other\",status_class=\"4xx\"} 1",
        "dynamo_kvindexer_requests_total{endpoint=\"/query\",method=\"POST\"} 1",
        "dynamo_kvindexer_listeners{status=\"failed\"} 0",
        "dynamo_kvindexer_models 0",
        "dynamo_kvindexer_workers 0",
    ] {
        assert!(metrics.contains(line), "{line} in\n{metrics}");
    }
}

#[tokio::test]
async fn a_second_indexer_takes_over_engines_and_blocks_from_the_first() {
    let first = serve(config(&[])).await;
    first.healthy().await;
    for instance in [7, 8] {
        assert_eq!(first.post("/register", engine(instance)).await.0, 201);
    }
    // More than one piece of a dump, with a fork and a hole.
    let chain: Vec<(u64, u64)> = (1..5000).map(|name| (name, name)).collect();
    first.source.deliver(rank(7, 0), batch(vec![stored(None, &chain)])).await.unwrap();
    first.source.deliver(rank(7, 0), batch(vec![stored(Some(2000), &[(9000, 77)])])).await.unwrap();
    let removed = KvCacheEventData::Removed { block_hashes: vec![ExternalBlockHash(1000)] };
    first.source.deliver(rank(7, 0), batch(vec![(StorageTier::Device, removed)])).await.unwrap();
    first.source.deliver(rank(8, 0), batch(vec![stored(None, &chain[..10])])).await.unwrap();
    let hashes: Vec<u64> = (1..5000).collect();
    let query = json!({"block_hashes": hashes, "model_name": "m"});
    let same = |answer: &Value| answer["scores"] == json!({"7": {"0": 999 * 4}, "8": {"0": 40}});
    first.until("/query_by_hash", &query, same).await;

    let second = serve(config(&["http://127.0.0.1:1".into(), format!("http://{}", first.address)])).await;
    second.healthy().await;
    assert!(same(&second.post("/query_by_hash", query.clone()).await.1));
    assert_eq!(first.get("/workers").await.1, second.get("/workers").await.1);
    let sorted = |dump: Value| {
        let mut blocks = Vec::new();
        for event in dump["m:default"]["events"].as_array().unwrap() {
            for block in event["event"]["data"]["stored"]["blocks"].as_array().into_iter().flatten() {
                blocks.push((event["worker_id"].clone(), block["tokens_hash"].to_string()));
            }
        }
        blocks.sort_by_key(|(worker, block)| (worker.as_u64(), block.clone()));
        blocks
    };
    assert_eq!(sorted(first.get("/dump").await.1), sorted(second.get("/dump").await.1));
    // The hole can be filled: the block's neighbours are known by their names.
    second.source.deliver(rank(7, 0), batch(vec![stored(Some(999), &[(1000, 1000)])])).await.unwrap();
    let filled = |answer: &Value| answer["scores"]["7"] == json!({"0": 4999 * 4});
    second.until("/query_by_hash", &query, filled).await;
    let (_, metrics) = second.call("GET", "/metrics", "").await;
    assert!(metrics.contains("dynamo_kvindexer_recovered_blocks 5"), "{metrics}");
}

#[tokio::test]
async fn it_is_not_ready_until_the_peers_time_is_over_and_keeps_what_comes_meanwhile() {
    // A peer that takes connections and says nothing.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut config = config(&[format!("http://{}", silent.local_addr().unwrap())]);
    config.recovery = RecoveryLimits { answer: Duration::from_secs(1), total: Duration::from_secs(1) };
    config.block_size = Some(4);
    config.workers = vec![WorkerSpec { rank: rank(7, 0), endpoint: "tcp://127.0.0.1:9".into() }];
    let served = serve(config).await;
    assert_eq!(served.get("/health").await.0, 503);
    assert_eq!(served.get("/workers").await.1[0]["status"], "paused");
    let events = vec![stored(None, &[(100, LOCAL[0])])];
    served.source.deliver(rank(7, 0), batch(events)).await.unwrap();
    let query = json!({"block_hashes": [LOCAL[0]], "model_name": "default"});
    assert_eq!(served.post("/query_by_hash", query.clone()).await.1["scores"], json!({}));
    served.healthy().await;
    served.until("/query_by_hash", &query, |answer| answer["scores"] == json!({"7": {"0": 4}})).await;
    assert_eq!(served.get("/workers").await.1[0]["status"], "active");
}

#[tokio::test]
async fn requests_are_logged_with_model_and_trace_id() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = config(&[]);
    config.access_log = Some(folder.path().join("access.log"));
    let served = serve(config).await;
    served.post("/query", json!({"token_ids": [1], "model_name": "zzz"})).await;
    let read = async {
        loop {
            let text = std::fs::read_to_string(folder.path().join("access.log")).unwrap();
            if text.ends_with('\n') {
                return text;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    let text = tokio::time::timeout(Duration::from_secs(20), read).await.unwrap();
    let line: Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    assert_eq!((&line["path"], &line["model"]), (&json!("/query"), &json!("zzz")));
    assert_eq!((&line["status"], &line["trace_id"]), (&json!(404), &json!("abc")));
}

#[tokio::test]
async fn it_is_not_healthy_with_a_broken_index() {
    let served = serve(config(&[])).await;
    served.healthy().await;
    assert_eq!(served.post("/register", engine(7)).await.0, 201);
    assert_eq!(served.get("/health").await.0, 200);
    let key = ModelKey { model_name: "m".into(), routing_group: "default".into() };
    served.registry.model(&key).unwrap().index.break_down();
    served.until("/health", &Value::Null, |answer| answer["error"].is_string()).await;
    let (status, answer) = served.get("/health").await;
    let error = "the index of model=m routing_group=default broke: restart the indexer";
    assert_eq!((status, answer), (503, json!({"error": error})));
    // Who cannot be told what it holds gets no dump that looks whole.
    assert!(served.dump_fails().await);
}
