//! `GET /health`, `/live` and `/metrics`.

use std::sync::Arc;

use axum::{
    Json,
    body::Body,
    extract::State,
    http::{HeaderValue, Response, StatusCode, header},
    response::IntoResponse,
};
use dynamo_runtime::Phase;
use serde::Serialize;
use serde_json::json;

use crate::app::App;

#[derive(Serialize)]
struct Health {
    status: &'static str,
    endpoints: Vec<String>,
    instances: Vec<Instance>,
}

#[derive(Serialize)]
struct Instance {
    namespace: String,
    component: String,
    endpoint: String,
    instance_id: u64,
    transport: Transport,
}

#[derive(Serialize)]
struct Transport {
    tcp: String,
}

/// Whether requests should be sent here.
pub(crate) async fn health(State(app): State<Arc<App>>) -> Response<Body> {
    let phase = app.phase();
    if phase > Phase::Running {
        let body =
            json!({"status": "not_ready", "stage": stage(phase), "message": "the server is shutting down"});
        return (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response();
    }
    let mut instances = app.catalog.instances();
    instances.sort_by(|a, b| {
        (&a.namespace, &a.component, &a.endpoint, a.instance_id).cmp(&(
            &b.namespace,
            &b.component,
            &b.endpoint,
            b.instance_id,
        ))
    });
    let mut endpoints: Vec<String> = instances
        .iter()
        .map(|it| format!("dyn://{}.{}.{}", it.namespace, it.component, it.endpoint))
        .collect();
    endpoints.dedup();
    let instances = instances
        .into_iter()
        .map(|it| Instance {
            namespace: it.namespace,
            component: it.component,
            endpoint: it.endpoint,
            instance_id: it.instance_id,
            transport: Transport { tcp: it.address },
        })
        .collect();
    Json(Health { status: "healthy", endpoints, instances }).into_response()
}

/// Whether the process turns at all.
pub(crate) async fn live(State(app): State<Arc<App>>) -> Response<Body> {
    match app.phase() {
        Phase::Cancelling | Phase::Closed => {
            let body = json!({"status": "shutting_down", "message": "the server is shutting down"});
            (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
        }
        _ => Json(json!({"status": "live", "message": "the server is running"})).into_response(),
    }
}

pub(crate) async fn metrics(State(app): State<Arc<App>>) -> Response<Body> {
    let mut text = String::new();
    app.registry.encode_text(&mut text);
    let mut response = Response::new(Body::from(text));
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

/// The incumbent's names.
fn stage(phase: Phase) -> &'static str {
    match phase {
        Phase::Running => "ready",
        Phase::Leaving | Phase::Draining => "draining",
        Phase::Cancelling | Phase::Closed => "stopping",
    }
}
