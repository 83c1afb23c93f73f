use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use dynamo_wire::{Request, Role};
use parking_lot::Mutex;
use tokio::net::TcpListener;

use super::{
    Handler, OpenError, OutgoingRequest, PlaneError, RequestPlaneConfig, RequestPlaneMetrics, ResponseStream,
    ServeGuard, Target,
    inbox::Inbox,
    link::Link,
    local::LocalHub,
    paths::{Announce, Paths},
    peers::{Peers, start},
};
use crate::TaskScope;

/// After a failed accept: descriptors may have run out, and come back when streams end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What the connections of a plane share.
pub(super) struct Shared {
    pub(super) scope: TaskScope,
    pub(super) config: RequestPlaneConfig,
    pub(super) metrics: RequestPlaneMetrics,
    pub(super) paths: Paths,
    /// Live connections; bounded by `max_connections` and the peers that this process asks.
    pub(super) links: Mutex<HashMap<u64, Arc<Link>>>,
    pub(super) next_link: AtomicU64,
    peers: Peers,
    local: Arc<LocalHub>,
    streams: Arc<AtomicI64>,
    address: SocketAddr,
    own_address: String,
}

impl Shared {
    pub(super) fn count_streams(&self, change: i64) {
        self.streams.fetch_add(change, Ordering::Relaxed);
        self.metrics.streams.add(change);
    }

    fn links(&self) -> Vec<Arc<Link>> {
        self.links.lock().values().cloned().collect()
    }
}

impl Announce for Shared {
    fn paths(&self) -> &Paths {
        &self.paths
    }

    fn announce(&self, path: &str, back: bool) {
        for link in self.links() {
            link.go_away(Some(path), back);
        }
    }
}

/// Sends and serves requests. Clones are the same plane; it lives until its scope is cancelled.
#[derive(Clone)]
pub struct RequestPlane {
    shared: Arc<Shared>,
}

impl RequestPlane {
    /// Listens. All tasks of the plane belong to `scope`; cancelling it closes all connections.
    pub async fn start(
        scope: TaskScope,
        config: RequestPlaneConfig,
        metrics: RequestPlaneMetrics,
    ) -> Result<Self, PlaneError> {
        let bind = |source| PlaneError::Bind { address: config.bind.clone(), source };
        let listener = TcpListener::bind(&config.bind).await.map_err(bind)?;
        let bound = listener.local_addr().map_err(bind)?;
        let address = advertised(&config, bound).await?;
        let streams = Arc::new(AtomicI64::new(0));
        let local = LocalHub::start(&scope, &config, &metrics, streams.clone());
        let shared = Arc::new(Shared {
            scope,
            config,
            metrics,
            paths: Paths::new(),
            links: Mutex::default(),
            next_link: AtomicU64::new(0),
            peers: Peers::default(),
            local,
            streams,
            address,
            own_address: address.to_string(),
        });
        shared.scope.spawn("request-plane-listener", listen(shared.clone(), listener));
        Ok(Self { shared })
    }

    /// Where others reach this plane.
    pub fn address(&self) -> SocketAddr {
        self.shared.address
    }

    /// Serves `path` until the guard is dropped. A second mount of a path replaces the first.
    pub fn serve(&self, path: &str, handler: Arc<dyn Handler>) -> ServeGuard {
        ServeGuard::new(&self.shared, path, handler)
    }

    /// Sends a request; resolves when it is accepted. Dropping the future cancels it.
    pub async fn open(&self, target: &Target, request: OutgoingRequest) -> Result<ResponseStream, OpenError> {
        let shared = &self.shared;
        let opened = tokio::time::Instant::now();
        let patience = shared.config.accept_timeout + Duration::from_secs(request.payload.len() as u64 >> 20);
        let OutgoingRequest { id, payload, time_left, metadata } = request;
        let request = Request { id, path: target.path.as_str().into(), time_left, metadata, payload };
        let mut stream = if shared.config.local_shortcut && target.address == shared.own_address {
            let handler = shared.paths.find(&target.path)?;
            shared.local.open(&handler, request)?
        } else {
            let link = shared.peers.get(shared, &target.address).await?;
            let inbox = Arc::new(Inbox::default());
            let stream = link.open(request, inbox.clone())?;
            ResponseStream::remote(link, stream, inbox)
        };
        let accepted = tokio::time::timeout(patience, stream.accepted()).await;
        accepted
            .unwrap_or_else(|_| Err(OpenError::Unavailable(format!("not accepted within {patience:?}"))))?;
        let metrics = &shared.metrics;
        metrics.send_seconds.observe(opened.elapsed().as_secs_f64());
        stream.observe_first_item(opened, metrics.first_item_seconds.clone());
        Ok(stream)
    }

    /// Tells all peers to send no more requests here. Ones that come are still served, until
    /// [`RequestPlane::stop_admitting`].
    pub fn go_away(&self) {
        for link in self.shared.links() {
            link.go_away(None, false);
        }
    }

    /// Refuses all further requests as unavailable; running ones go on.
    pub fn stop_admitting(&self) {
        self.shared.paths.stop_admitting();
    }

    /// Open streams, asking and serving. One within the process counts once.
    pub fn streams(&self) -> usize {
        usize::try_from(self.shared.streams.load(Ordering::Relaxed)).unwrap_or(0)
    }

    /// Open connections.
    pub fn connections(&self) -> usize {
        self.shared.links.lock().len()
    }
}

async fn listen(shared: Arc<Shared>, listener: TcpListener) {
    loop {
        let accepted = tokio::select! {
            () = shared.scope.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(_) if shared.links.lock().len() >= shared.config.max_connections => {
                shared.metrics.connection_bound.inc();
            }
            Ok((stream, _)) => {
                // A socket that is gone already is of no concern.
                let _ = start(&shared, stream, Role::Acceptor, None);
            }
            Err(error) => {
                shared.metrics.accept_backoffs.inc();
                tracing::warn!("accepting a request plane connection failed: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn advertised(config: &RequestPlaneConfig, bound: SocketAddr) -> Result<SocketAddr, PlaneError> {
    if let Some(host) = &config.advertised_host {
        let fail = |reason: String| PlaneError::AdvertisedHost { host: host.clone(), reason };
        let mut found = tokio::net::lookup_host((host.as_str(), bound.port()))
            .await
            .map_err(|error| fail(error.to_string()))?;
        return found.next().ok_or_else(|| fail("the name has no addresses".to_owned()));
    }
    if !bound.ip().is_unspecified() {
        return Ok(bound);
    }
    Ok(SocketAddr::new(routed().unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST)), bound.port()))
}

/// The address that this host's packets to the outside carry. Connecting a datagram socket sends nothing.
fn routed() -> Option<IpAddr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    // Reserved for documentation: nobody is there.
    socket.connect((Ipv4Addr::new(192, 0, 2, 1), 9)).ok()?;
    socket.local_addr().ok().map(|address| address.ip()).filter(|ip| !ip.is_unspecified())
}
