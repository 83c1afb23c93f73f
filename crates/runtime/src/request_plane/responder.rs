use std::{future::poll_fn, sync::Arc, task::Poll};

use bytes::Bytes;
use dynamo_wire::{CancelReason, StreamId};

use super::{StreamError, cancel::Serving, link::Link, local_stream::LocalStream};

/// What a push found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PushState {
    /// Somebody reads, or may yet.
    Open,
    /// Nobody will read any more.
    Closed,
}

/// Nobody will read any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("nobody reads the answer any more")]
pub struct Closed;

enum Way {
    Remote { link: Arc<Link>, id: StreamId, serving: Arc<Serving> },
    Local(Arc<LocalStream>),
}

/// The way back of one request. Dropping it without [`Responder::finish`] ends the stream as incomplete.
pub struct Responder {
    way: Way,
    over: bool,
}

impl Responder {
    pub(super) fn remote(link: Arc<Link>, id: StreamId, serving: Arc<Serving>) -> Self {
        Self { way: Way::Remote { link, id, serving }, over: false }
    }

    pub(super) fn local(stream: Arc<LocalStream>) -> Self {
        Self { way: Way::Local(stream), over: false }
    }

    fn serving(&self) -> &Serving {
        match &self.way {
            Way::Remote { serving, .. } => serving,
            Way::Local(stream) => &stream.serving,
        }
    }

    /// Copies an item for the reader. Never blocks, wakes nobody and, once warm, allocates nothing for items up to
    /// 8 KiB; without credit the item waits in the stream's own buffer, which is bounded: past it the reader counts as
    /// too slow, and the stream is closed.
    #[inline]
    pub fn push(&mut self, item: &[u8]) -> PushState {
        let open = match &self.way {
            Way::Remote { link, id, serving } => link.push(*id, item, serving),
            Way::Local(stream) => stream.push(item),
        };
        if open { PushState::Open } else { PushState::Closed }
    }

    /// Sends what was pushed, on any stream of the same connection. Cheap if another one was flushed already.
    pub fn flush(&mut self) {
        match &self.way {
            Way::Remote { link, .. } => link.flush(),
            Way::Local(stream) => stream.flush(),
        }
    }

    /// Ends the answer cleanly, after what was pushed. Needs no flush.
    pub fn finish(mut self) {
        self.over = true;
        self.serving().disarm();
        match &self.way {
            Way::Remote { link, id, .. } => link.finish(*id),
            Way::Local(stream) => stream.end(Ok(())),
        }
    }

    /// Ends the answer with an error, after what was pushed; needs no flush. Before the handler has returned and
    /// anything was pushed, it refuses the request.
    pub fn fail(mut self, error: StreamError) {
        self.fail_now(error);
    }

    fn fail_now(&mut self, error: StreamError) {
        self.over = true;
        self.serving().disarm();
        match &self.way {
            Way::Remote { link, id, .. } => link.fail(*id, error),
            Way::Local(stream) => stream.end(Err(error)),
        }
    }

    /// Whether the stream was cancelled, by whomever.
    pub fn is_cancelled(&self) -> bool {
        self.serving().is_cancelled()
    }

    /// Sets what is called, once at most, when the stream is cancelled: by the other end, by a lost connection, by its
    /// deadline, or because its reader is too slow. At once if it has been. Called on the connection's task, so it
    /// must not block; a push that finds the stream closed does not call it in the pusher's thread. A stop leaves the
    /// stream open for a last item and the end.
    pub fn on_cancel(&self, callback: impl FnOnce(CancelReason) + Send + 'static) {
        self.serving().on_cancel(Box::new(callback));
    }

    /// Sends an item when nothing before it waits any more: for long items, without copying, with the reader's pace.
    pub async fn send(&mut self, item: Bytes) -> Result<(), Closed> {
        self.room().await?;
        let open = match &self.way {
            Way::Remote { link, id, serving } => link.push_message(*id, item, serving),
            Way::Local(stream) => stream.push_message(item),
        };
        self.flush();
        if open { Ok(()) } else { Err(Closed) }
    }

    /// Resolves when nothing that was pushed waits for the reader's credit: for those who pass on what they read from
    /// elsewhere, at the reader's pace.
    pub async fn ready(&self) -> Result<(), Closed> {
        self.room().await
    }

    async fn room(&self) -> Result<(), Closed> {
        poll_fn(|cx| {
            let serving = self.serving();
            serving.room.register(cx.waker());
            if serving.is_cancelled() && !self.is_open() {
                return Poll::Ready(Err(Closed));
            }
            let room = match &self.way {
                Way::Remote { link, id, .. } => link.has_room(*id),
                Way::Local(stream) => stream.has_room(),
            };
            if room { Poll::Ready(Ok(())) } else { Poll::Pending }
        })
        .await
    }

    fn is_open(&self) -> bool {
        match &self.way {
            Way::Remote { link, id, .. } => link.core().wire.data_mut(*id).is_some(),
            Way::Local(stream) => stream.is_open(),
        }
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        if !self.over {
            self.fail_now(StreamError::Incomplete);
        }
    }
}
