//! `POST /v1/chat/completions`.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use axum::{
    body::{Body, Bytes},
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, Response, StatusCode, header},
};
use dynamo_llm::{GenerateError, RequestContext};
use dynamo_protocols::{ChatCompletionRequest, NvExt, RequestError, UnknownFields, parse_chat_request};

use crate::{
    advice,
    answer::{AnswerShape, ExtraFields},
    api_error::ApiError,
    app::App,
    chat_request::{RoutingHeaders, chat_request, session},
    metrics::{Outcome, RequestKind, RequestTracker},
    request_body::{drain, read_json},
    request_id::RequestId,
    sse_body::SseBody,
    stall::Connection,
    unary,
};

/// Names the time that the client gives the whole answer, in milliseconds.
const TIMEOUT_HEADER: &str = "x-dynamo-request-timeout-ms";
/// Bytes of a body that are parsed on the reactor: a quarter of a millisecond's work.
const PARSE_INLINE: usize = 96 << 10;
/// Bytes of a W3C trace context that is passed on; version 00 has 55.
const MAX_TRACEPARENT: usize = 128;

pub(crate) async fn chat_completions(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Response<Body>, ApiError> {
    let received = Instant::now();
    let (parts, body) = request.into_parts();
    let id = parts.extensions.get::<RequestId>().cloned().unwrap_or_else(|| RequestId::of(&parts.headers));
    let connection = parts.extensions.get::<Connection>().cloned().unwrap_or_default();
    if let Err(error) = app.admit() {
        drain(body).await;
        return Err(error);
    }
    let refused = |kind, error: ApiError| {
        app.metrics.count_refused(kind);
        tracing::debug!(request_id = %id.0, status = error.status().as_u16(), "refused: {}", error.message());
        error
    };
    let (bytes, held) = match read_json(&parts.headers, body, &app.body_limits).await {
        Ok(read) => read,
        Err(error) => {
            count_limit(&app, &error);
            return Err(refused(RequestKind::Unary, error));
        }
    };
    let request = parse(&app, bytes).await.map_err(|error| refused(RequestKind::Unary, error.into()))?;
    let kind = if request.is_stream() { RequestKind::Stream } else { RequestKind::Unary };
    let model = app.model(&request.model).map_err(|error| refused(kind, error))?;

    let handles = app.metrics.model(&model.info().id);
    let mut tracker = RequestTracker::start(app.metrics.clone(), handles, kind, received);
    let created = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let shape = AnswerShape {
        id: id.0.clone(),
        created,
        model: model.clone(),
        include_usage: request.includes_usage(),
        extra: ExtraFields::of(request.nvext.as_ref()),
        overload_status: app.config.overload_status,
    };
    let annotate = asks_for_id(&request);
    let context = context(&app, &id, &parts.headers, received);
    let only_advice = request.nvext.as_ref().is_some_and(NvExt::asks_for_instance);
    let mut chat = chat_request(request, routing(&app, &parts.headers));
    chat.routing.session = session(&parts.headers);
    if only_advice {
        return match model.clone().advise(chat, context).await {
            Ok(advised) => {
                tracker.end(Outcome::Success);
                let stream = kind == RequestKind::Stream;
                Ok(advice::answer(advised, &id.0, created, &model.info().id, stream))
            }
            Err(error) => {
                tracker.end(outcome_of(&error));
                Err(ApiError::from_generate(&error, app.config.overload_status))
            }
        };
    }
    let generation = match model.chat(chat, context).await {
        Ok(generation) => generation,
        Err(error) => {
            tracker.end(outcome_of(&error));
            log_failure(&id, &error);
            return Err(ApiError::from_generate(&error, app.config.overload_status));
        }
    };
    // The prompt is tokens by now.
    drop(held);

    if kind == RequestKind::Unary {
        return unary::answer(generation, &shape, tracker).await;
    }
    let mut stream = SseBody::new(generation, shape, tracker, connection, app.config.sse_keep_alive);
    if annotate {
        stream.annotate("request_id", &id.0);
    }
    let mut response = Response::new(Body::new(stream));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Proxies that know this header pass events on as they come.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

/// What a failure counts as.
pub(crate) fn outcome_of(error: &GenerateError) -> Outcome {
    match error {
        GenerateError::Cancelled | GenerateError::SlowReader => Outcome::Cancelled,
        GenerateError::Overloaded | GenerateError::QueueTimeout => Outcome::Rejected,
        _ => Outcome::Error,
    }
}

/// Says what a client is not told, and nothing of what clients do wrong.
pub(crate) fn log_failure(id: &RequestId, error: &GenerateError) {
    match error {
        GenerateError::Engine(_) | GenerateError::Internal(_) | GenerateError::WorkerLost => {
            tracing::warn!(request_id = %id.0, "request failed: {error}");
        }
        _ => tracing::debug!(request_id = %id.0, "request failed: {error}"),
    }
}

async fn parse(app: &Arc<App>, bytes: Bytes) -> Result<ChatCompletionRequest, RequestError> {
    let unknown =
        if app.config.ignore_unknown_fields { UnknownFields::Ignore } else { UnknownFields::Refuse };
    if bytes.len() <= PARSE_INLINE {
        return parse_chat_request(&bytes, unknown);
    }
    let _permit = app.large_parses.acquire().await;
    match tokio::task::spawn_blocking(move || parse_chat_request(&bytes, unknown)).await {
        Ok(parsed) => parsed,
        Err(_) => Err(RequestError::Syntax("the parser gave up".into())),
    }
}

fn asks_for_id(request: &ChatCompletionRequest) -> bool {
    let annotations = request.nvext.as_ref().and_then(|nvext| nvext.annotations.as_deref());
    annotations.unwrap_or_default().iter().any(|name| name == "request_id")
}

fn context(app: &App, id: &RequestId, headers: &HeaderMap, received: Instant) -> RequestContext {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let asked = text(TIMEOUT_HEADER).and_then(|value| value.trim().parse().ok()).map(Duration::from_millis);
    let limit = match (asked, app.config.request_timeout) {
        (Some(asked), Some(limit)) => Some(asked.min(limit)),
        (asked, limit) => asked.or(limit),
    };
    RequestContext {
        id: id.0.clone(),
        deadline: limit.and_then(|limit| received.checked_add(limit)),
        traceparent: text("traceparent").filter(|value| value.len() <= MAX_TRACEPARENT).map(str::to_owned),
    }
}

fn routing(app: &App, headers: &HeaderMap) -> RoutingHeaders {
    let asked = RoutingHeaders::of(headers);
    if app.config.trust_routing_headers || !asked.any() {
        return asked;
    }
    if !app.told_of_headers.swap(true, Ordering::Relaxed) {
        tracing::warn!(
            "a request chose its worker by header; such headers are ignored unless --trust-routing-headers is set"
        );
    }
    RoutingHeaders::default()
}

fn count_limit(app: &App, error: &ApiError) {
    match error.status() {
        StatusCode::PAYLOAD_TOO_LARGE => app.metrics.bounds.body.inc(),
        StatusCode::SERVICE_UNAVAILABLE => app.metrics.bounds.body_budget.inc(),
        _ => {}
    }
}
