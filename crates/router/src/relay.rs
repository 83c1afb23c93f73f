//! Passes an answer on: items as they are, credits, cancels and errors both ways.

use std::{
    future::poll_fn,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use dynamo_llm::RoutedStream;
use dynamo_runtime::{
    TaskScope,
    request_plane::{
        CancelKind, CancelReason, PushState, Responder, ResponseStream, StreamError, StreamProgress,
    },
};
use parking_lot::Mutex;
use tokio::{sync::Notify, time::Instant};

/// A worker that was told to stop may send a last item and its end for so long.
const STOP_GRACE: Duration = Duration::from_secs(5);

/// Where an answer comes from.
pub(crate) trait Upstream: Send {
    /// The answer.
    fn stream(&mut self) -> &mut ResponseStream;
    /// So many items came.
    fn on_items(&mut self, items: usize);
    /// It broke off.
    fn on_failure(&mut self, error: &StreamError);
}

impl Upstream for RoutedStream {
    fn stream(&mut self) -> &mut ResponseStream {
        &mut self.stream
    }

    fn on_items(&mut self, items: usize) {
        RoutedStream::on_items(self, items, std::time::Instant::now());
    }

    fn on_failure(&mut self, error: &StreamError) {
        RoutedStream::on_failure(self, error);
    }
}

/// How it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// With the worker's clean end.
    Finished,
    /// With the worker's failure, which was passed on.
    Failed(StreamError),
    /// Nobody read any more.
    Abandoned,
}

/// The reader's cancel, told to whoever relays.
#[derive(Default)]
struct Cancelled {
    reason: Mutex<Option<CancelReason>>,
    told: Notify,
}

impl Cancelled {
    async fn wait(&self) -> CancelReason {
        loop {
            let told = self.told.notified();
            if let Some(reason) = *self.reason.lock() {
                return reason;
            }
            told.await;
        }
    }
}

/// Passes on all of `upstream` to `responder`. No more is taken than the reader has room for, so that its pace is the
/// worker's.
pub(crate) async fn relay(upstream: &mut impl Upstream, responder: Responder, scope: &TaskScope) -> Ended {
    let cancelled = Arc::new(Cancelled::default());
    let hook = cancelled.clone();
    responder.on_cancel(move |reason| {
        *hook.reason.lock() = Some(reason);
        hook.told.notify_one();
    });
    let mut relay = Relay { responder, cancelled, stopped: None };
    loop {
        match relay.step(upstream, scope).await {
            Step::Items => {}
            Step::End => {
                relay.responder.finish();
                return Ended::Finished;
            }
            Step::Failed(error) => {
                upstream.on_failure(&error);
                relay.responder.fail(error.clone());
                return Ended::Failed(error);
            }
            Step::Abandoned => return Ended::Abandoned,
        }
    }
}

enum Step {
    Items,
    End,
    Failed(StreamError),
    Abandoned,
}

struct Relay {
    responder: Responder,
    cancelled: Arc<Cancelled>,
    /// When a worker that was told to stop must have ended.
    stopped: Option<Instant>,
}

impl Relay {
    /// Waits for what happens next, and does it.
    async fn step(&mut self, upstream: &mut impl Upstream, scope: &TaskScope) -> Step {
        let Self { responder, cancelled, stopped } = self;
        let deadline = *stopped;
        let over = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        let mut items = 0;
        let mut open = true;
        let progress = {
            let (items, open) = (&mut items, &mut open);
            let stream = upstream.stream();
            let passing = async {
                if responder.ready().await.is_err() {
                    return None;
                }
                let take = |cx: &mut Context<'_>| -> Poll<StreamProgress> {
                    stream.poll_items(cx, &mut |item| {
                        *items += 1;
                        *open &= responder.push(item) == PushState::Open;
                    })
                };
                Some(poll_fn(take).await)
            };
            tokio::select! {
                biased;
                reason = cancelled.wait(), if deadline.is_none() => {
                    *stopped = Some(Instant::now() + STOP_GRACE);
                    Err(reason)
                }
                () = over => return Step::Abandoned,
                () = scope.cancelled() => {
                    return Step::Failed(StreamError::Unavailable("the router is shutting down".to_owned()));
                }
                progress = passing => Ok(progress),
            }
        };
        match progress {
            Err(reason) => {
                upstream.stream().cancel(CancelKind::Stop, reason);
                Step::Items
            }
            Ok(None) => Step::Abandoned,
            Ok(Some(StreamProgress::More)) => {
                self.responder.flush();
                upstream.on_items(items);
                if open { Step::Items } else { Step::Abandoned }
            }
            Ok(Some(StreamProgress::End)) => Step::End,
            Ok(Some(StreamProgress::Failed(error))) => Step::Failed(error),
        }
    }
}
