use std::time::Duration;

use dynamo_engine_api::FinishReason;
use dynamo_frontend::fake::{FakeModel, Pace, Script, ScriptEnding};
use dynamo_llm::GenerateError;
use serde_json::json;

use crate::{
    client::{Answer, Client, ask, chat},
    server::{Server, eventually},
};

const HELLO: [&str; 4] = ["Hel", "lo \"wörld\"", "\n", "!"];

async fn hello() -> Server {
    Server::start(vec![FakeModel::new("m", Script::of(&HELLO))]).await
}

/// The answer as its transcript has it: what differs from run to run is named.
fn normalized(answer: &Answer, id: &str) -> String {
    let text = answer.text().replace(id, "ID");
    let mut out = String::new();
    let mut rest = text.as_str();
    while let Some(at) = rest.find("\"created\":") {
        let (before, after) = rest.split_at(at + "\"created\":".len());
        out += before;
        out += "0";
        rest = after.trim_start_matches(|it: char| it.is_ascii_digit());
    }
    out + rest
}

async fn ask_as(server: &Server, id: &str, body: serde_json::Value) -> Answer {
    let mut client = Client::connect(server.address).await;
    let body = serde_json::to_vec(&body).unwrap();
    let headers = [("content-type", "application/json; charset=utf-8"), ("x-request-id", id)];
    client.send("POST", "/v1/chat/completions", &headers, &body).await;
    let answer = client.answer().await;
    assert_eq!(answer.headers["x-request-id"], id);
    answer
}

#[tokio::test]
async fn a_stream_is_what_the_transcript_says() {
    let server = hello().await;
    let answer = ask_as(&server, "r-1", chat(json!({"stream": true}))).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.headers["content-type"], "text/event-stream");
    assert_eq!(normalized(&answer, "r-1"), include_str!("transcripts/stream.txt"));
}

#[tokio::test]
async fn usage_and_annotations_come_when_asked_for() {
    let server = hello().await;
    let body = chat(json!({"stream": true, "stream_options": {"include_usage": true},
        "nvext": {"annotations": ["request_id"], "extra_fields": ["worker_id"]}}));
    let answer = ask_as(&server, "r-2", body).await;
    assert_eq!(normalized(&answer, "r-2"), include_str!("transcripts/stream_usage.txt"));
}

#[tokio::test]
async fn a_whole_answer_is_the_stream_folded() {
    let server = hello().await;
    let answer = ask_as(&server, "r-3", chat(json!({}))).await;
    assert_eq!(answer.status, 200);
    assert_eq!(normalized(&answer, "r-3"), include_str!("transcripts/whole.txt").trim_end());
    let timed = ask(server.address, &chat(json!({"nvext": {"extra_fields": ["timing", "worker_id"]}}))).await;
    let nvext = &timed.json()["nvext"];
    assert_eq!(nvext["worker_id"]["decode_worker_id"], 7);
    assert!(nvext["timing"]["total_time_ms"].as_f64() >= nvext["timing"]["ttft_ms"].as_f64(), "{nvext}");
}

#[tokio::test]
async fn a_stream_that_breaks_says_so_and_counts_as_an_error() {
    let script = Script { ending: ScriptEnding::Fail(GenerateError::WorkerLost), ..Script::of(&["a", "b"]) };
    let server = Server::start(vec![FakeModel::new("m", script)]).await;
    let answer = ask_as(&server, "r-4", chat(json!({"stream": true}))).await;
    assert_eq!(normalized(&answer, "r-4"), include_str!("transcripts/stream_broken.txt"));
    let failed = [("status", "error"), ("request_type", "stream")];
    assert_eq!(server.metric("dynamo_frontend_requests_total", &failed), 1.0);
    assert_eq!(server.metric("dynamo_frontend_requests_total", &[("status", "success")]), 0.0);
}

#[tokio::test]
async fn an_engine_error_is_an_event_and_never_a_finish() {
    let reason = FinishReason::Error("secret".into());
    let script = Script { ending: ScriptEnding::Finish(reason), ..Script::of(&["a"]) };
    let server = Server::start(vec![FakeModel::new("m", script)]).await;
    let answer = ask(server.address, &chat(json!({"stream": true}))).await;
    let events = answer.events();
    assert!(events[1].starts_with(r#"{"error":{"message":"#), "{events:?}");
    assert!(!answer.text().contains("secret"));
    assert_eq!(events.last().unwrap(), "[DONE]");
    assert_eq!(ask(server.address, &chat(json!({}))).await.status, 500);
}

#[tokio::test]
async fn deltas_without_text_are_counted_but_not_sent() {
    let server = Server::start(vec![FakeModel::new("m", Script::of(&["a", "", "b"]))]).await;
    let answer = ask(server.address, &chat(json!({"stream": true}))).await;
    assert_eq!(answer.events().len(), 4);
    assert_eq!(answer.streamed_text(), "ab");
    assert_eq!(server.metric("dynamo_frontend_output_tokens_total", &[]), 3.0);
}

#[tokio::test]
async fn finish_reasons_have_openais_names() {
    for (reason, word) in [
        (FinishReason::Eos, "stop"),
        (FinishReason::Length, "length"),
        (FinishReason::Cancelled, "stop"),
        (FinishReason::ContentFilter, "content_filter"),
    ] {
        let script = Script { ending: ScriptEnding::Finish(reason), ..Script::of(&["a"]) };
        let server = Server::start(vec![FakeModel::new("m", script)]).await;
        assert_eq!(ask(server.address, &chat(json!({}))).await.json()["choices"][0]["finish_reason"], word);
    }
}

#[tokio::test]
async fn every_token_is_an_event_of_its_own_however_they_come() {
    let tick = Pace::Every(Duration::from_millis(1));
    for (per_poll, pace) in [(1, Pace::Burst), (7, Pace::Burst), (50, tick), (500, tick)] {
        let script = Script { tokens: 2000, per_poll, pace, ..Script::of(&["ab", "\u{1}c"]) };
        let server = Server::start(vec![FakeModel::new("m", script)]).await;
        let answer = ask(server.address, &chat(json!({"stream": true}))).await;
        assert_eq!(answer.events().len(), 2002);
        assert_eq!(answer.streamed_text(), "ab\u{1}c".repeat(1000));
    }
}

#[tokio::test]
async fn a_silent_stream_has_comments_if_configured() {
    let script = Script { pace: Pace::Silent, ..Script::of(&["a"]) };
    let server = Server::with(vec![FakeModel::new("m", script)], |config| {
        config.sse_keep_alive = Some(Duration::from_millis(5));
    })
    .await;
    let mut client = Client::connect(server.address).await;
    client.post(&chat(json!({"stream": true}))).await;
    client.until(": keep-alive\n\n").await;
    drop(client);
    eventually("the generation is dropped", || server.records[0].dropped() == 1).await;
}

#[tokio::test]
async fn the_model_gets_what_was_asked() {
    let server = Server::with(vec![FakeModel::new("m", Script::of(&HELLO))], |config| {
        config.trust_routing_headers = true;
    })
    .await;
    let body = chat(json!({"max_tokens": 2, "stop": "x", "ignore_eos": true, "temperature": 0.5}));
    let headers = [
        ("content-type", "application/json"),
        ("x-worker-instance-id", "42"),
        ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
        ("x-dynamo-request-timeout-ms", "60000"),
    ];
    let mut client = Client::connect(server.address).await;
    client.send("POST", "/v1/chat/completions", &headers, &serde_json::to_vec(&body).unwrap()).await;
    let answer = client.answer().await;
    assert_eq!(answer.json()["usage"]["completion_tokens"], 2);
    let (request, context) = server.records[0].last().unwrap();
    assert_eq!((request.max_tokens, request.worker_id, request.ignore_eos), (Some(2), Some(42), true));
    assert_eq!((request.stop, request.sampling.temperature), (vec!["x".to_owned()], Some(0.5)));
    assert_eq!(&*context.id, answer.headers["x-request-id"]);
    assert!(context.deadline.is_some() && context.traceparent.unwrap().starts_with("00-"));
}

#[tokio::test]
async fn routing_headers_are_ignored_unless_trusted() {
    let server = hello().await;
    let mut client = Client::connect(server.address).await;
    let headers = [("content-type", "application/json"), ("x-worker-instance-id", "42")];
    client
        .send("POST", "/v1/chat/completions", &headers, &serde_json::to_vec(&chat(json!({}))).unwrap())
        .await;
    assert_eq!(client.answer().await.status, 200);
    assert_eq!(server.records[0].last().unwrap().0.worker_id, None);
}
