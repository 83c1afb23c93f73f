//! Which path is what, and what surrounds every request.

use std::{convert::Infallible, future::Future, pin::Pin, sync::Arc, time::Instant};

use axum::{
    Router,
    body::Body,
    extract::Request,
    http::{HeaderName, HeaderValue, Response, StatusCode, header},
    routing::{get, post},
};
use dynamo_runtime::Phase;
use hyper::{body::Incoming, service::Service};
use hyper_util::service::TowerToHyperService;

use crate::{
    api_error::ApiError,
    app::App,
    busy_threshold,
    chat::chat_completions,
    health, models,
    request_body::drain,
    request_id::{self, RequestId},
    stall::Connection,
};

static REQUEST_ID: HeaderName = HeaderName::from_static(request_id::HEADER);

/// Where workers' limits are read and set.
const BUSY_THRESHOLD: &str = "/busy_threshold";

/// Bytes of a method or path that an error repeats.
const MAX_ECHO: usize = 256;

/// The routes, made once for a service.
pub(crate) fn router(app: Arc<App>) -> Router {
    let paths = &app.config.paths;
    let admin = if app.config.admin_routes {
        Router::new().route(BUSY_THRESHOLD, get(busy_threshold::list).post(busy_threshold::set))
    } else {
        Router::new()
    };
    admin
        .route(&paths.chat, post(chat_completions))
        .route(&paths.models, get(models::list))
        .route(&format!("{}/{{*id}}", paths.models.trim_end_matches('/')), get(models::one))
        .route(&paths.health, get(health::health))
        .route(&paths.live, get(health::live))
        .route(&paths.metrics, get(health::metrics))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(app)
}

async fn not_found(request: Request) -> ApiError {
    let message = format!("Route not found: {}", asked(&request));
    drain(request.into_body()).await;
    ApiError::new(StatusCode::NOT_FOUND, message)
}

async fn method_not_allowed(request: Request) -> ApiError {
    let message = format!("Method not allowed: {}", asked(&request));
    drain(request.into_body()).await;
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, message)
}

fn asked(request: &Request) -> String {
    let path = request.uri().path();
    let end = path.len().min(MAX_ECHO);
    // A request's path is ASCII.
    format!("{} {}", request.method(), path.get(..end).unwrap_or_default())
}

/// The service of one connection: gives every request its id, and every response too.
pub(crate) struct ConnectionService {
    app: Arc<App>,
    router: TowerToHyperService<Router>,
    connection: Connection,
}

impl ConnectionService {
    pub(crate) fn new(app: Arc<App>, router: Router, connection: Connection) -> Self {
        Self { app, router: TowerToHyperService::new(router), connection }
    }
}

impl Service<hyper::Request<Incoming>> for ConnectionService {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, mut request: hyper::Request<Incoming>) -> Self::Future {
        let id = RequestId::of(request.headers());
        // One line per request, and nothing of it is put together where nobody reads it.
        let asked = tracing::enabled!(tracing::Level::DEBUG)
            .then(|| (request.method().clone(), request.uri().path().to_owned(), Instant::now()));
        request.extensions_mut().insert(id.clone());
        request.extensions_mut().insert(self.connection.clone());
        let answer = self.router.call(request);
        let app = self.app.clone();
        Box::pin(async move {
            let mut response = match answer.await {
                Ok(response) => response,
                Err(never) => match never {},
            };
            if let Some(error) = response.extensions_mut().remove::<ApiError>() {
                let allow = response.headers_mut().remove(header::ALLOW);
                response = error.render(&id.0);
                if let Some(allow) = allow {
                    response.headers_mut().insert(header::ALLOW, allow);
                }
            }
            response.headers_mut().insert(REQUEST_ID.clone(), id.header());
            if app.phase() > Phase::Running {
                // The client's next request belongs to another server.
                response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            if let Some((method, path, since)) = asked {
                let (status, latency_ms) = (response.status().as_u16(), since.elapsed().as_millis());
                tracing::debug!(request_id = %id.0, %method, path, status, latency_ms, "answered");
            }
            Ok(response)
        })
    }
}
