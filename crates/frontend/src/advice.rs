//! The answer to a request that only asks where it would go.

use axum::{
    body::Body,
    http::{HeaderValue, Response, header},
};
use dynamo_llm::RoutingAdvice;
use dynamo_protocols::{ChatCompletion, NvExtAnswer};
use serde_json::json;

use crate::answer::worker_ids;

/// A completion without choices whose `nvext` names the worker and has the prompt in tokens; as a stream, one event.
pub(crate) fn answer(
    advice: RoutingAdvice,
    id: &str,
    created: u64,
    model: &str,
    stream: bool,
) -> Response<Body> {
    let nvext = NvExtAnswer {
        worker_id: Some(worker_ids(advice.prefill, (advice.worker_id, advice.dp_rank))),
        token_ids: Some(advice.token_ids),
        ..NvExtAnswer::default()
    };
    let object = if stream { "chat.completion.chunk" } else { ChatCompletion::OBJECT };
    let body = json!({
        "id": format!("chatcmpl-{id}"),
        "object": object,
        "created": created,
        "model": model,
        "choices": [],
        "nvext": nvext,
    });
    let (kind, text) = if stream {
        ("text/event-stream", format!("data: {body}\n\ndata: [DONE]\n\n"))
    } else {
        ("application/json", body.to_string())
    };
    let mut response = Response::new(Body::from(text));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
