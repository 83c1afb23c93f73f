use std::time::Duration;

use dynamo_frontend::fake::{FakeModel, Pace, Script, ScriptEnding};
use dynamo_runtime::Phase;
use serde_json::json;
use tokio::net::TcpStream;

use crate::{
    client::{Client, ask, chat, get},
    server::{Server, eventually},
};

fn hanging() -> FakeModel {
    FakeModel::new("m", Script { ending: ScriptEnding::Hang, ..Script::of(&["a"]) })
}

#[tokio::test]
async fn a_client_that_leaves_its_stream_cancels_the_request() {
    let server = Server::start(vec![hanging()]).await;
    let mut client = Client::connect(server.address).await;
    client.post(&chat(json!({"stream": true}))).await;
    client.until("\"content\":\"a\"").await;
    assert_eq!(server.metric("dynamo_frontend_inflight_requests", &[("model", "m")]), 1.0);
    drop(client);
    eventually("the generation is dropped", || server.records[0].dropped() == 1).await;
    eventually("the client is counted", || server.metric("dynamo_frontend_disconnected_clients", &[]) == 1.0)
        .await;
    assert_eq!(server.metric("dynamo_frontend_inflight_requests", &[("model", "m")]), 0.0);
    assert_eq!(server.metric("dynamo_frontend_queued_requests", &[("model", "m")]), 0.0);
    assert_eq!(server.metric("dynamo_frontend_model_cancellation_total", &[("request_type", "stream")]), 1.0);
}

#[tokio::test]
async fn a_client_that_leaves_a_whole_answer_cancels_the_request() {
    let server = Server::start(vec![hanging()]).await;
    let mut client = Client::connect(server.address).await;
    client.post(&chat(json!({}))).await;
    eventually("the answer has begun", || server.records[0].started() == 1).await;
    drop(client);
    eventually("the generation is dropped", || server.records[0].dropped() == 1).await;
    eventually("the client is counted", || server.metric("dynamo_frontend_disconnected_clients", &[]) == 1.0)
        .await;
}

#[tokio::test]
async fn a_client_that_stops_reading_holds_little_and_is_ended() {
    let script = Script { tokens: 10_000_000, ..Script::of(&["some text of a token"]) };
    let server = Server::with(vec![FakeModel::new("m", script)], |config| {
        config.stall_limit = Duration::from_millis(200);
    })
    .await;
    let mut client = Client::connect(server.address).await;
    client.post(&chat(json!({"stream": true}))).await;
    let head = client.head().await;
    assert_eq!(head.0, 200);
    eventually("the generation is dropped", || server.records[0].dropped() == 1).await;
    // Buffers of the sender's and of this reader's kernel side together.
    let taken = server.metric("dynamo_frontend_output_tokens_total", &[]) * 220.0;
    assert!(taken < 8e6, "{taken} bytes were made for a client that reads nothing");
    eventually("the stall is counted", || {
        server.metric("dynamo_bound_hits_total", &[("bound", "http_slow_reader")]) == 1.0
    })
    .await;
    client.closed().await;
}

#[tokio::test]
async fn a_connection_serves_many_requests_and_pipelined_ones() {
    let server = Server::start(vec![FakeModel::new("m", Script::of(&["a", "b"]))]).await;
    let mut client = Client::connect(server.address).await;
    for stream in [true, false, true] {
        client.post(&chat(json!({"stream": stream}))).await;
        assert_eq!(client.answer().await.status, 200);
    }
    for _ in 0..3 {
        client.post(&chat(json!({"stream": true}))).await;
    }
    for _ in 0..3 {
        assert_eq!(client.answer().await.streamed_text(), "ab");
    }
}

#[tokio::test]
async fn leaving_says_so_and_still_serves() {
    let server = Server::start(vec![FakeModel::new("m", Script::of(&["a"]))]).await;
    assert_eq!(get(server.address, "/health").await.status, 200);
    server.enter(Phase::Leaving);
    let health = get(server.address, "/health").await;
    assert_eq!((health.status, health.json()["status"].as_str()), (503, Some("not_ready")));
    assert_eq!(get(server.address, "/live").await.status, 200);
    let answer = ask(server.address, &chat(json!({}))).await;
    assert_eq!((answer.status, answer.headers["connection"].as_str()), (200, "close"));
}

#[tokio::test]
async fn draining_finishes_streams_and_takes_no_more() {
    let script = Script { tokens: 20, pace: Pace::Every(Duration::from_millis(10)), ..Script::of(&["a"]) };
    let mut server = Server::start(vec![FakeModel::new("m", script)]).await;
    let mut idle = Client::connect(server.address).await;
    idle.send("GET", "/live", &[], b"").await;
    assert_eq!(idle.answer().await.status, 200);
    let mut client = Client::connect(server.address).await;
    client.post(&chat(json!({"stream": true}))).await;
    client.until("\"content\":\"a\"").await;
    server.enter(Phase::Draining);
    idle.closed().await;
    eventually("nothing listens", || std::net::TcpStream::connect(server.address).is_err()).await;
    assert!(!server.has_ended());
    client.until("data: [DONE]").await;
    client.closed().await;
    server.ended().await;
    assert!(TcpStream::connect(server.address).await.is_err());
    assert_eq!(server.metric("dynamo_frontend_requests_total", &[("status", "success")]), 1.0);
}

#[tokio::test]
async fn cancelling_breaks_off_what_does_not_end() {
    let mut server = Server::start(vec![hanging()]).await;
    let mut client = Client::connect(server.address).await;
    client.post(&chat(json!({"stream": true}))).await;
    client.until("\"content\":\"a\"").await;
    server.enter(Phase::Draining);
    tokio::task::yield_now().await;
    assert!(!server.has_ended());
    server.enter(Phase::Cancelling);
    server.ended().await;
    assert_eq!(server.records[0].dropped(), 1);
}
