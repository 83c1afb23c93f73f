use super::drop_oldest::DropOldest;
use super::envelope::Arrival;
use super::metrics::TopicMetrics;
use super::tracker::Members;
use crate::metrics::IntCounter;
use parking_lot::Mutex;
use std::sync::Arc;
use tokio::sync::Notify;

/// Bytes of payload that may wait for one consumer. Events are small; this bounds the day they are not.
const MAX_BYTES: usize = 256 << 20;

/// Where a transport leaves what a subscription is to see: the members as a state, the events as a queue.
pub(super) struct Inbox {
    pub(super) topic: Arc<str>,
    pub(super) metrics: TopicMetrics,
    state: Mutex<State>,
    ready: Notify,
    dropped: IntCounter,
}

struct State {
    events: DropOldest<Arrival>,
    members: Members,
    members_changed: bool,
    closed: bool,
}

/// What the consumer finds.
pub(super) enum Found {
    /// The members changed. Comes before the events that wait: events of those who are gone are obsolete.
    Members(Members),
    Event(Arrival),
    Nothing,
    /// No more will come.
    Closed,
}

impl Inbox {
    pub(super) fn new(
        topic: Arc<str>,
        metrics: TopicMetrics,
        dropped: IntCounter,
        max_events: usize,
    ) -> Arc<Self> {
        let state = State {
            events: DropOldest::new(max_events, MAX_BYTES),
            members: Members::new(),
            members_changed: false,
            closed: false,
        };
        Arc::new(Self { topic, metrics, state: Mutex::new(state), ready: Notify::new(), dropped })
    }

    /// Leaves an event; never waits.
    pub(super) fn push(&self, arrival: Arrival) {
        let size = arrival.payload.len();
        let dropped = self.state.lock().events.push(arrival, size);
        if dropped > 0 {
            self.dropped.inc_by(dropped as u64);
        }
        self.ready.notify_one();
    }

    pub(super) fn set_members(&self, members: Members) {
        let mut state = self.state.lock();
        if state.members != members {
            state.members = members;
            state.members_changed = true;
            drop(state);
            self.ready.notify_one();
        }
    }

    pub(super) fn close(&self) {
        self.state.lock().closed = true;
        self.ready.notify_one();
    }

    pub(super) fn take(&self) -> Found {
        let mut state = self.state.lock();
        if std::mem::take(&mut state.members_changed) {
            return Found::Members(state.members.clone());
        }
        match state.events.pop() {
            Some(arrival) => Found::Event(arrival),
            None if state.closed => Found::Closed,
            None => Found::Nothing,
        }
    }

    /// Resolves when something was left since the last [`take`](Self::take) that found nothing. For one consumer.
    pub(super) async fn ready(&self) {
        self.ready.notified().await;
    }
}
