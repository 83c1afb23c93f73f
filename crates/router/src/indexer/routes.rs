//! Which path is what.

use std::sync::Arc;

use axum::{
    Router,
    body::Body,
    extract::State,
    http::{HeaderValue, Method, Response, StatusCode, Uri, header},
    routing::{get, post},
};
use bytes::Bytes;
use dynamo_kv_router::WorkerRank;
use dynamo_runtime::{Metrics, Phase, TaskScope};
use dynamo_tokens::LocalBlockHash;
use serde::de::DeserializeOwned;
use tokio::sync::{Semaphore, watch};

use super::{
    api::{
        ListenerEntry, PeerBody, QueryAnswer, QueryBody, QueryByHashBody, RegisterBody, UnregisterBody,
        WorkerEntry, key,
    },
    dump::DumpBody,
    json_body::{INLINE_BODY, answer, error, ok, parse, read},
    metrics::RequestMetrics,
    peers::{PeerError, Peers},
    query,
    registry::{ModelIndex, ModelKey, RegisterError, Registration, Registry},
};

/// What the routes work on.
pub(super) struct App {
    pub(super) registry: Arc<Registry>,
    pub(super) peers: Peers,
    pub(super) families: Metrics,
    pub(super) requests: RequestMetrics,
    /// Dumps being written; each holds the events of one rank.
    pub(super) dumps: Arc<Semaphore>,
    pub(super) scope: TaskScope,
    pub(super) phase: watch::Receiver<Phase>,
}

/// The model of a request, for the access log.
#[derive(Clone)]
pub(super) struct AskedModel(pub(super) String);

type Answer = Result<Response<Body>, Box<Response<Body>>>;
type Shared = State<Arc<App>>;

/// The routes.
pub(super) fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/register", post(register))
        .route("/unregister", post(unregister))
        .route("/workers", get(workers))
        .route("/query", post(query))
        .route("/query_by_hash", post(query_by_hash))
        .route("/dump", get(dump))
        .route("/peers", get(peers))
        .route("/register_peer", post(register_peer))
        .route("/deregister_peer", post(deregister_peer))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(app)
}

fn whole(answer: Answer) -> Response<Body> {
    answer.unwrap_or_else(|refused| *refused)
}

fn of_model(mut response: Response<Body>, model: String) -> Response<Body> {
    response.extensions_mut().insert(AskedModel(model));
    response
}

async fn body<T: DeserializeOwned>(body: Body) -> Result<T, Box<Response<Body>>> {
    parse(&read(body).await?)
}

async fn register(State(app): Shared, request: Body) -> Response<Body> {
    let work = async {
        let RegisterBody {
            instance_id,
            endpoint,
            model_name,
            routing_group,
            block_size,
            dp_rank,
            replay_endpoint,
        } = body(request).await?;
        let rank = WorkerRank { worker_id: instance_id, dp_rank: dp_rank.unwrap_or(0) };
        let key = key(model_name.clone(), routing_group);
        let registered =
            app.registry.register(Registration { key, block_size, rank, endpoint, replay_endpoint });
        let response = match registered {
            Ok(()) => ok(StatusCode::CREATED),
            Err(failure) => error(register_status(&failure), failure.to_string()),
        };
        Ok(of_model(response, model_name))
    };
    whole(work.await)
}

fn register_status(failure: &RegisterError) -> StatusCode {
    match failure {
        RegisterError::AlreadyRegistered(_) | RegisterError::BlockSizeMismatch { .. } => StatusCode::CONFLICT,
        RegisterError::NoBlockSize
        | RegisterError::Endpoint(_)
        | RegisterError::ReplayEndpoint(_)
        | RegisterError::Name
        | RegisterError::Worker(_) => StatusCode::BAD_REQUEST,
        RegisterError::TooManyModels | RegisterError::Index(_) => StatusCode::SERVICE_UNAVAILABLE,
    }
}

async fn unregister(State(app): Shared, request: Body) -> Response<Body> {
    let work = async {
        let UnregisterBody { instance_id, model_name, routing_group, dp_rank } = body(request).await?;
        let key = key(model_name.clone(), routing_group);
        let response = match app.registry.unregister(&key, instance_id, dp_rank) {
            Ok(()) => ok(StatusCode::OK),
            Err(failure) => error(StatusCode::NOT_FOUND, failure.to_string()),
        };
        Ok(of_model(response, model_name))
    };
    whole(work.await)
}

async fn workers(State(app): Shared) -> Response<Body> {
    let mut entries = Vec::new();
    for (key, model) in app.registry.models() {
        let engines = model.engines.read();
        for (&instance_id, ranks) in engines.iter() {
            let statuses = ranks.values().map(|listening| app.registry.status(listening));
            // The one that is furthest from working says how the instance is.
            let worst = statuses.max_by_key(|status| status.trouble());
            let status = worst.map_or("pending", |status| status.label()).to_owned();
            let listener = |listening: &super::registry::Listening| ListenerEntry {
                endpoint: listening.endpoint.clone(),
                replay_endpoint: listening.replay_endpoint.clone(),
                status: app.registry.status(listening).label().to_owned(),
                last_batch: listening.progress.last(),
            };
            entries.push(WorkerEntry {
                instance_id,
                source: "zmq".to_owned(),
                status,
                model_name: key.model_name.clone(),
                routing_group: key.routing_group.clone(),
                block_size: model.block_size.get() as u32,
                endpoints: ranks.iter().map(|(&rank, it)| (rank, it.endpoint.clone())).collect(),
                listeners: ranks.iter().map(|(&rank, it)| (rank, listener(it))).collect(),
            });
        }
    }
    answer(&entries)
}

/// The index that a query asks, or the answer that there is none.
fn index_of(app: &App, key: &ModelKey) -> Result<Arc<ModelIndex>, Box<Response<Body>>> {
    app.registry.model(key).ok_or_else(|| {
        Box::new(of_model(
            error(StatusCode::NOT_FOUND, format!("no indexer for {key}")),
            key.model_name.clone(),
        ))
    })
}

/// Parses and asks: in the blocking pool where that takes long.
async fn ask(
    app: &Arc<App>,
    request: Body,
    work: impl FnOnce(&App, &[u8]) -> Answer + Send + 'static,
) -> Response<Body> {
    let bytes: Bytes = match read(request).await {
        Ok(bytes) => bytes,
        Err(refused) => return *refused,
    };
    if bytes.len() <= INLINE_BODY {
        return whole(work(app, &bytes));
    }
    let shared = app.clone();
    match app.scope.spawn_blocking("query", move || work(&shared, &bytes)).await {
        Ok(answer) => whole(answer),
        Err(failure) => error(StatusCode::INTERNAL_SERVER_ERROR, failure.to_string()),
    }
}

fn found(model: String, found: &QueryAnswer) -> Answer {
    Ok(of_model(answer(found), model))
}

async fn query(State(app): Shared, request: Body) -> Response<Body> {
    let work = |app: &App, bytes: &[u8]| {
        let mut asked: QueryBody = parse(bytes)?;
        let key = key(std::mem::take(&mut asked.model_name), std::mem::take(&mut asked.routing_group));
        let index = index_of(app, &key)?;
        found(key.model_name, &query::by_tokens(&index, &asked))
    };
    ask(&app, request, work).await
}

async fn query_by_hash(State(app): Shared, request: Body) -> Response<Body> {
    let work = |app: &App, bytes: &[u8]| {
        let QueryByHashBody { block_hashes, model_name, routing_group } = parse(bytes)?;
        let key = key(model_name, routing_group);
        let index = index_of(app, &key)?;
        let hashes: Vec<LocalBlockHash> = block_hashes.iter().map(|hash| LocalBlockHash(hash.0)).collect();
        found(key.model_name, &query::by_hashes(&index, &hashes))
    };
    ask(&app, request, work).await
}

async fn dump(State(app): Shared) -> Response<Body> {
    let Ok(turn) = app.dumps.clone().try_acquire_owned() else {
        app.requests.dump_bound.inc();
        return error(StatusCode::SERVICE_UNAVAILABLE, "other dumps are being written; try again soon");
    };
    let mut response = Response::new(Body::new(DumpBody::start(&app.registry, turn, &app.scope)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

async fn peers(State(app): Shared) -> Response<Body> {
    answer(&app.peers.list())
}

async fn register_peer(State(app): Shared, request: Body) -> Response<Body> {
    let work = async {
        let PeerBody { url } = body(request).await?;
        Ok(match app.peers.add(&url) {
            Ok(()) => ok(StatusCode::CREATED),
            Err(failure @ PeerError::Url(_)) => error(StatusCode::BAD_REQUEST, failure.to_string()),
            Err(failure @ PeerError::TooMany) => error(StatusCode::SERVICE_UNAVAILABLE, failure.to_string()),
        })
    };
    whole(work.await)
}

async fn deregister_peer(State(app): Shared, request: Body) -> Response<Body> {
    let work = async {
        let PeerBody { url } = body(request).await?;
        Ok(if app.peers.remove(&url) {
            ok(StatusCode::OK)
        } else {
            error(StatusCode::NOT_FOUND, "peer not found")
        })
    };
    whole(work.await)
}

async fn health(State(app): Shared) -> Response<Body> {
    if *app.phase.borrow() > Phase::Running {
        return error(StatusCode::SERVICE_UNAVAILABLE, "the indexer is shutting down");
    }
    if !app.registry.is_open() {
        return error(StatusCode::SERVICE_UNAVAILABLE, "the indexer is still taking over from a peer");
    }
    if let Some(key) = app.registry.broken() {
        return error(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("the index of {key} broke: restart the indexer"),
        );
    }
    Response::new(Body::empty())
}

async fn metrics(State(app): Shared) -> Response<Body> {
    let mut text = String::new();
    app.families.encode_text(&mut text);
    let mut response = Response::new(Body::from(text));
    let kind = HeaderValue::from_static("text/plain; version=0.0.4");
    response.headers_mut().insert(header::CONTENT_TYPE, kind);
    response
}

async fn not_found(uri: Uri) -> Response<Body> {
    let path: String = uri.path().chars().take(256).collect();
    error(StatusCode::NOT_FOUND, format!("no route {path}"))
}

async fn method_not_allowed(method: Method, uri: Uri) -> Response<Body> {
    error(StatusCode::METHOD_NOT_ALLOWED, format!("{} does not take {method}", uri.path()))
}
