//! What a connection knows of one stream.

use std::time::Instant;

use bytes::Bytes;

use crate::{CancelReason, Failure, ItemQueue, Request};

/// A stream's number: odd if the dialer opened it, even if the acceptor did; never used twice on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub(crate) u32);

impl StreamId {
    /// The number as it travels.
    pub fn get(self) -> u32 {
        self.0
    }
}

/// What comes after the last queued item.
#[derive(Debug)]
pub(crate) enum Ending {
    End,
    Fail(Failure),
}

/// A request on its way out: head (until it is sent) and what is left of the payload.
#[derive(Debug)]
pub(crate) struct OutgoingRequest {
    pub(crate) head: Option<Vec<u8>>,
    pub(crate) more: bool,
    pub(crate) payload: Bytes,
    /// Whether the payload was long before it was cut down by sending.
    pub(crate) long: bool,
    /// A stop asked for before the head left; it follows the head.
    pub(crate) stop: Option<CancelReason>,
}

/// A long message on its way in.
#[derive(Debug)]
pub(crate) struct Reassembly {
    pub(crate) total: usize,
    pub(crate) bytes: Vec<u8>,
    /// Credit used and not returned.
    pub(crate) owed: u32,
    /// Whether it holds reassembly budget: then credit returns as bytes arrive.
    pub(crate) loaned: bool,
    /// Set for the payload of a request.
    pub(crate) request: Option<Box<Request>>,
}

#[derive(Debug)]
pub(crate) struct Stream<D> {
    /// None until an incoming request is whole.
    pub(crate) data: Option<D>,
    /// Whether this end opened it.
    pub(crate) ours: bool,
    pub(crate) accepted: bool,

    pub(crate) send_open: bool,
    pub(crate) send_credit: u64,
    pub(crate) request: Option<Box<OutgoingRequest>>,
    pub(crate) queue: ItemQueue,
    /// Bytes of the queue's first message that are sent.
    pub(crate) front_sent: usize,
    pub(crate) ending: Option<Ending>,
    pub(crate) in_ready: bool,
    /// When the stall timer goes off, while items wait for this stream's credit.
    pub(crate) stalls_at: Option<Instant>,
    /// Whether someone waits for the queue to drain.
    pub(crate) wants_room: bool,

    pub(crate) recv_open: bool,
    /// What the peer may still send.
    pub(crate) recv_credit: u64,
    /// Taken by the reader and not announced.
    pub(crate) recv_pending: u32,
    pub(crate) window_queued: bool,
    pub(crate) reassembly: Option<Box<Reassembly>>,
    /// Whether a message of this stream holds reassembly budget.
    pub(crate) has_loan: bool,
    /// Whether it stands in the line for reassembly budget.
    pub(crate) awaits_loan: bool,

    pub(crate) deadline: Option<Instant>,
}

impl<D> Stream<D> {
    pub(crate) fn new(ours: bool, send_credit: u32, recv_credit: u32) -> Self {
        Self {
            data: None,
            ours,
            accepted: false,
            send_open: true,
            send_credit: u64::from(send_credit),
            request: None,
            queue: ItemQueue::default(),
            front_sent: 0,
            ending: None,
            in_ready: false,
            stalls_at: None,
            wants_room: false,
            recv_open: true,
            recv_credit: u64::from(recv_credit),
            recv_pending: 0,
            window_queued: false,
            reassembly: None,
            has_loan: false,
            awaits_loan: false,
            deadline: None,
        }
    }

    /// Bytes that wait here to be sent, payload of the request included.
    pub(crate) fn waiting(&self) -> usize {
        self.queue.held() + self.request.as_ref().map_or(0, |request| request.payload.len())
    }
}
