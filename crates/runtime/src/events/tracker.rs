//! Whose events are expected, and with which number.

use crate::identity::{Epoch, Incarnation, WorkerId};
use std::collections::BTreeMap;

/// The publishers of a scope and topic, as discovery (or the hub) knows them.
pub(super) type Members = BTreeMap<WorkerId, Epoch>;

/// What to do with an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Observed {
    /// The incarnation that this event shows to be gone.
    pub(super) replaced: Option<Incarnation>,
    /// The event itself.
    pub(super) verdict: Verdict,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Deliver,
    /// Events `from..=to` are missing before this one.
    DeliverAfterGap {
        from: u64,
        to: u64,
    },
    Discard(Discard),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Discard {
    /// The publisher left, or was never there.
    UnknownPublisher,
    /// From an incarnation that has been replaced.
    Stale,
    /// Seen before, or reported missing before.
    Duplicate,
}

/// The state of a subscription. Bounded by the members.
#[derive(Debug, Default)]
pub(super) struct Tracker {
    publishers: BTreeMap<WorkerId, Expected>,
}

#[derive(Debug, Clone, Copy)]
struct Expected {
    epoch: Epoch,
    sequence: u64,
}

impl Tracker {
    /// Takes over the members; returns the incarnations that are gone.
    pub(super) fn reconcile(&mut self, members: &Members) -> Vec<Incarnation> {
        let mut gone = Vec::new();
        self.publishers.retain(|&worker_id, expected| {
            let stays = members.contains_key(&worker_id);
            if !stays {
                gone.push(Incarnation { worker_id, epoch: expected.epoch });
            }
            stays
        });
        for (&worker_id, &epoch) in members {
            let expected = self.publishers.entry(worker_id).or_insert(Expected { epoch, sequence: 0 });
            // An event may have been faster than discovery: a lower epoch there is the older knowledge.
            if epoch > expected.epoch {
                gone.push(Incarnation { worker_id, epoch: expected.epoch });
                *expected = Expected { epoch, sequence: 0 };
            }
        }
        gone
    }

    /// Looks at an event. A publisher that sends no epoch (0) is taken for the incarnation that discovery knows.
    pub(super) fn observe(&mut self, publisher: Incarnation, sequence: u64) -> Observed {
        let discard = |why| Observed { replaced: None, verdict: Verdict::Discard(why) };
        let Some(expected) = self.publishers.get_mut(&publisher.worker_id) else {
            return discard(Discard::UnknownPublisher);
        };
        let mut replaced = None;
        if publisher.epoch != Epoch::from_unix_ms(0) {
            if publisher.epoch < expected.epoch {
                return discard(Discard::Stale);
            }
            if publisher.epoch > expected.epoch {
                replaced = Some(Incarnation { epoch: expected.epoch, ..publisher });
                *expected = Expected { epoch: publisher.epoch, sequence: 0 };
            }
        }
        let next = expected.sequence;
        if sequence < next {
            return discard(Discard::Duplicate);
        }
        expected.sequence = sequence.saturating_add(1);
        let verdict = if sequence == next {
            Verdict::Deliver
        } else {
            Verdict::DeliverAfterGap { from: next, to: sequence - 1 }
        };
        Observed { replaced, verdict }
    }

    /// The incarnation by which a publisher's events are reported.
    pub(super) fn incarnation(&self, worker_id: WorkerId) -> Option<Incarnation> {
        self.publishers.get(&worker_id).map(|expected| Incarnation { worker_id, epoch: expected.epoch })
    }
}

#[cfg(test)]
mod tests;
