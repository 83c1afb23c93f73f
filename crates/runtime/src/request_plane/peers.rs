//! Connections to others, opened on demand, one each.

use std::{collections::HashMap, sync::Arc, time::Duration};

use dynamo_wire::Role;
use parking_lot::Mutex;
use tokio::{
    net::TcpStream,
    sync::oneshot,
    time::{Instant, timeout},
};

use super::{StreamError, driver::drive, link::Link, plane::Shared};

/// Addresses remembered. Discovery gives them, so there are as many as workers; ones without a connection are
/// forgotten past this.
const MAX_PEERS: usize = 4096;
/// After a failed dial, requests fail at once for this long (so that they go elsewhere), doubling to the longest.
const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const LONGEST_BACKOFF: Duration = Duration::from_secs(1);
/// Bytes not yet sent that the kernel takes: enough to keep a connection busy, and little for a small item to wait
/// behind (about 0.1 ms at 10 Gb/s).
const NOTSENT_LOWAT: u32 = 128 * 1024;

#[derive(Default)]
struct Peer {
    link: Mutex<Option<Arc<Link>>>,
    /// Held while dialling: others that ask meanwhile wait for the outcome.
    dial: tokio::sync::Mutex<Failures>,
}

#[derive(Default)]
struct Failures {
    count: u32,
    until: Option<Instant>,
    reason: String,
}

#[derive(Default)]
pub(super) struct Peers {
    known: Mutex<HashMap<String, Arc<Peer>>>,
}

impl Peer {
    fn live(&self) -> Option<Arc<Link>> {
        let mut link = self.link.lock();
        if link.as_ref().is_some_and(|link| link.is_closed()) {
            *link = None;
        }
        link.clone()
    }
}

impl Peers {
    /// The connection to `address`, dialled if there is none.
    pub(super) async fn get(&self, shared: &Arc<Shared>, address: &str) -> Result<Arc<Link>, StreamError> {
        let peer = self.peer(shared, address)?;
        if let Some(link) = peer.live() {
            return Ok(link);
        }
        let mut failures = peer.dial.lock().await;
        if let Some(link) = peer.live() {
            return Ok(link);
        }
        if failures.until.is_some_and(|until| Instant::now() < until) {
            return Err(StreamError::Unavailable(failures.reason.clone()));
        }
        match dial(shared, address).await {
            Ok(link) => {
                *failures = Failures::default();
                *peer.link.lock() = Some(link.clone());
                Ok(link)
            }
            Err(reason) => {
                shared.metrics.errors.inc();
                let backoff = FIRST_BACKOFF.saturating_mul(1 << failures.count.min(10)).min(LONGEST_BACKOFF);
                failures.count += 1;
                failures.until = Some(Instant::now() + backoff);
                failures.reason = format!("cannot connect to {address}: {reason}");
                Err(StreamError::Unavailable(failures.reason.clone()))
            }
        }
    }

    fn peer(&self, shared: &Shared, address: &str) -> Result<Arc<Peer>, StreamError> {
        let mut known = self.known.lock();
        if let Some(peer) = known.get(address) {
            return Ok(peer.clone());
        }
        if known.len() >= MAX_PEERS {
            known.retain(|_, peer| Arc::strong_count(peer) > 1 || peer.live().is_some());
            if known.len() >= MAX_PEERS {
                shared.metrics.connection_bound.inc();
                return Err(StreamError::Overloaded(
                    "connected to as many processes as are allowed".to_owned(),
                ));
            }
        }
        let peer = Arc::<Peer>::default();
        known.insert(address.to_owned(), peer.clone());
        Ok(peer)
    }
}

/// Ends a connection whose dialler has given up before it was established.
struct Unless(Option<Arc<Link>>);

impl Drop for Unless {
    fn drop(&mut self) {
        if let Some(link) = &self.0 {
            link.break_off("closed before it was established");
        }
    }
}

async fn dial(shared: &Arc<Shared>, address: &str) -> Result<Arc<Link>, String> {
    let connect = async {
        let stream = TcpStream::connect(address).await.map_err(|error| error.to_string())?;
        let (established, wait) = oneshot::channel();
        let link =
            start(shared, stream, Role::Dialer, Some(established)).map_err(|error| error.to_string())?;
        let mut unless = Unless(Some(link));
        wait.await.map_err(|_| "the peer closed the connection, or speaks another protocol".to_owned())?;
        Ok(unless.0.take())
    };
    match timeout(shared.config.connect_timeout, connect).await {
        Ok(Ok(Some(link))) => Ok(link),
        Ok(Ok(None)) => Err("closed".to_owned()),
        Ok(Err(reason)) => Err(reason),
        Err(_) => Err(format!("no answer in {:?}", shared.config.connect_timeout)),
    }
}

/// Runs the protocol on a connected socket.
pub(super) fn start(
    shared: &Arc<Shared>,
    stream: TcpStream,
    role: Role,
    established: Option<oneshot::Sender<()>>,
) -> std::io::Result<Arc<Link>> {
    stream.set_nodelay(true)?;
    #[cfg(any(target_os = "linux", target_os = "android"))]
    socket2::SockRef::from(&stream).set_tcp_notsent_lowat(NOTSENT_LOWAT)?;
    let (read, write) = stream.into_split();
    let link = Link::new(shared.clone(), write, role, established);
    shared.scope.spawn("request-plane-connection", drive(link.clone(), read));
    Ok(link)
}
