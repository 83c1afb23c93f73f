//! An engine that offloads blocks, over its own wire.

use super::*;
use crate::indexer::ZmqSource;

/// Long enough for a busy machine; no test waits it out.
const PATIENCE: Duration = Duration::from_secs(20);

/// An engine's socket in the test's hands. Unlike a PUB socket it sees who subscribes.
struct Engine {
    socket: zmq::Socket,
    address: String,
    sequence: u64,
}

impl Engine {
    fn new() -> Self {
        let socket = zmq::Context::new().socket(zmq::XPUB).unwrap();
        socket.set_rcvtimeo(PATIENCE.as_millis() as i32).unwrap();
        socket.bind("tcp://127.0.0.1:*").unwrap();
        let address = socket.get_last_endpoint().unwrap().unwrap();
        Self { socket, address, sequence: 0 }
    }

    fn publish(&mut self, events: Value) {
        let payload = rmp_serde::to_vec(&json!([1.5, events, 0])).unwrap();
        let frames = [b"".as_slice(), &self.sequence.to_be_bytes(), &payload];
        self.socket.send_multipart(frames, 0).unwrap();
        self.sequence += 1;
    }
}

async fn serve_wire(config: IndexerConfig) -> Served {
    let metrics = Metrics::new();
    serve_from(config, Arc::new(ZmqSource::new(&metrics).unwrap()), metrics).await
}

/// Tokens on the device, there or on the host, and anywhere.
fn tiers(answer: &Value) -> Value {
    let instance = &answer["instances"]["7"];
    assert_eq!(instance["longest_matched"], instance["disk"], "{answer}");
    json!([instance["gpu"], instance["cpu"], instance["disk"]])
}

#[tokio::test]
async fn blocks_on_lower_tiers_are_found_and_taken_over_by_a_peer() {
    let first = serve_wire(config(&[])).await;
    first.healthy().await;
    let mut engine = Engine::new();
    let body = json!({"instance_id": 7, "endpoint": engine.address, "model_name": "m", "block_size": 4});
    assert_eq!(first.post("/register", body).await.0, 201);
    assert_eq!(engine.socket.recv_bytes(0).unwrap(), b"\x01");

    engine.publish(json!([
        ["BlockStored", [100, 101], null, [1, 2, 3, 4, 5, 6, 7, 8], 4, null, "GPU"],
        ["BlockStored", [102], 101, [9, 10, 11, 12], 4, null, "CPU"],
        ["BlockStored", [103], 102, [13, 14, 15, 16], 4, null, "DISK"],
    ]));
    let tokens: Vec<u32> = (1..=17).collect();
    let query = json!({"token_ids": tokens, "model_name": "m"});
    let found = first.until("/query", &query, |answer| tiers(answer) == json!([8, 12, 16])).await;
    assert_eq!(found["scores"], json!({"7": {"0": 8}}));

    // What was on the device goes to the host: the device has no part of the prompt any more.
    engine.publish(json!([
        ["BlockStored", [100, 101], null, [1, 2, 3, 4, 5, 6, 7, 8], 4, null, "CPU"],
        ["BlockRemoved", [100, 101], "GPU"],
    ]));
    let found = first.until("/query", &query, |answer| tiers(answer) == json!([0, 12, 16])).await;
    assert_eq!((&found["scores"], &found["instances"]["7"]["dp"]), (&json!({}), &json!({"0": 0})));

    let second = serve_wire(config(&[format!("http://{}", first.address)])).await;
    second.healthy().await;
    assert_eq!(second.post("/query", query.clone()).await, (200, found));
    let blocks_by_tier = |dump: Value| {
        let mut blocks = Vec::new();
        for event in dump["m:default"]["events"].as_array().unwrap() {
            for block in event["event"]["data"]["stored"]["blocks"].as_array().unwrap() {
                blocks.push((event["storage_tier"].clone(), block["block_hash"].as_u64()));
            }
        }
        blocks.sort_by_key(|(_, name)| *name);
        blocks
    };
    let host = |name: u64| (json!("host_pinned"), Some(name));
    let expected = [host(100), host(101), host(102), (json!("disk"), Some(103))];
    assert_eq!(blocks_by_tier(first.get("/dump").await.1), expected);
    assert_eq!(blocks_by_tier(second.get("/dump").await.1), expected);
    let (_, metrics) = second.call("GET", "/metrics", "").await;
    assert!(metrics.contains("dynamo_kvindexer_recovered_blocks 4\n"), "{metrics}");
}
