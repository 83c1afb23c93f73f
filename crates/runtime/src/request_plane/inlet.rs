//! What comes in on a connection: sorted under its lock, acted upon after.

use std::{sync::Arc, task::Waker};

use dynamo_wire::{
    CancelKind, CancelReason, ConnectionError, Events, Failure, FailureCode, Item, Message, Request, StreamId,
};

use super::{
    Handler, IncomingRequest, Responder, StreamError,
    cancel::Serving,
    handler,
    inbox::cost,
    link::{Link, StreamEnd, now},
};

enum Call {
    Handle { id: StreamId, handler: Arc<dyn Handler>, request: IncomingRequest, responder: Responder },
    Cancelled(Arc<Serving>, CancelReason),
}

/// Reused from batch to batch, so that items cost no allocation.
pub(super) struct Inlet {
    link: Arc<Link>,
    wakers: Vec<Waker>,
    calls: Vec<Call>,
    buffered: i64,
    /// Credit of items that nobody will read.
    discarded: u64,
    dropped: Vec<(StreamId, Message)>,
    gone: Vec<(Option<String>, bool)>,
}

impl Inlet {
    pub(super) fn new(link: Arc<Link>) -> Self {
        Self {
            link,
            wakers: Vec::new(),
            calls: Vec::new(),
            buffered: 0,
            discarded: 0,
            dropped: Vec::new(),
            gone: Vec::new(),
        }
    }

    /// Takes a batch of bytes from the peer.
    pub(super) fn input(&mut self, bytes: &[u8]) -> Result<(), ConnectionError> {
        let metrics = &self.link.shared.metrics;
        metrics.reads.inc();
        metrics.bytes_received.inc_by(bytes.len() as u64);
        let link = self.link.clone();
        let result = {
            let mut core = link.core();
            let result = core.wire.handle_input(now(), bytes, self);
            link.collect_taken(&mut core);
            if core.wire.is_established()
                && let Some(established) = core.established.take()
            {
                // Who dialled may have given up meanwhile.
                let _ = established.send(());
            }
            self.settle(&mut core);
            result
        };
        self.dispatch();
        result
    }

    /// Ends what ran out of time.
    pub(super) fn timeout(&mut self) -> Result<(), ConnectionError> {
        let link = self.link.clone();
        let result = {
            let mut core = link.core();
            let result = core.wire.handle_timeout(now(), self);
            self.settle(&mut core);
            result
        };
        self.dispatch();
        result
    }

    fn settle(&mut self, core: &mut super::link::Core) {
        core.wire.consumed_connection(std::mem::take(&mut self.discarded));
        for (id, message) in self.dropped.drain(..) {
            core.wire.take_message(id, &message);
        }
        for (path, back) in self.gone.drain(..) {
            match path {
                Some(path) => core.path_gone(&path, back),
                None => self.link.peer_goes_away(back),
            }
        }
        for serving in core.overflowed.drain(..) {
            self.calls.push(Call::Cancelled(serving, CancelReason::SlowReader));
        }
        self.link.count(core);
        self.link.let_go(core);
        if self.buffered != 0 {
            self.link.shared.metrics.buffered.add(std::mem::take(&mut self.buffered));
        }
    }

    /// Without the lock: wakes readers, calls handlers.
    fn dispatch(&mut self) {
        for waker in self.wakers.drain(..) {
            waker.wake();
        }
        for call in self.calls.drain(..) {
            match call {
                Call::Cancelled(serving, reason) => serving.fire(reason),
                Call::Handle { id, handler, request, responder } => {
                    handler::call(&*handler, request, responder);
                    self.link.core().wire.accept(id);
                }
            }
        }
    }
}

impl Events<StreamEnd> for Inlet {
    fn request(&mut self, id: StreamId, request: Request, _more: bool) -> Result<StreamEnd, Failure> {
        let handler = self.link.shared.paths.find(&request.path).map_err(Failure::from)?;
        let serving = Arc::new(Serving::default());
        let responder = Responder::remote(self.link.clone(), id, serving.clone());
        let Request { id: request_id, path, time_left, metadata, payload } = request;
        let deadline = time_left.and_then(|left| now().checked_add(left));
        let request = IncomingRequest { id: request_id, path, payload, deadline, metadata };
        self.calls.push(Call::Handle { id, handler, request, responder });
        Ok(StreamEnd::Serving(serving))
    }

    fn accepted(&mut self, end: &mut StreamEnd, _: StreamId) {
        if let StreamEnd::Asking(inbox) = end {
            self.wakers.extend(inbox.accept());
        }
    }

    #[inline]
    fn item(&mut self, end: &mut StreamEnd, _: StreamId, item: &[u8]) {
        match end {
            StreamEnd::Asking(inbox) => {
                self.buffered += i64::from(cost(item));
                self.wakers.extend(inbox.put(item));
            }
            // This release's handlers take a request whole; items that a later one sends after it are let go.
            StreamEnd::Serving(_) => self.discarded += u64::from(cost(item)),
        }
    }

    fn message(&mut self, end: &mut StreamEnd, id: StreamId, message: Message) {
        match end {
            StreamEnd::Asking(inbox) => {
                self.buffered += message.bytes.len() as i64;
                self.wakers.extend(inbox.put_message(message));
            }
            StreamEnd::Serving(_) => self.dropped.push((id, message)),
        }
    }

    fn ended(&mut self, end: &mut StreamEnd, _: StreamId) {
        if let StreamEnd::Asking(inbox) = end {
            self.wakers.extend(inbox.end(Ok(())));
        }
    }

    fn failed(&mut self, end: &mut StreamEnd, id: StreamId, failure: Failure) {
        let StreamEnd::Asking(inbox) = end else { return };
        if failure.code == FailureCode::SlowReader {
            // Who did not read will not: what it holds of the connection's credit is for the others.
            let mut unread = inbox.drain();
            while let Some(item) = unread.front() {
                match item {
                    Item::Small(item) => {
                        self.discarded += u64::from(cost(item));
                        self.buffered -= i64::from(cost(item));
                    }
                    Item::Message(message) => self.buffered -= message.bytes.len() as i64,
                }
                self.dropped.extend(unread.pop().map(|message| (id, message)));
            }
        }
        self.wakers.extend(inbox.end(Err(StreamError::from(failure))));
    }

    fn cancelled(&mut self, end: &mut StreamEnd, _: StreamId, _: CancelKind, reason: CancelReason) {
        if let StreamEnd::Serving(serving) = end {
            if reason == CancelReason::SlowReader {
                self.link.shared.metrics.slow_readers.inc();
            }
            self.calls.push(Call::Cancelled(serving.clone(), reason));
        }
    }

    fn go_away(&mut self, path: Option<&str>, back: bool) {
        self.gone.push((path.map(str::to_owned), back));
    }
}
