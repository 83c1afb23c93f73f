use std::{
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use dynamo_wire::{CancelKind, CancelReason, Item, ItemQueue, Message, StreamId};
use tokio::time::Instant;

use super::{
    RequestPlaneMetrics, StreamError,
    inbox::{Ending, Inbox, cost},
    link::Link,
    local_stream::LocalStream,
};
use crate::metrics::Histogram;

/// Items that one poll gives out at most: whoever turns them into something larger can stop in between. It is more than a
/// step of any engine, so a reader that keeps up never meets it.
const ITEMS_PER_POLL: usize = 64;

/// How an answer goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StreamProgress {
    /// Poll again.
    More,
    /// The clean end.
    End,
    /// Broken off.
    Failed(StreamError),
}

enum Way {
    Remote { link: Arc<Link>, id: StreamId },
    Local(Arc<LocalStream>),
}

/// The answer to a request. Dropping it before its end cancels the request (kill) at the far end.
pub struct ResponseStream {
    way: Way,
    inbox: Arc<Inbox>,
    /// Items that were taken out of the inbox and not yet given out.
    taken: ItemQueue,
    /// Of them, what the stream's sender has not been told of.
    untold: u32,
    ending: Option<Ending>,
    first_item: Option<(Instant, Histogram)>,
    metrics: RequestPlaneMetrics,
}

impl ResponseStream {
    pub(super) fn remote(link: Arc<Link>, id: StreamId, inbox: Arc<Inbox>) -> Self {
        let metrics = link.shared.metrics.clone();
        Self::new(Way::Remote { link, id }, inbox, metrics)
    }

    pub(super) fn local(stream: Arc<LocalStream>, inbox: Arc<Inbox>, metrics: RequestPlaneMetrics) -> Self {
        Self::new(Way::Local(stream), inbox, metrics)
    }

    fn new(way: Way, inbox: Arc<Inbox>, metrics: RequestPlaneMetrics) -> Self {
        Self { way, inbox, taken: ItemQueue::default(), untold: 0, ending: None, first_item: None, metrics }
    }

    pub(super) async fn accepted(&mut self) -> Result<(), StreamError> {
        poll_fn(|cx| self.inbox.poll_accepted(cx)).await
    }

    pub(super) fn observe_first_item(&mut self, opened: Instant, histogram: Histogram) {
        self.first_item = Some((opened, histogram));
    }

    /// Calls `each` for the items received so far, in order, some dozens at most; without any, registers the waker.
    /// Allocates nothing once warm. After the last item, and from then on, it gives the ending.
    pub fn poll_items(&mut self, cx: &mut Context<'_>, each: &mut dyn FnMut(&[u8])) -> Poll<StreamProgress> {
        if let Some(ending) = std::task::ready!(self.poll_fill(cx)) {
            return Poll::Ready(match ending {
                Ok(()) => StreamProgress::End,
                Err(error) => StreamProgress::Failed(error),
            });
        }
        let mut small = 0;
        for _ in 0..ITEMS_PER_POLL {
            let Some(item) = self.taken.front() else { break };
            match item {
                Item::Small(item) => {
                    small += cost(item);
                    each(item);
                }
                Item::Message(message) => each(&message.bytes),
            }
            if let Some(message) = self.taken.pop() {
                self.took_message(&message);
            }
        }
        self.took(small);
        Poll::Ready(StreamProgress::More)
    }

    /// The next item; nothing after the clean end. A long item is not copied.
    pub async fn next(&mut self) -> Option<Result<Bytes, StreamError>> {
        match poll_fn(|cx| self.poll_fill(cx)).await {
            Some(Ok(())) => return None,
            Some(Err(error)) => return Some(Err(error)),
            None => {}
        }
        let small = match self.taken.front() {
            Some(Item::Small(item)) => Some((Bytes::copy_from_slice(item), cost(item))),
            _ => None,
        };
        let popped = self.taken.pop();
        match (small, popped) {
            (Some((item, cost)), _) => {
                self.took(cost);
                Some(Ok(item))
            }
            (None, Some(message)) => {
                self.took_message(&message);
                Some(Ok(message.bytes))
            }
            (None, None) => None,
        }
    }

    /// Asks the far end to stop early (it may send a last item, and ends the stream), or kills the stream: what was not
    /// read by then still comes, and then [`StreamError::Cancelled`].
    pub fn cancel(&self, kind: CancelKind, reason: CancelReason) {
        match &self.way {
            Way::Remote { link, id } => {
                if link.cancel(*id, kind, reason)
                    && let Some(waker) = self.inbox.end(Err(StreamError::Cancelled(reason)))
                {
                    waker.wake();
                }
            }
            Way::Local(stream) => stream.cancel(kind, reason),
        }
    }

    /// Makes sure that there are items to give out, or gives the ending.
    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<Option<Ending>> {
        if !self.taken.is_empty() {
            return Poll::Ready(None);
        }
        if let Some(ending) = &self.ending {
            return Poll::Ready(Some(ending.clone()));
        }
        let filled = std::task::ready!(self.inbox.poll_take(cx, &mut self.taken));
        self.ending.clone_from(&filled);
        if filled.is_none()
            && let Some((opened, histogram)) = self.first_item.take()
        {
            histogram.observe(opened.elapsed().as_secs_f64());
        }
        Poll::Ready(filled)
    }

    fn took(&mut self, small: u32) {
        if small > 0 {
            self.metrics.buffered.sub(i64::from(small));
            match &self.way {
                Way::Remote { link, id } => link.took(*id, small, &mut self.untold),
                Way::Local(stream) => stream.took(small),
            }
        }
    }

    fn took_message(&self, message: &Message) {
        self.metrics.buffered.sub(message.bytes.len() as i64);
        match &self.way {
            Way::Remote { link, id } => link.took_message(*id, message),
            Way::Local(stream) => stream.took_message(),
        }
    }
}

impl Drop for ResponseStream {
    fn drop(&mut self) {
        if self.ending.is_none() {
            self.cancel(CancelKind::Kill, CancelReason::ClientGone);
        }
        // What nobody reads any more gives its credit back.
        let mut small = 0;
        for mut unread in [std::mem::take(&mut self.taken), self.inbox.drain()] {
            while let Some(item) = unread.front() {
                if let Item::Small(item) = item {
                    small += cost(item);
                }
                if let Some(message) = unread.pop() {
                    self.took_message(&message);
                }
            }
        }
        self.took(small);
    }
}
