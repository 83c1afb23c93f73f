//! One TCP connection: the protocol's state behind a lock, and who writes.

use std::{
    collections::HashSet,
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Instant,
};

use bytes::Bytes;
use dynamo_wire::{
    CancelKind, CancelReason, Connection, Failure, FailureCode, Message, Pushed, Request, Role, StreamId,
};
use futures_util::task::AtomicWaker;
use parking_lot::Mutex;
use tokio::{net::tcp::OwnedWriteHalf, sync::oneshot};

use super::{StreamError, cancel::Serving, inbox::Inbox, plane::Shared};

/// Writes in a row before others (the socket's reading side, a thread that only came to flush) get their turn.
const WRITE_ROUNDS: usize = 2;
/// Paths a peer may name as gone; beyond it a request finds out by asking.
const MAX_GONE: usize = 1024;
/// Items up to this length are copied under the lock, longer ones before it is taken.
const COPY_UNDER_LOCK: usize = 8 * 1024;

/// What a connection keeps for each of its streams.
pub(super) enum StreamEnd {
    Asking(Arc<Inbox>),
    Serving(Arc<Serving>),
}

/// Who writes to the socket. There is one at a time; whoever finds another leaves, since that one looks again before
/// it stops.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Writer {
    Nobody,
    Somebody,
    /// The socket is full, or there is much to write: the connection's task goes on.
    Driver,
}

pub(super) struct Core {
    pub(super) wire: Connection<StreamEnd>,
    writer: Writer,
    pub(super) closed: bool,
    /// Ends the connection's task.
    pub(super) broken: Option<&'static str>,
    /// When the connection's task wakes by itself.
    pub(super) armed: Instant,
    /// Streams cancelled by a push: told by the connection's task, since the pusher may hold locks of its own.
    pub(super) overflowed: Vec<Arc<Serving>>,
    pub(super) established: Option<oneshot::Sender<()>>,
    gone: HashSet<Box<str>>,
    counted_streams: usize,
    counted_waiting: usize,
}

#[derive(Default)]
struct Out {
    bytes: Vec<u8>,
    written: usize,
    roomy: Vec<Waker>,
}

pub(super) struct Link {
    pub(super) number: u64,
    pub(super) shared: Arc<Shared>,
    core: Mutex<Core>,
    /// Held by the current writer alone.
    out: Mutex<Out>,
    socket: OwnedWriteHalf,
    /// Wakes the connection's task.
    pub(super) kick: AtomicWaker,
    /// Bytes that readers took and that the protocol has not been told of.
    taken: AtomicU64,
    going_away: AtomicBool,
}

pub(super) enum Wrote {
    All,
    More,
    Full,
}

impl Link {
    pub(super) fn new(
        shared: Arc<Shared>,
        socket: OwnedWriteHalf,
        role: Role,
        established: Option<oneshot::Sender<()>>,
    ) -> Arc<Self> {
        let now = now();
        let wire = Connection::new(role, shared.config.wire.clone(), now);
        let core = Core {
            armed: wire.next_timeout(),
            wire,
            writer: Writer::Nobody,
            closed: false,
            broken: None,
            overflowed: Vec::new(),
            established,
            gone: HashSet::new(),
            counted_streams: 0,
            counted_waiting: 0,
        };
        let link = Arc::new(Self {
            number: shared.next_link.fetch_add(1, Ordering::Relaxed),
            core: Mutex::new(core),
            out: Mutex::default(),
            socket,
            kick: AtomicWaker::new(),
            taken: AtomicU64::new(0),
            going_away: AtomicBool::new(false),
            shared,
        });
        link.shared.links.lock().insert(link.number, link.clone());
        link.shared.metrics.connections.inc();
        link
    }

    pub(super) fn core(&self) -> parking_lot::MutexGuard<'_, Core> {
        self.core.lock()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.core.lock().closed
    }

    pub(super) fn open(&self, request: Request, inbox: Arc<Inbox>) -> Result<StreamId, StreamError> {
        if self.going_away.load(Ordering::Acquire) {
            return Err(StreamError::Unavailable("the worker is going away".to_owned()));
        }
        let mut core = self.core.lock();
        if core.closed {
            return Err(StreamError::Disconnected);
        }
        if !core.gone.is_empty() && core.gone.contains(&*request.path) {
            return Err(StreamError::Unavailable(format!("{} has gone away", request.path)));
        }
        let opened = core.wire.open(now(), request, false, StreamEnd::Asking(inbox));
        self.count(&mut core);
        drop(core);
        match opened {
            Ok(id) => {
                self.flush();
                Ok(id)
            }
            Err(refused) => {
                if refused == dynamo_wire::OpenRefused::TooManyStreams {
                    self.shared.metrics.stream_bound.inc();
                }
                Err(refused.into())
            }
        }
    }

    /// Whether somebody still listens. Wakes nobody.
    #[inline]
    pub(super) fn push(&self, id: StreamId, item: &[u8], serving: &Arc<Serving>) -> bool {
        if item.len() > COPY_UNDER_LOCK {
            return self.push_message(id, Bytes::copy_from_slice(item), serving);
        }
        let mut core = self.core.lock();
        let pushed = core.wire.push_item(id, item);
        pushed == Pushed::Direct || self.pushed(&mut core, id, pushed, serving)
    }

    pub(super) fn push_message(&self, id: StreamId, item: Bytes, serving: &Arc<Serving>) -> bool {
        let mut core = self.core.lock();
        let pushed = core.wire.push_message(id, item);
        self.pushed(&mut core, id, pushed, serving)
    }

    fn pushed(&self, core: &mut Core, id: StreamId, pushed: Pushed, serving: &Arc<Serving>) -> bool {
        match pushed {
            Pushed::Direct => true,
            Pushed::Queued => {
                self.count(core);
                true
            }
            Pushed::Closed => false,
            Pushed::TooLarge => {
                core.wire.fail(
                    id,
                    Failure::new(FailureCode::TooLarge, "an item was longer than the reader accepts"),
                );
                serving.mark();
                false
            }
            Pushed::SlowReader => {
                self.shared.metrics.slow_readers.inc();
                serving.mark();
                core.overflowed.push(serving.clone());
                self.count(core);
                self.kick.wake();
                false
            }
        }
    }

    /// Whether nothing of the stream waits for credit; if not, its room waker is called later.
    pub(super) fn has_room(&self, id: StreamId) -> bool {
        self.core.lock().wire.has_room(id)
    }

    /// Many answers may end in one step: their ends leave with its flush, or else with the connection's task, and not
    /// with a write each.
    pub(super) fn finish(&self, id: StreamId) {
        self.core.lock().wire.finish(id);
        self.kick.wake();
    }

    pub(super) fn fail(&self, id: StreamId, error: StreamError) {
        self.core.lock().wire.fail(id, error.into());
        self.kick.wake();
    }

    /// Whether the stream was still open.
    pub(super) fn cancel(&self, id: StreamId, kind: CancelKind, reason: CancelReason) -> bool {
        let data = self.core.lock().wire.cancel(id, kind, reason);
        self.flush();
        data.is_some()
    }

    /// A stream's reader took small items: `total` now, `stream` since it last told the stream's part.
    pub(super) fn took(&self, id: StreamId, total: u32, stream: &mut u32) {
        *stream += total;
        let config = &self.shared.config.wire;
        let taken = self.taken.fetch_add(u64::from(total), Ordering::Relaxed) + u64::from(total);
        let stream_due = *stream >= config.stream_credit / 8;
        if stream_due || taken >= u64::from(config.connection_credit / 8) {
            let mut core = self.core.lock();
            if stream_due {
                core.wire.consumed(id, std::mem::take(stream));
            }
            core.wire.consumed_connection(self.taken.swap(0, Ordering::Relaxed));
            drop(core);
            self.flush();
        }
    }

    /// What readers took since the protocol was last told.
    pub(super) fn collect_taken(&self, core: &mut Core) {
        if self.taken.load(Ordering::Relaxed) > 0 {
            core.wire.consumed_connection(self.taken.swap(0, Ordering::Relaxed));
        }
    }

    pub(super) fn took_message(&self, id: StreamId, message: &Message) {
        self.core.lock().wire.take_message(id, message);
        self.flush();
    }

    pub(super) fn go_away(&self, path: Option<&str>, back: bool) {
        self.core.lock().wire.go_away(path, back);
        self.flush();
    }

    /// Notes that the peer as a whole goes away, or is back.
    pub(super) fn peer_goes_away(&self, back: bool) {
        self.going_away.store(!back, Ordering::Release);
    }

    /// Ends the connection.
    pub(super) fn break_off(&self, why: &'static str) {
        self.core.lock().broken = Some(why);
        self.kick.wake();
    }

    /// Writes what there is, if nobody else does. Called from any thread; never blocks.
    pub(super) fn flush(&self) {
        match self.write(false) {
            Ok(Wrote::All) => {}
            Ok(Wrote::More | Wrote::Full) => self.kick.wake(),
            Err(_) => self.break_off("writing failed"),
        }
    }

    /// The same from the connection's task, which alone waits for the socket. Ready with whether there is more.
    pub(super) fn poll_write(&self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        loop {
            match self.write(true)? {
                Wrote::All => return Poll::Ready(Ok(false)),
                Wrote::More => return Poll::Ready(Ok(true)),
                Wrote::Full => std::task::ready!(self.socket.as_ref().poll_write_ready(cx))?,
            }
        }
    }

    fn write(&self, driver: bool) -> io::Result<Wrote> {
        let mut core = self.core.lock();
        match core.writer {
            Writer::Nobody if !core.wire.has_output() => {
                if !driver && core.wire.next_timeout() < core.armed {
                    self.kick.wake();
                }
                return Ok(Wrote::All);
            }
            Writer::Somebody => return Ok(Wrote::All),
            Writer::Driver if !driver => return Ok(Wrote::All),
            Writer::Nobody | Writer::Driver => core.writer = Writer::Somebody,
        }
        let mut out = self.out.lock();
        let result = self.write_rounds(&mut core, &mut out);
        let more = matches!(result, Ok(Wrote::More | Wrote::Full)) || result.is_err();
        core.writer = if more { Writer::Driver } else { Writer::Nobody };
        if !driver && core.wire.next_timeout() < core.armed {
            self.kick.wake();
        }
        drop(core);
        for waker in out.roomy.drain(..) {
            waker.wake();
        }
        result
    }

    fn write_rounds(&self, core: &mut parking_lot::MutexGuard<'_, Core>, out: &mut Out) -> io::Result<Wrote> {
        for _ in 0..WRITE_ROUNDS {
            if out.written == out.bytes.len() {
                self.refill(core, out);
                if out.bytes.is_empty() {
                    return Ok(Wrote::All);
                }
            }
            // The system call is made without the lock: an engine that pushes must not wait for it.
            let wrote =
                parking_lot::MutexGuard::unlocked(core, || self.socket.try_write(&out.bytes[out.written..]));
            match wrote {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    out.written += count;
                    self.shared.metrics.writes.inc();
                    self.shared.metrics.bytes_sent.inc_by(count as u64);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Wrote::Full),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        let more = out.written < out.bytes.len() || core.wire.has_output();
        Ok(if more { Wrote::More } else { Wrote::All })
    }

    fn refill(&self, core: &mut Core, out: &mut Out) {
        core.wire.take_output(now(), &mut out.bytes);
        out.written = 0;
        while let Some(end) = core.wire.pop_roomy() {
            if let StreamEnd::Serving(serving) = end {
                out.roomy.extend(serving.room.take());
            }
        }
        self.count(core);
        self.let_go(core);
    }

    /// Frees long messages that are done with elsewhere: giving 32 MiB back to the system takes milliseconds.
    pub(super) fn let_go(&self, core: &mut Core) {
        if let Some(spent) = core.wire.take_spent() {
            self.shared.scope.spawn_blocking("request-plane-free", move || drop(spent));
        }
    }

    /// Brings the gauges up to what the protocol holds.
    pub(super) fn count(&self, core: &mut Core) {
        let (streams, waiting) = (core.wire.streams(), core.wire.waiting());
        if streams != core.counted_streams {
            let change = streams as i64 - core.counted_streams as i64;
            core.counted_streams = streams;
            self.shared.count_streams(change);
        }
        if waiting != core.counted_waiting {
            self.shared.metrics.buffered.add(waiting as i64 - core.counted_waiting as i64);
            core.counted_waiting = waiting;
        }
    }

    /// Ends all streams: the connection is no more.
    pub(super) fn close(&self, reason: CancelReason) {
        let mut ends = Vec::new();
        {
            let mut core = self.core.lock();
            core.closed = true;
            core.established = None;
            core.wire.close(|end, _| ends.push(end));
            self.count(&mut core);
            self.let_go(&mut core);
        }
        // Responders and streams keep this link, and with it the socket: the peer must know now.
        let _ = socket2::SockRef::from(self.socket.as_ref()).shutdown(std::net::Shutdown::Both);
        self.shared.links.lock().remove(&self.number);
        self.shared.metrics.connections.dec();
        for end in ends {
            match end {
                StreamEnd::Asking(inbox) => {
                    if let Some(waker) = inbox.end(Err(StreamError::Disconnected)) {
                        waker.wake();
                    }
                }
                StreamEnd::Serving(serving) => serving.fire(reason),
            }
        }
    }

    /// Waits until the socket takes more.
    pub(super) async fn writable(&self) -> io::Result<()> {
        self.socket.writable().await
    }
}

impl Core {
    /// Notes that the peer serves a path no more, or again.
    pub(super) fn path_gone(&mut self, path: &str, back: bool) {
        if back {
            self.gone.remove(path);
        } else if self.gone.len() < MAX_GONE {
            self.gone.insert(path.into());
        }
    }
}

/// The clock that tests may pause.
pub(super) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
