use dynamo_frontend::fake::{FakeModel, Script};
use dynamo_llm::GenerateError;
use serde_json::json;
use tokio::io::AsyncWriteExt;

use crate::{
    client::{Answer, Client, ask, chat, get},
    server::Server,
};

async fn server() -> Server {
    Server::start(vec![FakeModel::new("m", Script::of(&["a"]))]).await
}

/// Checks both forms of the body, and returns the nested one's `type`, `param` and `code`.
fn check(answer: &Answer, status: u16, words: &str) -> (String, Option<String>, Option<String>) {
    let body = answer.json();
    assert_eq!(answer.status, status, "{body}");
    assert_eq!(answer.headers["content-type"], "application/json");
    assert_eq!(body["code"], status);
    assert_eq!(body["message"], body["error"]["message"]);
    assert!(body["message"].as_str().unwrap().contains(words), "{body}");
    assert_eq!(body["request_id"], answer.headers["x-request-id"].as_str());
    let text = |name: &str| body["error"][name].as_str().map(str::to_owned);
    (text("type").unwrap(), text("param"), text("code"))
}

async fn post_raw(server: &Server, content_type: &str, body: &[u8]) -> Answer {
    let mut client = Client::connect(server.address).await;
    client.send("POST", "/v1/chat/completions", &[("content-type", content_type)], body).await;
    client.answer().await
}

#[tokio::test]
async fn requests_that_are_wrong_get_400_and_the_field() {
    let server = server().await;
    for (body, words, param) in [
        (chat(json!({"temperature": 3})), "Validation: temperature", Some("temperature")),
        (chat(json!({"temperature": "3"})), "temperature", Some("temperature")),
        (
            chat(json!({"messages": [{"role": "user", "content": 1}]})),
            "messages[0].content",
            Some("messages[0].content"),
        ),
        (chat(json!({"foo": 1, "bar": 2})), "Unsupported parameter(s): `foo`, `bar`", Some("foo")),
        (chat(json!({"nvext": {"ignore_eos": true}})), "greed_sampling, use_raw_prompt", Some("ignore_eos")),
        (json!({"messages": []}), "missing field `model`", Some("model")),
    ] {
        let (kind, named, _) = check(&ask(server.address, &body).await, 400, words);
        assert_eq!((kind.as_str(), named.as_deref()), ("invalid_request_error", param), "{body}");
    }
    let (kind, param, _) = check(&post_raw(&server, "application/json", b"{nonsense").await, 400, "JSON");
    assert_eq!((kind.as_str(), param), ("invalid_request_error", None));
    check(&ask(server.address, &chat(json!({"n": 2}))).await, 501, "only one choice");
}

#[tokio::test]
async fn unknown_models_routes_and_methods_are_json_errors() {
    let server = server().await;
    let (kind, param, code) =
        check(&ask(server.address, &chat(json!({"model": "x"}))).await, 404, "Model not found");
    assert_eq!((kind.as_str(), param.as_deref()), ("not_found_error", Some("model")));
    assert_eq!(code.as_deref(), Some("model_not_found"));
    check(&get(server.address, "/v2/nothing?x=1").await, 404, "Route not found: GET /v2/nothing");
    let wrong_method = get(server.address, "/v1/chat/completions").await;
    check(&wrong_method, 405, "Method not allowed: GET /v1/chat/completions");
    assert_eq!(wrong_method.headers["allow"], "POST");
}

#[tokio::test]
async fn bodies_must_be_json() {
    let server = server().await;
    let body = serde_json::to_vec(&chat(json!({}))).unwrap();
    for kind in ["text/plain", "application/jsonp", "application/+json", ""] {
        check(&post_raw(&server, kind, &body).await, 415, "application/json");
    }
    for kind in ["application/json", "Application/JSON;charset=utf-8", "application/vnd.x+json"] {
        assert_eq!(post_raw(&server, kind, &body).await.status, 200, "{kind}");
    }
}

#[tokio::test]
async fn a_body_over_the_limit_gets_a_readable_413() {
    let server =
        Server::with(vec![FakeModel::new("m", Script::of(&["a"]))], |config| config.body_limit = 1 << 20)
            .await;
    let body = vec![b' '; 8 << 20];
    // By its announced length, all of it sent before anything is read.
    check(&post_raw(&server, "application/json", &body).await, 413, "limit of 1048576 bytes");
    // By what came, in chunks.
    let mut client = Client::connect(server.address).await;
    let headers = [("content-type", "application/json"), ("transfer-encoding", "chunked")];
    client.send("POST", "/v1/chat/completions", &headers, b"").await;
    for _ in 0..80 {
        client.stream.write_all(b"10000\r\n").await.unwrap();
        client.stream.write_all(&body[..0x10000]).await.unwrap();
        client.stream.write_all(b"\r\n").await.unwrap();
    }
    client.stream.write_all(b"0\r\n\r\n").await.unwrap();
    check(&client.answer().await, 413, "over the limit");
    // A client that asks first is told before it sends.
    let mut polite = Client::connect(server.address).await;
    let headers =
        [("content-type", "application/json"), ("content-length", "9000000"), ("expect", "100-continue")];
    polite.send("POST", "/v1/chat/completions", &headers, b"").await;
    check(&polite.answer().await, 413, "over the limit");
    assert_eq!(server.metric("dynamo_bound_hits_total", &[("bound", "http_body")]), 3.0);
}

#[tokio::test]
async fn bodies_over_the_common_budget_get_503() {
    let server =
        Server::with(vec![FakeModel::new("m", Script::of(&["a"]))], |config| config.body_budget = 2000).await;
    let mut holder = Client::connect(server.address).await;
    let headers = [("content-type", "application/json"), ("content-length", "1900")];
    holder.send("POST", "/v1/chat/completions", &headers, b"").await;
    // What is only announced shuts nobody out.
    assert_eq!(ask(server.address, &chat(json!({}))).await.status, 200);
    holder.stream.write_all(&[b' '; 1899]).await.unwrap();
    let body = chat(json!({"user": "u".repeat(200)}));
    let refused = loop {
        let answer = ask(server.address, &body).await;
        if answer.status != 200 {
            break answer;
        }
    };
    let (kind, ..) = check(&refused, 503, "Too many request bodies");
    assert_eq!((kind.as_str(), refused.headers["retry-after"].as_str()), ("service_unavailable", "1"));
    drop(holder);
    while ask(server.address, &body).await.status != 200 {}
}

#[tokio::test]
async fn a_body_that_stops_arriving_gets_408() {
    let server = Server::with(vec![FakeModel::new("m", Script::of(&["a"]))], |config| {
        config.body_timeout = std::time::Duration::from_millis(30);
    })
    .await;
    let mut client = Client::connect(server.address).await;
    let headers = [("content-type", "application/json"), ("content-length", "100")];
    client.send("POST", "/v1/chat/completions", &headers, b"").await;
    check(&client.answer().await, 408, "stopped arriving");
    client.closed().await;
}

#[tokio::test]
async fn a_head_over_the_limit_gets_431() {
    let server = server().await;
    let mut client = Client::connect(server.address).await;
    client.send("GET", "/live", &[("x-long", &"x".repeat(20 << 10))], b"").await;
    assert_eq!(client.answer().await.status, 431);
}

#[tokio::test]
async fn what_models_refuse_follows_the_table() {
    let too_long = GenerateError::PromptTooLong { prompt_tokens: 5000, context_length: 4096 };
    for (refusal, status, words, kind) in [
        (too_long, 400, "5000 tokens", "invalid_request_error"),
        (GenerateError::NoWorkers, 503, "No worker", "service_unavailable"),
        (GenerateError::Overloaded, 529, "busy", "rate_limit_error"),
        (GenerateError::DeadlineExceeded, 504, "time ran out", "timeout_error"),
        (GenerateError::Internal("secret".into()), 500, "internal error", "internal_server_error"),
    ] {
        let script = Script { refusal: Some(refusal), ..Script::of(&["a"]) };
        let server = Server::with(vec![FakeModel::new("m", script)], |config| {
            config.overload_status = 529.try_into().unwrap();
        })
        .await;
        let answer = ask(server.address, &chat(json!({"stream": true}))).await;
        assert!(!answer.text().contains("secret"));
        assert_eq!(check(&answer, status, words).0, kind);
    }
}

#[tokio::test]
async fn a_model_without_workers_is_not_ready() {
    let server = Server::start(vec![FakeModel::new("m", Script::of(&["a"])).not_ready()]).await;
    check(&ask(server.address, &chat(json!({}))).await, 503, "no complete set of workers");
}

#[tokio::test]
async fn a_model_in_the_making_is_not_ready_rather_than_unknown() {
    let server = Server::start(vec![FakeModel::new("m", Script::of(&["a"])).in_the_making()]).await;
    check(&ask(server.address, &chat(json!({}))).await, 503, "no complete set of workers");
    check(&ask(server.address, &chat(json!({"model": "x"}))).await, 404, "Model not found");
}

#[tokio::test]
async fn large_bodies_are_parsed_too() {
    let server = server().await;
    let text = "x".repeat(3 << 20);
    let answer = ask(server.address, &chat(json!({"messages": [{"role": "user", "content": text}]}))).await;
    assert_eq!(answer.status, 200);
    let (request, _) = server.records[0].last().unwrap();
    assert_eq!(request.messages[0].content.as_ref().unwrap().joined_text(), text);
}
