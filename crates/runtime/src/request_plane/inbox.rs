//! What has been received of an answer and not been read.

use std::task::{Context, Poll, Waker};

use dynamo_wire::{ITEM_OVERHEAD, ItemQueue, Message};
use parking_lot::Mutex;

use super::StreamError;

/// How an answer ended.
pub(super) type Ending = Result<(), StreamError>;

#[derive(Default)]
struct State {
    queue: ItemQueue,
    accepted: bool,
    ending: Option<Ending>,
    waker: Option<Waker>,
}

/// Written by the connection, read by the [`super::ResponseStream`]. Its size is bounded by the stream's credit.
#[derive(Default)]
pub(super) struct Inbox {
    state: Mutex<State>,
}

impl Inbox {
    /// Adds an item. The reader is to be woken by the caller, once per batch: its waker is given out once.
    #[inline]
    pub(super) fn put(&self, item: &[u8]) -> Option<Waker> {
        let mut state = self.state.lock();
        state.accepted = true;
        state.queue.push(item);
        state.waker.take()
    }

    pub(super) fn put_message(&self, message: Message) -> Option<Waker> {
        let mut state = self.state.lock();
        state.accepted = true;
        state.queue.push_message(message);
        state.waker.take()
    }

    pub(super) fn accept(&self) -> Option<Waker> {
        let mut state = self.state.lock();
        state.accepted = true;
        state.waker.take()
    }

    /// Ends the answer after what was put in. Only the first ending counts.
    pub(super) fn end(&self, ending: Ending) -> Option<Waker> {
        let mut state = self.state.lock();
        if state.ending.is_none() {
            state.ending = Some(ending);
        }
        state.waker.take()
    }

    /// Takes out what nobody will read.
    pub(super) fn drain(&self) -> ItemQueue {
        std::mem::take(&mut self.state.lock().queue)
    }

    /// Whether the request was accepted, once that is known.
    pub(super) fn poll_accepted(&self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        let mut state = self.state.lock();
        if state.accepted {
            return Poll::Ready(Ok(()));
        }
        match &state.ending {
            Some(Err(error)) => Poll::Ready(Err(error.clone())),
            // A clean end without a word is an empty answer.
            Some(Ok(())) => Poll::Ready(Ok(())),
            None => {
                register(&mut state.waker, cx);
                Poll::Pending
            }
        }
    }

    /// Exchanges the received items for the empty `scratch`; without any, gives the ending.
    #[inline]
    pub(super) fn poll_take(&self, cx: &mut Context<'_>, scratch: &mut ItemQueue) -> Poll<Option<Ending>> {
        let mut state = self.state.lock();
        if !state.queue.is_empty() {
            std::mem::swap(&mut state.queue, scratch);
            return Poll::Ready(None);
        }
        if let Some(ending) = &state.ending {
            return Poll::Ready(Some(ending.clone()));
        }
        register(&mut state.waker, cx);
        Poll::Pending
    }
}

#[inline]
fn register(slot: &mut Option<Waker>, cx: &Context<'_>) {
    match slot {
        Some(waker) if waker.will_wake(cx.waker()) => {}
        _ => *slot = Some(cx.waker().clone()),
    }
}

/// What a small item costs of a stream's credit.
#[inline]
pub(super) fn cost(item: &[u8]) -> u32 {
    (item.len() + ITEM_OVERHEAD) as u32
}
