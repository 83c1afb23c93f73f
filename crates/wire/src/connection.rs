//! The state machine of one connection.

mod credit;
mod input;
mod output;
mod receive;
mod timeout;

use std::{collections::VecDeque, time::Instant};

use bytes::Bytes;
use rustc_hash::FxHashMap;

use crate::{
    CancelKind, CancelReason, Config, Failure, FailureCode, Message, Request, Role, StreamId,
    frame::{self, ItemsFrames},
    hello::PeerLimits,
    item_queue::ITEM_OVERHEAD,
    stream::{Ending, OutgoingRequest, Stream},
    timers::{TimerKind, Timers},
};

/// Longer items travel in frames of their own, in turn with other streams.
const SMALL_ITEM: usize = 8 * 1024;
/// Items that may be waiting for the socket in the shared buffer; beyond it they wait in their streams, which take
/// turns.
const ITEMS_LIMIT: usize = 256 * 1024;
/// Path names in a go-away are cut by refusing longer ones; a path is an endpoint's name.
const MAX_PATH: usize = 1024;

/// What the peer does, told while its bytes are read. Calls come in the order of the bytes.
pub trait Events<D> {
    /// A request is here, whole. An error refuses it; otherwise the stream is open, and the caller accepts, answers
    /// or fails it. With `more`, items of the opener follow.
    fn request(&mut self, id: StreamId, request: Request, more: bool) -> Result<D, Failure>;
    /// The peer will answer.
    fn accepted(&mut self, data: &mut D, id: StreamId);
    /// A small item; it costs its length and [`crate::ITEM_OVERHEAD`] of credit until [`Connection::consumed`].
    fn item(&mut self, data: &mut D, id: StreamId, item: &[u8]);
    /// A long item; it holds what it says until [`Connection::take_message`].
    fn message(&mut self, data: &mut D, id: StreamId, message: Message);
    /// The peer's half ended cleanly. If this end opened the stream, it is gone.
    fn ended(&mut self, data: &mut D, id: StreamId);
    /// The stream that this end opened failed, and is gone.
    fn failed(&mut self, data: &mut D, id: StreamId, failure: Failure);
    /// The stream that the peer opened is cancelled; with kill it is gone.
    fn cancelled(&mut self, data: &mut D, id: StreamId, kind: CancelKind, reason: CancelReason);
    /// The peer serves a path (or, without one, anything) no more; or, if `back`, again.
    fn go_away(&mut self, path: Option<&str>, back: bool);
}

/// What became of an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// It leaves with the next output.
    Direct,
    /// It waits in the stream's own buffer.
    Queued,
    /// The stream is gone or its half has ended; the item is dropped.
    Closed,
    /// The stream's buffer was full; the stream is gone, and both ends know why.
    SlowReader,
    /// Longer than the peer accepts; the item is dropped, the stream goes on.
    TooLarge,
}

/// Why no stream was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenRefused {
    /// The peer's hello has not come.
    #[error("the connection is not established")]
    NotEstablished,
    /// The peer's limit of streams.
    #[error("the connection carries as many streams as its peer allows")]
    TooManyStreams,
    /// All stream ids are used up; a new connection has new ones.
    #[error("the connection has used all its stream ids")]
    Exhausted,
    /// Id, path and metadata are too long together.
    #[error("id, path and metadata of the request are longer than 16 KiB")]
    HeadTooLarge,
    /// The payload is too long.
    #[error("the payload is longer than the {max} bytes that the peer accepts")]
    PayloadTooLarge {
        /// Bytes.
        max: u32,
    },
}

/// One end of a connection. `D` is what the caller keeps per stream.
#[derive(Debug)]
pub struct Connection<D> {
    config: Config,
    peer: Option<PeerLimits>,
    streams: FxHashMap<StreamId, Stream<D>>,
    /// Parity of the ids that this end chooses.
    parity: u32,
    next_id: u32,
    last_peer_id: u32,
    ours_open: u32,
    theirs_open: u32,

    hello_sent: bool,
    control: Vec<u8>,
    items: Vec<u8>,
    items_frames: ItemsFrames,
    /// Streams with something to send and credit of their own, in turn.
    ready: VecDeque<StreamId>,
    send_credit: u64,
    /// The front of `ready` waits for the connection's credit.
    credit_blocked: bool,
    /// Bytes in the streams' own buffers.
    waiting: usize,
    windows: VecDeque<StreamId>,
    pong: Option<[u8; 8]>,
    /// Long messages that are done with.
    spent: Vec<Bytes>,
    /// Streams whose buffer has drained and that wanted to know.
    roomy: Vec<StreamId>,

    /// The beginning of a frame whose end has not come.
    partial: Vec<u8>,
    recv_credit: u64,
    recv_pending: u64,
    budget: u64,
    loan_line: VecDeque<StreamId>,

    timers: Timers,
    created: Instant,
    last_input: Instant,
    ping_sent: Option<Instant>,
}

impl<D> Connection<D> {
    /// A fresh connection; its first output is the hello.
    pub fn new(role: Role, config: Config, now: Instant) -> Self {
        let parity = match role {
            Role::Dialer => 1,
            Role::Acceptor => 0,
        };
        Self {
            peer: None,
            streams: FxHashMap::default(),
            parity,
            next_id: if parity == 1 { 1 } else { 2 },
            last_peer_id: 0,
            ours_open: 0,
            theirs_open: 0,
            hello_sent: false,
            control: Vec::new(),
            items: Vec::new(),
            items_frames: ItemsFrames::default(),
            ready: VecDeque::new(),
            send_credit: 0,
            credit_blocked: false,
            waiting: 0,
            windows: VecDeque::new(),
            pong: None,
            spent: Vec::new(),
            roomy: Vec::new(),
            partial: Vec::new(),
            recv_credit: u64::from(config.connection_credit),
            recv_pending: 0,
            budget: config.reassembly_budget,
            loan_line: VecDeque::new(),
            timers: Timers::default(),
            created: now,
            last_input: now,
            ping_sent: None,
            config,
        }
    }

    /// Whether the peer's hello has come.
    pub fn is_established(&self) -> bool {
        self.peer.is_some()
    }

    /// The payload codec agreed on, once established.
    pub fn codec(&self) -> Option<&str> {
        self.peer.as_ref().map(|peer| peer.codec.as_str())
    }

    /// Open streams, both ends' together.
    pub fn streams(&self) -> usize {
        self.streams.len()
    }

    /// Bytes in the streams' own send buffers.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Reassembly budget that is not in use, in bytes.
    pub fn reassembly_left(&self) -> u64 {
        self.budget
    }

    /// What this end may send and what the peer may send by this end's books, in bytes over all streams. At rest both
    /// are the connection's credit.
    pub fn credits(&self) -> (u64, u64) {
        (self.send_credit, self.recv_credit + self.recv_pending)
    }

    /// Timers that run.
    pub fn timers(&self) -> usize {
        self.timers.len()
    }

    /// The caller's data of an open stream.
    pub fn data_mut(&mut self, id: StreamId) -> Option<&mut D> {
        self.streams.get_mut(&id)?.data.as_mut()
    }

    /// Opens a stream. With `more`, items may be pushed on it after the payload, until [`Connection::finish`].
    pub fn open(
        &mut self,
        now: Instant,
        request: Request,
        more: bool,
        data: D,
    ) -> Result<StreamId, OpenRefused> {
        let peer = self.peer.as_ref().ok_or(OpenRefused::NotEstablished)?;
        if self.ours_open >= peer.max_streams {
            return Err(OpenRefused::TooManyStreams);
        }
        if request.payload.len() > peer.max_message as usize {
            return Err(OpenRefused::PayloadTooLarge { max: peer.max_message });
        }
        let head = request.encode_head().ok_or(OpenRefused::HeadTooLarge)?;
        let id = StreamId(self.next_id);
        self.next_id = self.next_id.checked_add(2).ok_or(OpenRefused::Exhausted)?;

        let mut stream = Stream::new(true, peer.stream_credit, self.config.stream_credit);
        stream.data = Some(data);
        stream.send_open = more;
        stream.deadline = request.time_left.and_then(|left| now.checked_add(left));
        if let Some(at) = stream.deadline {
            self.timers.set(at, id, TimerKind::Deadline);
        }
        self.waiting += request.payload.len();
        stream.request = Some(Box::new(OutgoingRequest {
            head: Some(head),
            more,
            long: request.payload.len() >= LONG_TO_FREE,
            payload: request.payload,
            stop: None,
        }));
        stream.in_ready = true;
        self.ready.push_back(id);
        self.streams.insert(id, stream);
        self.ours_open += 1;
        Ok(id)
    }

    /// Tells the peer that its request will be answered. Done by the first item too.
    pub fn accept(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id)
            && !stream.ours
            && !stream.accepted
        {
            stream.accepted = true;
            self.items_frames.put(&mut self.items, id, frame::ENTRY_ACCEPTED, &[]);
        }
    }

    /// Copies an item into the output, or without credit into the stream's own buffer.
    #[inline]
    pub fn push_item(&mut self, id: StreamId, item: &[u8]) -> Pushed {
        let Some(stream) = self.streams.get_mut(&id) else { return Pushed::Closed };
        if !stream.send_open {
            return Pushed::Closed;
        }
        if !stream.accepted && !stream.ours {
            stream.accepted = true;
            self.items_frames.put(&mut self.items, id, frame::ENTRY_ACCEPTED, &[]);
        }
        if item.len() > SMALL_ITEM {
            return self.push_message(id, Bytes::copy_from_slice(item));
        }
        let cost = (item.len() + ITEM_OVERHEAD) as u64;
        if stream.queue.is_empty()
            && stream.request.is_none()
            && stream.send_credit >= cost
            && self.send_credit >= cost
            && self.items.len() < ITEMS_LIMIT
        {
            stream.send_credit -= cost;
            self.send_credit -= cost;
            self.items_frames.put(&mut self.items, id, frame::ENTRY_ITEM, item);
            return Pushed::Direct;
        }
        if !stream.queue.is_empty() && stream.queue.held() + cost as usize > self.config.send_buffer as usize
        {
            return self.overflow(id);
        }
        stream.queue.push(item);
        self.waiting += cost as usize;
        self.mark_ready(id);
        Pushed::Queued
    }

    /// Sends a long item without copying it; a short one is copied.
    pub fn push_message(&mut self, id: StreamId, item: Bytes) -> Pushed {
        if item.len() <= SMALL_ITEM {
            return self.push_item(id, &item);
        }
        let max = self.peer.as_ref().map_or(0, |peer| peer.max_message);
        let Some(stream) = self.streams.get_mut(&id) else { return Pushed::Closed };
        if !stream.send_open {
            return Pushed::Closed;
        }
        if item.len() > max as usize {
            return Pushed::TooLarge;
        }
        if !stream.queue.is_empty() && stream.queue.held() + item.len() > self.config.send_buffer as usize {
            return self.overflow(id);
        }
        let before = stream.queue.held();
        stream.queue.push_message(Message { bytes: item, owed: 0, loaned: false });
        self.waiting += stream.queue.held() - before;
        self.accept(id);
        self.mark_ready(id);
        Pushed::Queued
    }

    /// Ends this end's half after what was pushed. If the peer opened the stream, that ends it.
    pub fn finish(&mut self, id: StreamId) -> bool {
        self.accept(id);
        self.end_half(id, Ending::End)
    }

    /// Fails a stream that the peer opened, after what was pushed. The stream's own end is told nothing.
    pub fn fail(&mut self, id: StreamId, failure: Failure) -> bool {
        match self.streams.get(&id) {
            Some(stream) if !stream.ours => self.end_half(id, Ending::Fail(failure)),
            _ => false,
        }
    }

    /// Cancels a stream that this end opened. With kill it is gone, and its data comes back.
    pub fn cancel(&mut self, id: StreamId, kind: CancelKind, reason: CancelReason) -> Option<D> {
        let stream = self.streams.get(&id).filter(|stream| stream.ours)?;
        let unsent = stream.request.as_ref().is_some_and(|request| request.head.is_some());
        match kind {
            CancelKind::Stop => {
                // Control frames go first, but a cancel must not overtake its own request.
                if !unsent {
                    self.put_cancel(id, 0, reason);
                    return None;
                }
                self.put_cancel_after_request(id, reason);
                None
            }
            CancelKind::Kill => {
                if !unsent {
                    self.put_cancel(id, frame::FLAG_KILL, reason);
                }
                self.remove(id).and_then(|stream| stream.data)
            }
        }
    }

    /// Long messages that have been sent, or given up: to be dropped where the milliseconds that it may take to give
    /// their memory back do no harm.
    pub fn take_spent(&mut self) -> Option<Vec<Bytes>> {
        if self.spent.is_empty() { None } else { Some(std::mem::take(&mut self.spent)) }
    }

    /// Tells the peer that a path (or, without one, anything) is served no more; or, if `back`, again.
    pub fn go_away(&mut self, path: Option<&str>, back: bool) {
        let path = path.unwrap_or_default();
        if path.len() <= MAX_PATH {
            let flags = if back { frame::FLAG_BACK } else { 0 };
            frame::put(&mut self.control, frame::GO_AWAY, flags, 0, path.as_bytes());
        }
    }

    /// Whether a stream that this end pushes on has nothing waiting; if not, [`Connection::pop_roomy`] will name it.
    pub fn has_room(&mut self, id: StreamId) -> bool {
        match self.streams.get_mut(&id) {
            Some(stream) if !stream.queue.is_empty() => {
                stream.wants_room = true;
                false
            }
            _ => true,
        }
    }

    /// A stream whose buffer has drained since [`Connection::has_room`] said no.
    pub fn pop_roomy(&mut self) -> Option<&mut D> {
        while let Some(id) = self.roomy.pop() {
            // Twice: the borrow of a returned value lasts to the end of the function.
            if self.streams.get(&id).is_some_and(|stream| stream.data.is_some()) {
                return self.data_mut(id);
            }
        }
        None
    }

    /// Forgets all streams; the caller tells their owners that the connection is lost.
    pub fn close(&mut self, mut each: impl FnMut(D, bool)) {
        let ids: Vec<StreamId> = self.streams.keys().copied().collect();
        for id in ids {
            if let Some(stream) = self.remove(id)
                && let Some(data) = stream.data
            {
                each(data, stream.ours);
            }
        }
    }

    fn end_half(&mut self, id: StreamId, ending: Ending) -> bool {
        let Some(stream) = self.streams.get_mut(&id) else { return false };
        if !stream.send_open {
            return false;
        }
        stream.send_open = false;
        if !stream.queue.is_empty() || stream.request.is_some() {
            stream.ending = Some(ending);
            self.mark_ready(id);
            return true;
        }
        let ours = stream.ours;
        output::put_ending(&mut self.items_frames, &mut self.items, id, &ending);
        if !ours {
            self.remove(id);
        }
        true
    }

    fn overflow(&mut self, id: StreamId) -> Pushed {
        self.end_slow(id);
        Pushed::SlowReader
    }

    /// Ends a stream whose reader is too slow, whoever opened it.
    fn end_slow(&mut self, id: StreamId) -> Option<Stream<D>> {
        let stream = self.remove(id)?;
        if stream.ours {
            if stream.request.as_ref().is_none_or(|request| request.head.is_none()) {
                self.put_cancel(id, frame::FLAG_KILL, CancelReason::SlowReader);
            }
        } else {
            self.put_failure(id, &slow_reader());
        }
        Some(stream)
    }

    fn put_cancel(&mut self, id: StreamId, flags: u8, reason: CancelReason) {
        frame::put(&mut self.control, frame::CANCEL, flags, id.0, &reason.to_wire().to_le_bytes());
    }

    fn put_failure(&mut self, id: StreamId, failure: &Failure) {
        let mut data = Vec::with_capacity(64);
        failure.encode(&mut data);
        self.items_frames.put(&mut self.items, id, frame::ENTRY_FAIL, &data);
    }

    fn put_cancel_after_request(&mut self, id: StreamId, reason: CancelReason) {
        if let Some(request) = self.streams.get_mut(&id).and_then(|stream| stream.request.as_mut()) {
            request.stop = Some(reason);
        }
    }

    fn mark_ready(&mut self, id: StreamId) {
        if let Some(stream) = self.streams.get_mut(&id)
            && !stream.in_ready
            && stream.stalls_at.is_none()
        {
            stream.in_ready = true;
            self.ready.push_back(id);
        }
    }

    /// Takes a stream out and gives back all that it holds but what its reader holds.
    fn remove(&mut self, id: StreamId) -> Option<Stream<D>> {
        let mut stream = self.streams.remove(&id)?;
        if stream.ours {
            self.ours_open -= 1;
        } else {
            self.theirs_open -= 1;
        }
        self.waiting -= stream.waiting();
        if let Some(at) = stream.deadline {
            self.timers.clear(at, id, TimerKind::Deadline);
        }
        if let Some(at) = stream.stalls_at {
            self.timers.clear(at, id, TimerKind::Stall);
        }
        if let Some(request) = &mut stream.request
            && request.long
        {
            self.spent.push(std::mem::take(&mut request.payload));
        }
        while !stream.queue.is_empty() {
            if let Some(message) = stream.queue.pop() {
                keep_long(&mut self.spent, message.bytes);
            }
        }
        if let Some(reassembly) = stream.reassembly.take() {
            keep_long(&mut self.spent, reassembly.bytes.into());
            self.recv_pending += u64::from(reassembly.owed);
            if reassembly.loaned {
                self.budget += reassembly.total as u64;
                self.grant_loans();
            }
        }
        let live = self.streams.len();
        for line in [&mut self.ready, &mut self.windows, &mut self.loan_line] {
            // Ids of streams that are gone are skipped when they come up; they must not pile up before that.
            if line.len() > 2 * live + 64 {
                line.retain(|id| self.streams.contains_key(id));
            }
        }
        Some(stream)
    }
}

/// Memory from here on goes back to the system when it is freed, page by page.
const LONG_TO_FREE: usize = 1 << 20;

fn keep_long(spent: &mut Vec<Bytes>, bytes: Bytes) {
    if bytes.len() >= LONG_TO_FREE {
        spent.push(bytes);
    }
}

fn slow_reader() -> Failure {
    Failure::new(FailureCode::SlowReader, "the reader took nothing for too long")
}
