//! What each route answers.

use super::loras::LoraTarget;
use super::{AdminAccess, Refusal, SystemConfig, SystemState};
use crate::metrics::{Metrics, TEXT_CONTENT_TYPE};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, ORIGIN, WWW_AUTHENTICATE};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};
use std::net::IpAddr;
use std::time::Duration;

/// The largest body of an engine route: administration, not data.
const MAX_BODY: usize = 4 << 20;
/// How long a client may take to send it.
const BODY_TIME: Duration = Duration::from_secs(30);

pub(super) type Answer = Response<Full<Bytes>>;

/// What the routes answer from.
pub(super) struct Site {
    pub(super) state: SystemState,
    pub(super) metrics: Metrics,
    health_path: String,
    live_path: String,
    admin: AdminAccess,
    lora_routes: bool,
}

impl Site {
    pub(super) fn new(config: &SystemConfig, state: SystemState, metrics: Metrics) -> Self {
        let SystemConfig { health_path, live_path, admin, lora_routes, .. } = config.clone();
        Self { state, metrics, health_path, live_path, admin, lora_routes }
    }

    pub(super) async fn respond(&self, peer: IpAddr, request: Request<Incoming>) -> Answer {
        let path = request.uri().path();
        if let Some(route) = path.strip_prefix("/engine/") {
            let route = route.to_owned();
            return self.engine(peer, &route, request).await;
        }
        if self.lora_routes
            && let Some(target) = LoraTarget::of(path)
        {
            return self.loras(peer, target, request).await;
        }
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return error(StatusCode::METHOD_NOT_ALLOWED, "Method not allowed", "use GET");
        }
        if path == self.live_path || path == "/live" {
            return json_answer(StatusCode::OK, &self.state.report("live"));
        }
        if path == self.health_path || path == "/health" || path == "/ready" {
            return self.health();
        }
        match path {
            "/metrics" => self.text_metrics(),
            "/metadata" => match self.state.metadata() {
                Some(metadata) => json_answer(StatusCode::OK, &metadata),
                None => error(StatusCode::NOT_FOUND, "Not found", "this process has no metadata"),
            },
            _ => error(StatusCode::NOT_FOUND, "Route not found", path),
        }
    }

    fn health(&self) -> Answer {
        let (code, status) = if self.state.is_ready() {
            (StatusCode::OK, "ready")
        } else {
            (StatusCode::SERVICE_UNAVAILABLE, "notready")
        };
        json_answer(code, &self.state.report(status))
    }

    fn text_metrics(&self) -> Answer {
        let mut text = String::new();
        self.metrics.encode_text(&mut text);
        answer(StatusCode::OK, TEXT_CONTENT_TYPE, text.into())
    }

    /// The answer to somebody who may not call administration routes.
    pub(super) fn refusal(&self, peer: IpAddr, route: &str, request: &Request<Incoming>) -> Option<Answer> {
        let authorization = request.headers().get(AUTHORIZATION).map(HeaderValue::as_bytes);
        let has_origin = request.headers().contains_key(ORIGIN);
        let refusal = self.admin.check(peer, authorization, has_origin).err()?;
        tracing::warn!(%peer, route, %refusal, "administration route refused");
        Some(refused(refusal))
    }

    async fn engine(&self, peer: IpAddr, route: &str, request: Request<Incoming>) -> Answer {
        if let Some(refusal) = self.refusal(peer, route, &request) {
            return refusal;
        }
        let routes = self.state.routes();
        if !routes.contains(route) {
            return no_route(route);
        }
        let body = match read_json(request).await {
            Ok(body) => body,
            Err(answer) => return *answer,
        };
        // The route may have gone while the body came.
        let Some(call) = routes.call(route, || body) else { return no_route(route) };
        match call.await {
            Ok(value) => json_answer(StatusCode::OK, &value),
            Err(message) => {
                tracing::warn!(route, message, "engine route failed");
                error(StatusCode::INTERNAL_SERVER_ERROR, "Handler error", &message)
            }
        }
    }
}

/// The body as JSON; `{}` if there is none.
pub(super) async fn read_json(request: Request<Incoming>) -> Result<Value, Box<Answer>> {
    let bad = |code, what: &str, why: &str| Box::new(error(code, what, why));
    let reading = Limited::new(request.into_body(), MAX_BODY).collect();
    let body = match tokio::time::timeout(BODY_TIME, reading).await {
        Err(_) => {
            return Err(bad(StatusCode::REQUEST_TIMEOUT, "Request timeout", "the body did not come in time"));
        }
        Ok(Err(cause)) if cause.is::<http_body_util::LengthLimitError>() => {
            let message = format!("the body is over {MAX_BODY} bytes");
            return Err(bad(StatusCode::PAYLOAD_TOO_LARGE, "Body too large", &message));
        }
        Ok(Err(cause)) => return Err(bad(StatusCode::BAD_REQUEST, "Invalid body", &cause.to_string())),
        Ok(Ok(body)) => body.to_bytes(),
    };
    if body.is_empty() {
        return Ok(json!({}));
    }
    serde_json::from_slice(&body)
        .map_err(|cause| bad(StatusCode::BAD_REQUEST, "Invalid JSON", &cause.to_string()))
}

fn refused(refusal: Refusal) -> Answer {
    match refusal {
        Refusal::Token => {
            let mut answer = error(StatusCode::UNAUTHORIZED, "Unauthorized", &refusal.to_string());
            answer.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            answer
        }
        Refusal::NotLoopback | Refusal::WebPage => {
            error(StatusCode::FORBIDDEN, "Forbidden", &refusal.to_string())
        }
    }
}

pub(super) fn no_route(route: &str) -> Answer {
    error(StatusCode::NOT_FOUND, "Route not found", &format!("no engine route is registered as {route}"))
}

pub(super) fn error(code: StatusCode, what: &str, message: &str) -> Answer {
    json_answer(code, &json!({ "error": what, "message": message }))
}

pub(super) fn json_answer(code: StatusCode, value: &Value) -> Answer {
    answer(code, "application/json", value.to_string().into())
}

fn answer(code: StatusCode, content_type: &'static str, body: Bytes) -> Answer {
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = code;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}
