use super::respond::Site;
use super::{SystemConfig, SystemState};
use crate::metrics::{BoundHits, IntCounter, Metrics, MetricsError};
use crate::scope::TaskScope;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Connections at a time: probes, scrapers and a few people. More are closed at once.
const MAX_CONNECTIONS: usize = 128;
/// How long a connection may take to send a request's head, or idle before the next.
const HEAD_TIME: Duration = Duration::from_secs(60);
/// How long connections may take to end once the scope is cancelled.
const FAREWELL: Duration = Duration::from_secs(1);
/// Before the next attempt, when accepting fails (out of descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Why the system server does not run.
#[derive(Debug, thiserror::Error)]
pub enum SystemError {
    /// The address cannot be bound.
    #[error(
        "the system server cannot listen on {host}:{port}: {source}; set DYN_SYSTEM_PORT to a free port, or -1 for none"
    )]
    Bind {
        /// The configured host.
        host: String,
        /// The configured port.
        port: u16,
        /// Why not.
        source: std::io::Error,
    },
    /// A metric of its own cannot be registered.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
}

/// A system server that runs, until its scope is cancelled.
#[derive(Debug, Clone, Copy)]
pub struct SystemServer {
    address: SocketAddr,
}

impl SystemServer {
    /// Listens, if the configuration names a port. Its tasks belong to `scope`.
    pub async fn start(
        scope: &TaskScope,
        config: &SystemConfig,
        state: SystemState,
        metrics: Metrics,
    ) -> Result<Option<Self>, SystemError> {
        let Some(port) = config.port else { return Ok(None) };
        let refused = BoundHits::new(&metrics)?.of("system_connections");
        let bind_error = |source| SystemError::Bind { host: config.host.clone(), port, source };
        let listener = TcpListener::bind((config.host.as_str(), port)).await.map_err(bind_error)?;
        let address = listener.local_addr().map_err(bind_error)?;
        let site = Arc::new(Site::new(config, state, metrics));
        let scope = scope.child("system");
        scope.spawn("accept", accept(scope.clone(), listener, site, refused));
        Ok(Some(Self { address }))
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

async fn accept(scope: TaskScope, listener: TcpListener, site: Arc<Site>, refused: IntCounter) {
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            () = scope.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => match room.clone().try_acquire_owned() {
                Ok(place) => {
                    scope.spawn("connection", connection(scope.clone(), stream, peer, site.clone(), place));
                }
                Err(_) => refused.inc(),
            },
            Err(error) => {
                tracing::warn!(%error, "system server cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(
    scope: TaskScope,
    stream: TcpStream,
    peer: SocketAddr,
    site: Arc<Site>,
    _place: OwnedSemaphorePermit,
) {
    // Without it an answer's last segment may wait for an acknowledgement; failing that it is only slower.
    let _ = stream.set_nodelay(true);
    let service = service_fn(|request| {
        let site = site.clone();
        async move { Ok::<_, Infallible>(site.respond(peer.ip(), request).await) }
    });
    let mut serving = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIME)
            .serve_connection(TokioIo::new(stream), service)
    );
    let ended = tokio::select! {
        ended = &mut serving => ended,
        () = scope.cancelled() => {
            serving.as_mut().graceful_shutdown();
            match tokio::time::timeout(FAREWELL, serving).await {
                Ok(ended) => ended,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "system connection ended");
    }
}
