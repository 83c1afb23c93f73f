//! One stream within the process: the states and bounds of the protocol without its bytes.

use std::{sync::Arc, task::Waker, time::Instant};

use bytes::Bytes;
use dynamo_wire::{CancelKind, CancelReason, Item, ItemQueue, Message};
use parking_lot::Mutex;

use super::{
    StreamError,
    cancel::Serving,
    inbox::{Ending, Inbox, cost},
    local::{Alarm, LocalHub},
};

/// Longer items are held apart, as they would be on a connection.
const SMALL_ITEM: usize = 8 * 1024;

struct State {
    open: bool,
    /// Set by the handler's end of the answer, while items still wait.
    ending: Option<Ending>,
    /// Of the stream's window, what the inbox does not hold.
    credit: u32,
    /// Whether a long item lies in the inbox: there is one at a time.
    long_in_inbox: bool,
    /// Without credit.
    waiting: ItemQueue,
    stalls_at: Option<Instant>,
    deadline: Option<Instant>,
}

pub(super) struct LocalStream {
    hub: Arc<LocalHub>,
    number: u64,
    inbox: Arc<Inbox>,
    pub(super) serving: Arc<Serving>,
    state: Mutex<State>,
}

impl LocalStream {
    pub(super) fn new(hub: Arc<LocalHub>, number: u64, inbox: Arc<Inbox>, deadline: Option<Instant>) -> Self {
        let state = State {
            open: true,
            ending: None,
            credit: hub.config.stream_credit,
            long_in_inbox: false,
            waiting: ItemQueue::default(),
            stalls_at: None,
            deadline,
        };
        Self { hub, number, inbox, serving: Arc::default(), state: Mutex::new(state) }
    }

    pub(super) fn is_open(&self) -> bool {
        self.state.lock().open
    }

    pub(super) fn accept(&self) {
        if self.state.lock().open {
            self.wake_later(self.inbox.accept());
            self.flush();
        }
    }

    pub(super) fn push(&self, item: &[u8]) -> bool {
        if item.len() > SMALL_ITEM {
            return self.push_message(Bytes::copy_from_slice(item));
        }
        let mut state = self.state.lock();
        if !state.open || state.ending.is_some() {
            return false;
        }
        let cost = cost(item);
        if state.waiting.is_empty() && state.credit >= cost {
            state.credit -= cost;
            self.hub.metrics.buffered.add(i64::from(cost));
            self.wake_later(self.inbox.put(item));
            return true;
        }
        self.wait_for_credit(&mut state, cost as usize, |waiting| waiting.push(item))
    }

    pub(super) fn push_message(&self, item: Bytes) -> bool {
        if item.len() <= SMALL_ITEM {
            return self.push(&item);
        }
        let mut state = self.state.lock();
        if !state.open || state.ending.is_some() {
            return false;
        }
        if item.len() > self.hub.config.max_message as usize {
            drop(state);
            self.break_off(
                StreamError::TooLarge("an item was longer than the reader accepts".to_owned()),
                CancelReason::Unspecified,
            );
            return false;
        }
        let len = item.len();
        let message = Message { bytes: item, owed: 0, loaned: false };
        if state.waiting.is_empty() && !state.long_in_inbox {
            state.long_in_inbox = true;
            self.hub.metrics.buffered.add(len as i64);
            self.wake_later(self.inbox.put_message(message));
            return true;
        }
        self.wait_for_credit(&mut state, len, |waiting| waiting.push_message(message))
    }

    fn wait_for_credit(&self, state: &mut State, len: usize, put: impl FnOnce(&mut ItemQueue)) -> bool {
        if !state.waiting.is_empty() && state.waiting.held() + len > self.hub.config.send_buffer as usize {
            self.hub.metrics.slow_readers.inc();
            self.shut(state, Err(StreamError::SlowReader));
            self.serving.mark();
            self.hub.overflowed(self.serving.clone());
            return false;
        }
        let before = state.waiting.held();
        put(&mut state.waiting);
        self.hub.metrics.buffered.add((state.waiting.held() - before) as i64);
        self.start_stall_timer(state);
        true
    }

    fn start_stall_timer(&self, state: &mut State) {
        if state.stalls_at.is_none() {
            let at = super::link::now() + self.hub.config.stall_limit;
            state.stalls_at = Some(at);
            self.hub.set_alarm(at, self.number, Alarm::Stall);
        }
    }

    pub(super) fn flush(&self) {
        self.hub.flush();
    }

    /// The handler's end of the answer.
    pub(super) fn end(&self, ending: Ending) {
        let mut state = self.state.lock();
        if state.open {
            if state.waiting.is_empty() {
                if ending.is_ok() {
                    self.wake_later(self.inbox.accept());
                }
                self.shut(&mut state, ending);
            } else {
                state.ending = Some(ending);
            }
        }
        drop(state);
        self.flush();
    }

    /// The reader's cancel.
    pub(super) fn cancel(&self, kind: CancelKind, reason: CancelReason) {
        match kind {
            CancelKind::Stop if self.is_open() => self.serving.fire(reason),
            CancelKind::Stop => {}
            CancelKind::Kill => self.break_off(StreamError::Cancelled(reason), reason),
        }
    }

    /// Ends the stream for both.
    pub(super) fn break_off(&self, error: StreamError, reason: CancelReason) {
        let was_open = {
            let mut state = self.state.lock();
            let open = state.open;
            if open {
                self.shut(&mut state, Err(error));
            }
            open
        };
        self.flush();
        if was_open {
            self.serving.fire(reason);
        }
    }

    pub(super) fn alarm(&self, alarm: Alarm) {
        match alarm {
            Alarm::Deadline => self.break_off(StreamError::DeadlineExceeded, CancelReason::DeadlineExceeded),
            Alarm::Stall => {
                // The reader may have read since the alarm was taken out.
                if self.state.lock().stalls_at.is_some_and(|at| at <= super::link::now()) {
                    self.hub.metrics.slow_readers.inc();
                    self.break_off(StreamError::SlowReader, CancelReason::SlowReader);
                }
            }
        }
    }

    /// The reader took small items.
    pub(super) fn took(&self, small: u32) {
        let mut state = self.state.lock();
        state.credit += small;
        self.advance(&mut state);
        drop(state);
        self.flush();
    }

    /// The reader took the long item.
    pub(super) fn took_message(&self) {
        let mut state = self.state.lock();
        state.long_in_inbox = false;
        self.advance(&mut state);
        drop(state);
        self.flush();
    }

    pub(super) fn has_room(&self) -> bool {
        let state = self.state.lock();
        !state.open || state.waiting.is_empty()
    }

    /// Moves what waited into the inbox as far as credit goes.
    fn advance(&self, state: &mut State) {
        if state.waiting.is_empty() {
            return;
        }
        loop {
            let before = state.waiting.held();
            match state.waiting.front() {
                Some(Item::Small(item)) if state.credit >= cost(item) => {
                    state.credit -= cost(item);
                    self.wake_later(self.inbox.put(item));
                    state.waiting.pop();
                }
                Some(Item::Message(_)) if !state.long_in_inbox => {
                    state.long_in_inbox = true;
                    if let Some(message) = state.waiting.pop() {
                        // Held in the inbox from now on, without the mark that stood for it in the queue.
                        let mark = before - state.waiting.held() - message.bytes.len();
                        self.hub.metrics.buffered.sub(mark as i64);
                        self.wake_later(self.inbox.put_message(message));
                    }
                }
                _ => break,
            }
        }
        if let Some(at) = state.stalls_at.take() {
            self.hub.clear_alarm(at, self.number, Alarm::Stall);
        }
        if !state.waiting.is_empty() {
            self.start_stall_timer(state);
        } else if let Some(ending) = state.ending.take() {
            self.shut(state, ending);
        } else {
            self.serving.room.wake();
        }
    }

    /// No item follows; the reader finds `ending` after what the inbox holds.
    fn shut(&self, state: &mut State, ending: Ending) {
        state.open = false;
        state.ending = None;
        self.hub.metrics.buffered.sub(state.waiting.held() as i64);
        state.waiting.clear();
        if let Some(at) = state.stalls_at.take() {
            self.hub.clear_alarm(at, self.number, Alarm::Stall);
        }
        if let Some(at) = state.deadline.take() {
            self.hub.clear_alarm(at, self.number, Alarm::Deadline);
        }
        self.wake_later(self.inbox.end(ending));
        self.hub.forget(self.number);
    }

    fn wake_later(&self, waker: Option<Waker>) {
        if let Some(waker) = waker {
            self.hub.wake_at_flush(waker);
        }
    }
}
