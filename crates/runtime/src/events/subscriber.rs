use super::envelope::{Arrival, EventItem};
use super::inbox::{Found, Inbox};
use super::tracker::{Tracker, Verdict};
use crate::metrics::IntGauge;
use std::collections::VecDeque;
use std::sync::Arc;

/// A subscription to one scope and topic. Dropping it unsubscribes.
pub struct EventSubscriber {
    inbox: Arc<Inbox>,
    tracker: Tracker,
    /// What one arrival gave rise to besides itself; at most the number of publishers.
    pending: VecDeque<EventItem>,
    open: IntGauge,
    /// Ends the transport's part when dropped.
    _transport: Box<dyn Send + Sync>,
}

impl EventSubscriber {
    pub(super) fn new(inbox: Arc<Inbox>, open: IntGauge, transport: Box<dyn Send + Sync>) -> Self {
        open.inc();
        Self { inbox, tracker: Tracker::default(), pending: VecDeque::new(), open, _transport: transport }
    }

    /// The next event, gap or departure; none once the plane is closed and all that waited was taken. Dropping the
    /// future loses nothing.
    pub async fn next(&mut self) -> Option<EventItem> {
        loop {
            if let Some(item) = self.pending.pop_front() {
                return Some(item);
            }
            match self.inbox.take() {
                Found::Members(members) => {
                    let gone = self.tracker.reconcile(&members);
                    self.pending.extend(gone.into_iter().map(EventItem::PublisherGone));
                }
                Found::Event(arrival) => self.observe(arrival),
                Found::Nothing => self.inbox.ready().await,
                Found::Closed => return None,
            }
        }
    }

    fn observe(&mut self, Arrival { mut envelope, payload }: Arrival) {
        let metrics = &self.inbox.metrics;
        let observed = self.tracker.observe(envelope.publisher, envelope.sequence);
        self.pending.extend(observed.replaced.map(EventItem::PublisherGone));
        if let Verdict::Discard(why) = observed.verdict {
            metrics.discarded(why);
            return;
        }
        if let Some(publisher) = self.tracker.incarnation(envelope.publisher.worker_id) {
            envelope.publisher = publisher;
        }
        if let Verdict::DeliverAfterGap { from, to } = observed.verdict {
            metrics.missed.inc_by((to - from).saturating_add(1));
            self.pending.push_back(EventItem::Gap { publisher: envelope.publisher, from, to });
        }
        metrics.received.inc();
        self.pending.push_back(EventItem::Event { envelope, payload });
    }
}

impl Drop for EventSubscriber {
    fn drop(&mut self) {
        self.open.dec();
    }
}
