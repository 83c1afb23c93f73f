use std::time::Duration;

use dynamo_frontend::fake::{FakeModel, Pace, Script};
use serde_json::json;
use tokio::task::JoinSet;

use crate::{
    client::{ask, chat},
    server::Server,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_streams_at_once_are_all_whole() {
    let script =
        Script { tokens: 20, pace: Pace::Every(Duration::from_millis(5)), ..Script::of(&["x", "y"]) };
    let server = Server::start(vec![FakeModel::new("m", script)]).await;
    let mut streams = JoinSet::new();
    for _ in 0..1000 {
        let address = server.address;
        streams.spawn(async move { ask(address, &chat(json!({"stream": true}))).await.streamed_text() });
    }
    while let Some(text) = streams.join_next().await {
        assert_eq!(text.unwrap(), "xy".repeat(10));
    }
    assert_eq!(server.metric("dynamo_frontend_requests_total", &[("status", "success")]), 1000.0);
    assert_eq!(server.metric("dynamo_frontend_output_tokens_total", &[]), 20_000.0);
    assert_eq!(server.metric("dynamo_frontend_inter_token_latency_seconds", &[]), 19_000.0);
    assert_eq!(server.metric("dynamo_frontend_inflight_requests", &[]), 0.0);
    assert_eq!(server.metric("dynamo_frontend_disconnected_clients", &[]), 0.0);
}

#[tokio::test]
async fn connections_over_the_limit_wait() {
    let script = Script { tokens: 3, pace: Pace::Every(Duration::from_millis(1)), ..Script::of(&["x"]) };
    let server = Server::with(vec![FakeModel::new("m", script)], |config| config.max_connections = 2).await;
    let mut streams = JoinSet::new();
    for _ in 0..10 {
        let address = server.address;
        streams.spawn(async move { ask(address, &chat(json!({"stream": true}))).await.status });
    }
    while let Some(status) = streams.join_next().await {
        assert_eq!(status.unwrap(), 200);
    }
    assert!(server.metric("dynamo_bound_hits_total", &[("bound", "http_connections")]) >= 1.0);
}
