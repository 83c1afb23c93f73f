//! The service: accepts connections, serves them, and drains them.

use std::{io, sync::Arc, time::Duration};

use axum::Router;
use dynamo_llm::ModelCatalog;
use dynamo_runtime::{Metrics, Phase, metrics::MetricsError};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::{JoinError, JoinSet},
};

use crate::{
    app::App,
    config::HttpConfig,
    listen,
    routes::{ConnectionService, router},
    sse_body::FRAME_BYTES,
    stall::{Connection, StallGuard},
};

/// Bytes that a connection's own buffers hold, in either direction: also those of a request's head; over it, 431. No
/// more than a stream's full frame, so that no second one is made before the first one is sent.
const CONNECTION_BUFFER: usize = FRAME_BYTES;
/// Time before the next try when the process is out of sockets.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// An HTTP service over a catalogue of models.
pub struct HttpService {
    app: Arc<App>,
    router: Router,
}

/// Why a service could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// A prefix that is not a name, or families of these names but other types.
    #[error("the metrics could not be registered: {0}")]
    Metrics(#[from] MetricsError),
    /// Two routes at one path.
    #[error("two routes have the path `{0}`; change one of the DYN_HTTP_SVC_*_PATH variables")]
    PathClash(String),
}

impl HttpService {
    /// Makes a service. Its metrics go into `metrics`, and `/metrics` shows all of that. `phase` says when it is to
    /// leave; a dropped sender means [`Phase::Cancelling`].
    pub fn new(
        config: HttpConfig,
        catalog: Arc<dyn ModelCatalog>,
        metrics: Metrics,
        phase: watch::Receiver<Phase>,
    ) -> Result<Self, ServiceError> {
        if let Some(path) = config.paths.clash() {
            return Err(ServiceError::PathClash(path.to_owned()));
        }
        let app = Arc::new(App::new(config, catalog, metrics.clone(), phase)?);
        let refreshed = Arc::downgrade(&app);
        metrics.on_scrape(move || {
            if let Some(app) = refreshed.upgrade() {
                app.metrics.refresh(&app.catalog.list(), &app.catalog.instances());
            }
        });
        Ok(Self { router: router(app.clone()), app })
    }

    /// Serves until the phase is [`Phase::Draining`] and the last answer has ended, or until
    /// [`Phase::Cancelling`]. Connections are tasks of this future: dropping it drops them.
    pub async fn serve(self, listener: TcpListener) {
        let mut phases = self.app.phases();
        let mut connections = JoinSet::new();
        let most = self.app.config.max_connections;
        loop {
            let full = connections.len() >= most;
            tokio::select! {
                biased;
                () = reached(&mut phases, Phase::Draining) => break,
                Some(ended) = connections.join_next(), if !connections.is_empty() => self.note_end(ended),
                accepted = listener.accept(), if !full => match accepted {
                    Ok((stream, _)) => {
                        if connections.len() + 1 == most {
                            self.app.metrics.bounds.connections.inc();
                        }
                        connections.spawn(connection(self.app.clone(), self.router.clone(), stream));
                    }
                    Err(error) => pause_after(&error).await,
                },
            }
        }
        drop(listener);
        while !connections.is_empty() {
            tokio::select! {
                () = reached(&mut phases, Phase::Cancelling) => connections.shutdown().await,
                Some(ended) = connections.join_next() => self.note_end(ended),
            }
        }
    }

    fn note_end(&self, ended: Result<(), JoinError>) {
        if let Err(error) = ended
            && error.is_panic()
        {
            tracing::error!("a connection's task panicked");
        }
    }
}

/// Serves one connection until either side closes it or the service is drained.
async fn connection(app: Arc<App>, router: Router, stream: TcpStream) {
    if let Err(error) = listen::prepare(&stream) {
        tracing::debug!("a connection was lost before its first byte: {error}");
        return;
    }
    let mut phases = app.phases();
    let state = Connection::default();
    let io = StallGuard::new(TokioIo::new(stream), app.config.stall_limit, state.clone());
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(app.config.header_timeout)
        .max_header_size(CONNECTION_BUFFER)
        .max_buf_size(CONNECTION_BUFFER)
        .serve_connection(io, ConnectionService::new(app.clone(), router, state.clone()));
    let mut serving = std::pin::pin!(serving);
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = reached(&mut phases, Phase::Draining) => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if state.is_stalled() {
        app.metrics.bounds.slow_readers.inc();
    }
    if let Err(error) = ended {
        tracing::trace!("connection ended: {error}");
    }
}

async fn reached(phases: &mut watch::Receiver<Phase>, phase: Phase) {
    // An error means that the sender is gone, and with it whoever could say more.
    let _ = phases.wait_for(|now| *now >= phase).await;
}

async fn pause_after(error: &io::Error) {
    let of_one_connection = matches!(
        error.kind(),
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset
    );
    if !of_one_connection {
        tracing::warn!("can't accept connections: {error}");
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}
