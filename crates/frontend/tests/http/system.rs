use dynamo_frontend::fake::{FakeModel, Script};
use serde_json::json;

use crate::{
    client::{ask, chat, get},
    server::Server,
};

async fn server() -> Server {
    let models = ["m", "org/big"].map(|name| FakeModel::new(name, Script::of(&["a", "b"])));
    let lame = FakeModel::new("lame", Script::of(&["a"])).not_ready();
    Server::start(models.into_iter().chain([lame]).collect()).await
}

#[tokio::test]
async fn models_are_listed_and_found() {
    let server = server().await;
    let list = get(server.address, "/v1/models").await.json();
    assert_eq!(list["object"], "list");
    assert_eq!(
        list["data"][1],
        json!({"id": "org/big", "object": "model", "created": 1_700_000_000, "owned_by": "dynamo", "context_window": 4096})
    );
    assert_eq!(get(server.address, "/v1/models/org/big").await.json()["id"], "org/big");
    assert_eq!(get(server.address, "/v1/models/org%2Fbig").await.json()["id"], "org/big");
    assert_eq!(get(server.address, "/v1/models/nothing").await.status, 404);
    assert_eq!(get(server.address, "/v1/models/org/big/ready").await.json(), json!({"ready": true}));
    let lame = get(server.address, "/v1/models/lame/ready").await;
    assert_eq!((lame.status, &lame.json()["ready"]), (503, &json!(false)));
}

#[tokio::test]
async fn health_names_endpoints_and_instances() {
    let server = server().await;
    let health = get(server.address, "/health").await.json();
    assert_eq!(health["status"], "healthy");
    assert_eq!(health["endpoints"], json!(["dyn://dynamo.backend.generate"]));
    assert_eq!(health["instances"][0]["instance_id"], 7);
    assert_eq!(health["instances"][0]["transport"]["tcp"], "127.0.0.1:1/1/generate");
    assert_eq!(get(server.address, "/live").await.json()["status"], "live");
}

#[tokio::test]
async fn metrics_have_the_incumbents_names() {
    let server = server().await;
    ask(server.address, &chat(json!({"stream": true}))).await;
    ask(server.address, &chat(json!({"model": "made up"}))).await;
    ask(server.address, &chat(json!({"model": "made up too"}))).await;
    let metrics = get(server.address, "/metrics").await;
    assert!(metrics.headers["content-type"].starts_with("text/plain; version=0.0.4"));
    let text = metrics.text();
    for line in [
        r#"dynamo_frontend_requests_total{endpoint="chat_completions",model="m",request_type="stream",status="success"} 1"#,
        r#"dynamo_frontend_requests_total{endpoint="chat_completions",model="unknown",request_type="unary",status="error"} 2"#,
        r#"dynamo_frontend_inflight_requests{model="m"} 0"#,
        r#"dynamo_frontend_queued_requests{model="m"} 0"#,
        r#"dynamo_frontend_output_tokens_total{model="m"} 2"#,
        r#"dynamo_frontend_model_context_length{model="org/big"} 4096"#,
        r#"dynamo_frontend_model_total_kv_blocks{model="m"} 1000"#,
        r#"dynamo_frontend_worker_last_input_sequence_tokens{dp_rank="0",worker_id="7",worker_type="decode"} 1"#,
        r#"dynamo_frontend_time_to_first_token_seconds_count{model="m"} 1"#,
        r#"dynamo_frontend_time_to_first_token_seconds_bucket{model="m",le="480"} 1"#,
        r#"dynamo_frontend_inter_token_latency_seconds_count{model="m"} 1"#,
        r#"dynamo_frontend_input_sequence_tokens_count{model="m"} 1"#,
        r#"dynamo_frontend_output_sequence_tokens_count{model="m"} 1"#,
        r#"dynamo_frontend_request_duration_seconds_count{model="m"} 1"#,
        "dynamo_frontend_disconnected_clients 0",
    ] {
        assert!(text.lines().any(|it| it == line), "{line} is not in\n{text}");
    }
    assert!(!text.contains("made up"));
}
