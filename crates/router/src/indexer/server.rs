//! The service: connections in, answers out, from the first recovery to the last answer.

use std::{
    convert::Infallible,
    future::Future,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use axum::{Router, body::Body, http::Response};
use dynamo_kv_router::WorkerRank;
use dynamo_runtime::{Metrics, Phase, Runtime, metrics::MetricsError};
use hyper::{body::Incoming, header::HeaderName, server::conn::http1, service::Service};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream, lookup_host},
    sync::{Semaphore, watch},
    task::JoinSet,
    time::timeout,
};

use super::{
    access_log::{AccessLog, AccessLogError, Line},
    config::IndexerConfig,
    metrics::{self, RequestMetrics},
    peers::{PeerError, Peers},
    recovery::recover,
    registry::{ModelKey, RegisterError, Registration, Registry},
    routes::{App, AskedModel, router},
    source::EventSource,
};

/// Dumps written at once: each may hold the events of a rank with a million blocks, some 30 MB.
const CONCURRENT_DUMPS: usize = 2;
/// For a request's head to arrive.
const HEAD_LIMIT: Duration = Duration::from_secs(30);
/// For the indexes to apply the end of a peer's dump, before the service is ready without: what may wait takes a few
/// tenths of a second.
const SETTLE: Duration = Duration::from_secs(5);
/// Before the next try when the process is out of sockets.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;

/// Why an indexer did not start.
#[derive(Debug, thiserror::Error)]
pub enum IndexerError {
    /// The port is taken, or the host has no address.
    #[error("cannot listen on {host}:{port}: {source}; choose another --host or --port")]
    Bind {
        /// As it was given.
        host: String,
        /// As it was given.
        port: u16,
        /// What the system said.
        source: io::Error,
    },
    /// A metric is taken.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// The access log cannot be written.
    #[error(transparent)]
    AccessLog(#[from] AccessLogError),
    /// An engine of `--workers` cannot be registered.
    #[error("--workers: {0}")]
    Worker(#[from] RegisterError),
    /// `--workers` without `--block-size`.
    #[error("--workers needs --block-size: tokens per block of these engines")]
    NoBlockSize,
    /// A peer that is none.
    #[error("--peers: {0}")]
    Peer(String),
    /// A header name that is none.
    #[error("--trace-id-header: `{0}` is not a header's name")]
    Header(String),
}

/// An indexer that listens and is not yet served.
pub struct IndexerService {
    app: Arc<App>,
    config: IndexerConfig,
    access: Option<Arc<AccessLog>>,
    trace_id: HeaderName,
    listener: TcpListener,
}

impl IndexerService {
    /// Binds `host:port` and registers the configured engines with listeners of `source`.
    pub async fn start(
        runtime: &Runtime,
        config: IndexerConfig,
        (host, port): (&str, u16),
        source: Arc<dyn EventSource>,
        families: Metrics,
    ) -> Result<Self, IndexerError> {
        let trace_id = config
            .trace_id_header
            .parse()
            .map_err(|_| IndexerError::Header(config.trace_id_header.clone()))?;
        let bind = |source| IndexerError::Bind { host: host.to_owned(), port, source };
        let listener = listen(host, port).await.map_err(bind)?;
        let scope = runtime.scope().child("indexer");
        let requests = RequestMetrics::new(&families)?;
        let access = match &config.access_log {
            Some(path) => Some(Arc::new(AccessLog::open(path, requests.access_log_bound.clone(), &scope)?)),
            None => None,
        };
        let registry = Arc::new(Registry::new(source, config.index, scope.child("engines")));
        metrics::register(&families, &registry)?;
        let peers = Peers::default();
        for peer in &config.peers {
            peers.add(peer).map_err(|error: PeerError| IndexerError::Peer(error.to_string()))?;
        }
        let key =
            ModelKey { model_name: config.model_name.clone(), routing_group: config.routing_group.clone() };
        for worker in &config.workers {
            let rank: WorkerRank = worker.rank;
            let block_size = config.block_size.ok_or(IndexerError::NoBlockSize)?;
            let endpoint = worker.endpoint.clone();
            let key = key.clone();
            registry.register(Registration { key, block_size, rank, endpoint, replay_endpoint: None })?;
        }
        let app = Arc::new(App {
            registry,
            peers,
            families,
            requests,
            dumps: Arc::new(Semaphore::new(CONCURRENT_DUMPS)),
            scope,
            phase: runtime.phase(),
        });
        Ok(Self { app, config, access, trace_id, listener })
    }

    /// Where it listens.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// The engines and indexes.
    pub fn registry(&self) -> &Arc<Registry> {
        &self.app.registry
    }

    /// Takes over from the peers, and meanwhile and after that serves, until the runtime drains and the last answer has
    /// ended. Connections are tasks of this future.
    pub async fn serve(self) {
        let Self { app, config, access, trace_id, listener } = self;
        // At least one, so that it can be asked for its health.
        let most = config.max_connections.max(1);
        let recovering = app.clone();
        let scope = app.scope.clone();
        app.scope.spawn("recovery", async move {
            tokio::select! {
                () = scope.cancelled() => {}
                () = recover_once(&recovering, &config) => {}
            }
        });
        let service = Connection { app: app.clone(), access, trace_id, router: router(app.clone()) };
        let mut phases = app.phase.clone();
        let mut connections = JoinSet::new();
        loop {
            let full = connections.len() >= most;
            tokio::select! {
                biased;
                () = reached(&mut phases, Phase::Draining) => break,
                Some(_) = connections.join_next(), if !connections.is_empty() => {}
                accepted = listener.accept(), if !full => match accepted {
                    Ok((stream, _)) => {
                        if connections.len() + 1 == most {
                            app.requests.connection_bound.inc();
                        }
                        connections.spawn(service.clone().serve(stream));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "can't accept connections");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
        drop(listener);
        while !connections.is_empty() {
            tokio::select! {
                () = reached(&mut phases, Phase::Cancelling) => connections.shutdown().await,
                Some(_) = connections.join_next() => {}
            }
        }
    }
}

async fn recover_once(app: &App, config: &IndexerConfig) {
    let peers = app.peers.list();
    if !peers.is_empty() {
        let began = Instant::now();
        match recover(&app.registry, &peers, config.recovery, &app.scope).await {
            Some(taken) => {
                app.requests.recovery_seconds.set(began.elapsed().as_secs_f64());
                app.requests.recovered_blocks.set(taken.blocks as i64);
            }
            None => tracing::warn!("no peer answered: starting with what engines say from now on"),
        }
    }
    // A peer that stopped halfway leaves events behind too.
    if timeout(SETTLE, app.registry.caught_up()).await.is_err() {
        tracing::warn!("the indexes are behind: ready with what they have applied");
    }
    app.registry.resume();
}

async fn listen(host: &str, port: u16) -> io::Result<TcpListener> {
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    let mut failure = io::ErrorKind::NotFound.into();
    for address in lookup_host((bare, port)).await? {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.set_reuseaddr(true)?;
        match socket.bind(address).and_then(|()| socket.listen(BACKLOG)) {
            Ok(listener) => return Ok(listener),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

async fn reached(phases: &mut watch::Receiver<Phase>, phase: Phase) {
    // An error means that the sender is gone, and with it whoever could say more.
    let _ = phases.wait_for(|now| *now >= phase).await;
}

/// What every connection needs.
#[derive(Clone)]
struct Connection {
    app: Arc<App>,
    access: Option<Arc<AccessLog>>,
    trace_id: HeaderName,
    router: Router,
}

impl Connection {
    async fn serve(self, stream: TcpStream) {
        // A connection that is gone already is of no concern.
        let _ = stream.set_nodelay(true);
        let mut phases = self.app.phase.clone();
        let serving = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_LIMIT)
            .serve_connection(TokioIo::new(stream), self);
        let mut serving = std::pin::pin!(serving);
        let ended = tokio::select! {
            ended = serving.as_mut() => ended,
            () = reached(&mut phases, Phase::Draining) => {
                serving.as_mut().graceful_shutdown();
                serving.await
            }
        };
        if let Err(error) = ended {
            tracing::trace!(%error, "connection ended");
        }
    }
}

impl Service<hyper::Request<Incoming>> for Connection {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, request: hyper::Request<Incoming>) -> Self::Future {
        let began = Instant::now();
        let method = request.method().as_str().to_owned();
        let path = request.uri().path().to_owned();
        let trace_id = self
            .access
            .as_ref()
            .and_then(|_| request.headers().get(&self.trace_id)?.to_str().ok().map(str::to_owned));
        let (app, access) = (self.app.clone(), self.access.clone());
        let answering = TowerToHyperService::new(self.router.clone()).call(request);
        Box::pin(async move {
            let mut response = match answering.await {
                Ok(response) => response,
                Err(never) => match never {},
            };
            let model = response.extensions_mut().remove::<AskedModel>();
            let (status, duration) = (response.status().as_u16(), began.elapsed());
            app.requests.answered(&path, &method, status, duration);
            // Those who only look whether it works would fill the log.
            if let Some(access) = access.filter(|_| path != "/metrics") {
                let model = model.map(|model| model.0);
                access.log(Line { at: SystemTime::now(), trace_id, method, path, model, status, duration });
            }
            Ok(response)
        })
    }
}
