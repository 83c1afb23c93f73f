use super::super::drop_oldest::DropOldest;
use super::super::envelope::Arrival;
use super::super::inbox::Inbox;
use super::super::{EventPlaneError, PublishError};
use super::desired::{Desired, Publisher, Subscription};
use super::sockets;
use crate::metrics::IntCounter;
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::oneshot;

/// Events on their way to the thread, of all publishers of a plane: what a burst may be ahead of it.
const MAX_OUTGOING: usize = 65_536;
/// And their bytes: two of the largest, so that one never drives out all others.
const MAX_OUTGOING_BYTES: usize = 2 * super::super::frames::MAX_PAYLOAD;

/// Holds the thread of the sockets; it ends when this is dropped or [closed](Self::close).
pub(super) struct Reactor {
    shared: Arc<Shared>,
}

/// What the thread and its handles share.
pub(super) struct Shared {
    pub(super) desired: Mutex<Desired>,
    /// Events with the id of their publisher.
    pub(super) outgoing: Mutex<DropOldest<(u64, Arrival)>>,
    overflow: IntCounter,
    /// As in `desired`, for publishers, which are not to wait while a socket is made.
    closed: AtomicBool,
    /// One byte here ends the thread's wait.
    wake: UnixStream,
    /// A byte is on its way: another would say nothing new.
    pub(super) awake: AtomicBool,
}

impl Reactor {
    /// Starts the thread. The receiver resolves when it has ended, all sockets closed.
    pub(super) fn start(
        io_threads: i32,
        overflow: IntCounter,
    ) -> Result<(Self, oneshot::Receiver<()>), EventPlaneError> {
        let failed = |error: std::io::Error| EventPlaneError::Start(error.to_string());
        let (wake, woken) = UnixStream::pair().map_err(failed)?;
        wake.set_nonblocking(true).map_err(failed)?;
        woken.set_nonblocking(true).map_err(failed)?;
        let context = zmq::Context::new();
        context.set_io_threads(io_threads).map_err(|error| EventPlaneError::Start(error.to_string()))?;
        let shared = Arc::new(Shared {
            desired: Mutex::default(),
            outgoing: Mutex::new(DropOldest::new(MAX_OUTGOING, MAX_OUTGOING_BYTES)),
            overflow,
            closed: AtomicBool::new(false),
            wake,
            awake: AtomicBool::new(false),
        });
        let (ended, end) = oneshot::channel();
        let of_thread = shared.clone();
        std::thread::Builder::new()
            .name("event-sockets".to_owned())
            .spawn(move || {
                sockets::run(&of_thread, context, woken);
                drop(ended);
            })
            .map_err(failed)?;
        Ok((Self { shared }, end))
    }

    /// Binds a publisher to a free port of `host`.
    pub(super) async fn bind(self: &Arc<Self>, host: IpAddr) -> Result<Binding, EventPlaneError> {
        let (reply, bound) = oneshot::channel();
        let id = self.shared.want(|desired| {
            let id = desired.new_id();
            desired.publishers.insert(id, Publisher { host, reply: Some(reply) });
            id
        })?;
        // From here on a dropped future takes the socket back.
        let mut binding = Binding { reactor: self.clone(), id, address: String::new() };
        binding.address = bound
            .await
            .map_err(|_| EventPlaneError::Closed)?
            .map_err(|reason| EventPlaneError::Bind { host, reason })?;
        Ok(binding)
    }

    /// Makes a socket that is subscribed to the inbox's topic and connected to nobody yet.
    pub(super) async fn subscribe(
        self: &Arc<Self>,
        inbox: Arc<Inbox>,
    ) -> Result<Connections, EventPlaneError> {
        let (reply, made) = oneshot::channel();
        let id = self.shared.want(|desired| {
            let id = desired.new_id();
            let subscription = Subscription { inbox, addresses: BTreeSet::new(), reply: Some(reply) };
            desired.subscriptions.insert(id, subscription);
            id
        })?;
        let connections = Connections { reactor: self.clone(), id };
        made.await.map_err(|_| EventPlaneError::Closed)?.map_err(EventPlaneError::Start)?;
        Ok(connections)
    }

    /// Sends what waits, then closes all sockets.
    pub(super) fn close(&self) {
        self.shared.closed.store(true, Ordering::Relaxed);
        self.shared.change(|desired| desired.closed = true);
    }
}

impl Drop for Reactor {
    fn drop(&mut self) {
        self.close();
    }
}

impl Shared {
    fn change<T>(&self, change: impl FnOnce(&mut Desired) -> T) -> T {
        let mut desired = self.desired.lock();
        let result = change(&mut desired);
        desired.version += 1;
        drop(desired);
        self.wake();
        result
    }

    fn want<T>(&self, change: impl FnOnce(&mut Desired) -> T) -> Result<T, EventPlaneError> {
        self.change(|desired| if desired.closed { Err(EventPlaneError::Closed) } else { Ok(change(desired)) })
    }

    fn wake(&self) {
        if !self.awake.swap(true, Ordering::SeqCst) {
            // Full means that a byte is there; a closed end, that the thread is gone.
            let _ = (&self.wake).write(&[0]);
        }
    }
}

/// A bound PUB socket. Dropping it closes the socket once what waits has been sent.
pub(super) struct Binding {
    reactor: Arc<Reactor>,
    id: u64,
    address: String,
}

impl Binding {
    /// `tcp://ip:port`.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    pub(super) fn send(&self, arrival: Arrival) -> Result<(), PublishError> {
        let shared = &self.reactor.shared;
        if shared.closed.load(Ordering::Relaxed) {
            return Err(PublishError::Closed);
        }
        let size = arrival.payload.len();
        let dropped = shared.outgoing.lock().push((self.id, arrival), size);
        if dropped > 0 {
            shared.overflow.inc_by(dropped as u64);
        }
        shared.wake();
        Ok(())
    }
}

impl Drop for Binding {
    fn drop(&mut self) {
        self.reactor.shared.change(|desired| desired.publishers.remove(&self.id));
    }
}

/// A SUB socket. Dropping it closes the socket.
pub(super) struct Connections {
    reactor: Arc<Reactor>,
    id: u64,
}

impl Connections {
    /// Connects to these addresses, and to no others.
    pub(super) fn set(&self, addresses: BTreeSet<String>) {
        self.reactor.shared.change(|desired| {
            if let Some(subscription) = desired.subscriptions.get_mut(&self.id) {
                subscription.addresses = addresses;
            }
        });
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        self.reactor.shared.change(|desired| desired.subscriptions.remove(&self.id));
    }
}
