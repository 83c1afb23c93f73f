//! Streams within the process: what they share.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, Weak,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    task::Waker,
    time::Instant,
};

use dynamo_wire::{CancelReason, Request};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{
    Handler, IncomingRequest, RequestPlaneConfig, RequestPlaneMetrics, Responder, ResponseStream,
    StreamError, cancel::Serving, handler, inbox::Inbox, link::now, local_stream::LocalStream,
};
use crate::TaskScope;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Alarm {
    Deadline,
    Stall,
}

#[derive(Default)]
struct State {
    /// As many as `max_streams` of the protocol.
    streams: HashMap<u64, Weak<LocalStream>>,
    alarms: BTreeSet<(Instant, u64, Alarm)>,
    overflowed: Vec<Arc<Serving>>,
    closed: bool,
}

/// Keeps time for the streams within a process, and wakes their readers a step at a time.
pub(super) struct LocalHub {
    pub(super) config: dynamo_wire::Config,
    pub(super) metrics: RequestPlaneMetrics,
    state: Mutex<State>,
    /// Readers whose inbox got something since the last flush.
    woken: Mutex<Vec<Waker>>,
    changed: Notify,
    next: AtomicU64,
    open: Arc<AtomicI64>,
}

impl LocalHub {
    pub(super) fn start(
        scope: &TaskScope,
        config: &RequestPlaneConfig,
        metrics: &RequestPlaneMetrics,
        open: Arc<AtomicI64>,
    ) -> Arc<Self> {
        let hub = Arc::new(Self {
            config: config.wire.clone(),
            metrics: metrics.clone(),
            state: Mutex::default(),
            woken: Mutex::default(),
            changed: Notify::new(),
            next: AtomicU64::new(0),
            open,
        });
        scope.spawn("request-plane-local", keep_time(hub.clone(), scope.clone()));
        hub
    }

    pub(super) fn open(
        self: &Arc<Self>,
        handler: &Arc<dyn Handler>,
        request: Request,
    ) -> Result<ResponseStream, StreamError> {
        let Request { id: request_id, path, time_left, metadata, payload } = request;
        if payload.len() > self.config.max_message as usize {
            return Err(StreamError::TooLarge(format!(
                "payloads have {} bytes at most",
                self.config.max_message
            )));
        }
        let inbox = Arc::new(Inbox::default());
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let deadline = time_left.and_then(|left| now().checked_add(left));
        let stream = Arc::new(LocalStream::new(self.clone(), number, inbox.clone(), deadline));
        {
            let mut state = self.state.lock();
            if state.closed {
                return Err(StreamError::Unavailable("the process is going away".to_owned()));
            }
            if state.streams.len() >= self.config.max_streams as usize {
                self.metrics.stream_bound.inc();
                return Err(StreamError::Overloaded("too many streams within the process".to_owned()));
            }
            state.streams.insert(number, Arc::downgrade(&stream));
        }
        self.open.fetch_add(1, Ordering::Relaxed);
        self.metrics.streams.inc();
        if let Some(at) = deadline {
            self.set_alarm(at, number, Alarm::Deadline);
        }
        let response = ResponseStream::local(stream.clone(), inbox, self.metrics.clone());
        let request = IncomingRequest { id: request_id, path, payload, deadline, metadata };
        handler::call(&**handler, request, Responder::local(stream.clone()));
        stream.accept();
        Ok(response)
    }

    pub(super) fn set_alarm(&self, at: Instant, number: u64, alarm: Alarm) {
        let mut state = self.state.lock();
        state.alarms.insert((at, number, alarm));
        let first = state.alarms.first().is_some_and(|&(first, of, _)| first == at && of == number);
        drop(state);
        if first {
            self.changed.notify_one();
        }
    }

    pub(super) fn clear_alarm(&self, at: Instant, number: u64, alarm: Alarm) {
        self.state.lock().alarms.remove(&(at, number, alarm));
    }

    /// Forgets a stream that has ended.
    pub(super) fn forget(&self, number: u64) {
        if self.state.lock().streams.remove(&number).is_some() {
            self.open.fetch_sub(1, Ordering::Relaxed);
            self.metrics.streams.dec();
        }
    }

    /// Tells the handler of a stream that a push has found its reader too slow; not in the pusher's thread.
    pub(super) fn overflowed(&self, serving: Arc<Serving>) {
        self.state.lock().overflowed.push(serving);
        self.changed.notify_one();
    }

    pub(super) fn wake_at_flush(&self, waker: Waker) {
        self.woken.lock().push(waker);
    }

    pub(super) fn flush(&self) {
        let mut woken = self.woken.lock();
        if woken.is_empty() {
            return;
        }
        // Woken without the lock, and without losing the buffer.
        let mut wakers = std::mem::take(&mut *woken);
        drop(woken);
        for waker in wakers.drain(..) {
            waker.wake();
        }
        let mut woken = self.woken.lock();
        if woken.capacity() < wakers.capacity() {
            wakers.append(&mut woken);
            *woken = wakers;
        }
    }

    fn due(&self, now: Instant) -> Due {
        let mut state = self.state.lock();
        let mut alarms = Vec::new();
        while let Some(&(at, number, alarm)) = state.alarms.first()
            && at <= now
        {
            state.alarms.pop_first();
            alarms.extend(state.streams.get(&number).and_then(Weak::upgrade).map(|stream| (stream, alarm)));
        }
        let next = state.alarms.first().map(|&(at, ..)| at);
        Due { alarms, overflowed: std::mem::take(&mut state.overflowed), next }
    }

    fn close(&self) -> Vec<Arc<LocalStream>> {
        let mut state = self.state.lock();
        state.closed = true;
        state.streams.values().filter_map(Weak::upgrade).collect()
    }
}

/// What the hub's task has to do.
struct Due {
    alarms: Vec<(Arc<LocalStream>, Alarm)>,
    overflowed: Vec<Arc<Serving>>,
    next: Option<Instant>,
}

async fn keep_time(hub: Arc<LocalHub>, scope: TaskScope) {
    loop {
        let Due { alarms, overflowed, next } = hub.due(now());
        for (stream, alarm) in alarms {
            stream.alarm(alarm);
        }
        for serving in overflowed {
            serving.fire(CancelReason::SlowReader);
        }
        let sleep = async {
            match next {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = scope.cancelled() => break,
            () = hub.changed.notified() => {}
            () = sleep => {}
        }
    }
    for stream in hub.close() {
        stream.break_off(StreamError::Disconnected, CancelReason::Shutdown);
    }
}
