//! The thread that holds the sockets.

use super::super::envelope::Arrival;
use super::super::frames::{self, ENVELOPE_ROOM, Encoded, FRAMES, MAX_PAYLOAD, Malformed};
use super::super::inbox::Inbox;
use super::super::payload_arena::PayloadArena;
use super::desired::{Desired, Publisher};
use super::handle::Shared;
use smallvec::SmallVec;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::net::IpAddr;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use zmq::{Context, DONTWAIT, Message, POLLIN, PollItem, SNDMORE, Socket};

/// Messages that libzmq may hold per peer and direction, as the incumbent sets it.
const HIGH_WATER_MARK: i32 = 100_000;
/// How long a closed socket may take to send what it holds, in ms: a local peer needs less, a dead one gets no more.
const LINGER_MS: i32 = 200;
/// Between attempts to reach a publisher, in ms; grows from the first to the second.
const RECONNECT_MS: (i32, i32) = (100, 5_000);
/// A silent peer is asked for a sign of life, and given up after, in ms: the connection is then made anew.
const HEARTBEAT_MS: (i32, i32) = (10_000, 30_000);
/// Messages taken from one queue before the others get their turn.
const TURN: usize = 1024;
/// Sockets that are waited on without allocating: more than a process has but for a frontend of many models.
const FEW_SOCKETS: usize = 32;

struct Sockets {
    context: Context,
    publishers: BTreeMap<u64, Socket>,
    subscriptions: BTreeMap<u64, Subscribed>,
    /// The version of [`Desired`] that these are.
    version: u64,
    frames: [Message; FRAMES],
    arena: PayloadArena,
}

struct Subscribed {
    socket: Socket,
    inbox: Arc<Inbox>,
    connected: BTreeSet<String>,
    /// A defect was logged; further ones are only counted.
    warned: bool,
}

/// Runs until the plane is closed.
pub(super) fn run(shared: &Shared, context: Context, mut woken: UnixStream) {
    let mut sockets = Sockets {
        context,
        publishers: BTreeMap::new(),
        subscriptions: BTreeMap::new(),
        version: 0,
        frames: std::array::from_fn(|_| Message::new()),
        arena: PayloadArena::default(),
    };
    loop {
        // An event is queued before its publisher is dropped. So whoever is missing here has all its events in the queue,
        // and is closed after they were sent.
        let (closed, leaving) = sockets.make(shared);
        let more = sockets.send(shared);
        if !more {
            for id in leaving {
                sockets.publishers.remove(&id);
            }
            if closed {
                break;
            }
        }
        sockets.wait_and_receive(shared, &mut woken, more);
    }
    // Whoever waits for a socket learns that there will be none.
    let mut desired = shared.desired.lock();
    desired.publishers.clear();
    for (_, subscription) in std::mem::take(&mut desired.subscriptions) {
        subscription.inbox.close();
    }
}

impl Sockets {
    /// Makes and connects what is missing and drops subscriptions that are not wanted any more. Returns whether all is to
    /// end, and the publishers that may be closed.
    fn make(&mut self, shared: &Shared) -> (bool, Vec<u64>) {
        let mut desired = shared.desired.lock();
        if desired.version != self.version {
            self.version = desired.version;
            for (&id, publisher) in &mut desired.publishers {
                self.make_publisher(id, publisher);
            }
            self.make_subscriptions(&mut desired);
        }
        let leaving =
            self.publishers.keys().filter(|id| !desired.publishers.contains_key(id)).copied().collect();
        (desired.closed, leaving)
    }

    fn make_publisher(&mut self, id: u64, publisher: &mut Publisher) {
        let Some(reply) = publisher.reply.take() else { return };
        let result = bind(&self.context, publisher.host).map(|(socket, address)| {
            self.publishers.insert(id, socket);
            address
        });
        // Whoever does not wait any more has dropped its binding too.
        let _ = reply.send(result.map_err(|error| error.to_string()));
    }

    fn make_subscriptions(&mut self, desired: &mut Desired) {
        self.subscriptions.retain(|id, _| desired.subscriptions.contains_key(id));
        for (&id, wanted) in &mut desired.subscriptions {
            if let Some(reply) = wanted.reply.take() {
                let result = subscribed(&self.context, &wanted.inbox).map(|subscription| {
                    self.subscriptions.insert(id, subscription);
                });
                let _ = reply.send(result.map_err(|error| error.to_string()));
            }
            if let Some(subscription) = self.subscriptions.get_mut(&id) {
                subscription.connect(&wanted.addresses);
            }
        }
    }

    /// Sends a turn's worth; returns whether more waits.
    fn send(&mut self, shared: &Shared) -> bool {
        for _ in 0..TURN {
            let Some((id, arrival)) = shared.outgoing.lock().pop() else { return false };
            // Its socket is there: it was bound before it could publish, and is closed after its events were sent.
            let Some(socket) = self.publishers.get(&id) else { continue };
            if let Err(error) = send(socket, &arrival) {
                tracing::warn!(topic = %arrival.envelope.topic, error, "event not sent");
            }
        }
        true
    }

    fn wait_and_receive(&mut self, shared: &Shared, woken: &mut UnixStream, more: bool) {
        let mut items = SmallVec::<[PollItem<'_>; FEW_SOCKETS]>::new();
        items.push(PollItem::from_fd(woken.as_raw_fd(), POLLIN));
        items
            .extend(self.subscriptions.values().map(|subscription| subscription.socket.as_poll_item(POLLIN)));
        // Nothing is ever read from a PUB socket, but waiting on it lets libzmq see subscribers come and go.
        items.extend(self.publishers.values().map(|socket| socket.as_poll_item(POLLIN)));
        let timeout_ms = if more { 0 } else { -1 };
        if let Err(error) = zmq::poll(&mut items, timeout_ms)
            && error != zmq::Error::EINTR
        {
            tracing::error!(%error, "waiting for events failed");
            return;
        }
        let was_woken = items[0].is_readable();
        let readable: SmallVec<[bool; FEW_SOCKETS]> = items[1..].iter().map(PollItem::is_readable).collect();
        drop(items);
        if was_woken {
            let mut bytes = [0; 64];
            while woken.read(&mut bytes).is_ok_and(|read| read == bytes.len()) {}
            // Before the queues are looked at: what is added later writes another byte.
            shared.awake.store(false, Ordering::SeqCst);
        }
        for (subscription, readable) in self.subscriptions.values_mut().zip(readable) {
            if readable {
                subscription.receive(&mut self.frames, &mut self.arena);
            }
        }
    }
}

impl Subscribed {
    fn connect(&mut self, wanted: &BTreeSet<String>) {
        for address in self.connected.difference(wanted) {
            // Fails for an address that could not be connected to in the first place.
            let _ = self.socket.disconnect(address);
        }
        for address in wanted.difference(&self.connected) {
            if let Err(error) = connect(&self.socket, address) {
                tracing::warn!(topic = %self.inbox.topic, address, %error, "cannot subscribe to this publisher");
            }
        }
        self.connected.clone_from(wanted);
    }

    /// Takes a turn's worth.
    fn receive(&mut self, frames: &mut [Message; FRAMES], arena: &mut PayloadArena) {
        for _ in 0..TURN {
            match receive(&self.socket, frames) {
                Ok(count) => {
                    let parts: [&[u8]; FRAMES] = std::array::from_fn(|index| &*frames[index]);
                    let parts = if count <= FRAMES { &parts[..count] } else { &[][..] };
                    match frames::decode(parts, &self.inbox.topic, arena) {
                        Ok(arrival) => self.inbox.push(arrival),
                        Err(defect) => {
                            self.inbox.metrics.malformed(defect);
                            self.warn_once(defect);
                        }
                    }
                }
                Err(zmq::Error::EAGAIN | zmq::Error::EINTR) => return,
                Err(error) => {
                    tracing::error!(topic = %self.inbox.topic, %error, "receiving events failed");
                    return;
                }
            }
        }
    }
}

impl Subscribed {
    /// A publisher that keeps sending what is malformed must not fill the log too. Another topic is no defect.
    fn warn_once(&mut self, defect: Malformed) {
        if defect != Malformed::ForeignTopic && !std::mem::replace(&mut self.warned, true) {
            tracing::warn!(topic = %self.inbox.topic, %defect, "event discarded; further ones are only counted");
        }
    }
}

fn bind(context: &Context, host: IpAddr) -> zmq::Result<(Socket, String)> {
    let socket = context.socket(zmq::PUB)?;
    socket.set_sndhwm(HIGH_WATER_MARK)?;
    socket.set_linger(LINGER_MS)?;
    match host {
        IpAddr::V4(host) => socket.bind(&format!("tcp://{host}:*"))?,
        IpAddr::V6(host) => {
            socket.set_ipv6(true)?;
            socket.bind(&format!("tcp://[{host}]:*"))?;
        }
    }
    let address = socket.get_last_endpoint()?.map_err(|_| zmq::Error::EINVAL)?;
    Ok((socket, address))
}

fn subscribed(context: &Context, inbox: &Arc<Inbox>) -> zmq::Result<Subscribed> {
    let socket = context.socket(zmq::SUB)?;
    socket.set_rcvhwm(HIGH_WATER_MARK)?;
    socket.set_linger(0)?;
    socket.set_maxmsgsize((MAX_PAYLOAD + ENVELOPE_ROOM) as i64)?;
    socket.set_reconnect_ivl(RECONNECT_MS.0)?;
    socket.set_reconnect_ivl_max(RECONNECT_MS.1)?;
    socket.set_heartbeat_ivl(HEARTBEAT_MS.0)?;
    socket.set_heartbeat_timeout(HEARTBEAT_MS.1)?;
    socket.set_subscribe(inbox.topic.as_bytes())?;
    Ok(Subscribed { socket, inbox: inbox.clone(), connected: BTreeSet::new(), warned: false })
}

/// Only TCP: a record must not make us open another kind of socket.
fn connect(socket: &Socket, address: &str) -> zmq::Result<()> {
    let host = address.strip_prefix("tcp://").ok_or(zmq::Error::EPROTONOSUPPORT)?;
    socket.set_ipv6(host.starts_with('['))?;
    socket.connect(address)
}

fn send(socket: &Socket, arrival: &Arrival) -> Result<(), String> {
    let encoded = frames::encode(&arrival.envelope, &arrival.payload).map_err(|error| error.to_string())?;
    let Encoded { publisher, sequence, body } = encoded;
    let topic = arrival.envelope.topic.as_bytes();
    let send_all = || {
        socket.send(topic, SNDMORE | DONTWAIT)?;
        socket.send(&publisher[..], SNDMORE | DONTWAIT)?;
        socket.send(&sequence[..], SNDMORE | DONTWAIT)?;
        socket.send(body, DONTWAIT)
    };
    send_all().map_err(|error: zmq::Error| error.to_string())
}

/// Receives one message; returns how many frames it had. Only the first ones are kept.
fn receive(socket: &Socket, frames: &mut [Message; FRAMES]) -> zmq::Result<usize> {
    let mut count = 0;
    let mut surplus = Message::new();
    loop {
        let frame = frames.get_mut(count).unwrap_or(&mut surplus);
        socket.recv(frame, DONTWAIT)?;
        count += 1;
        let kept = frames.get(count - 1).unwrap_or(&surplus);
        if !kept.get_more() {
            return Ok(count);
        }
    }
}
