//! The instants at which streams run out of time.

use std::{collections::BTreeSet, time::Instant};

use crate::StreamId;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum TimerKind {
    Deadline,
    Stall,
}

/// At most one timer of each kind per stream; its owner removes it, so that none outlives its stream.
#[derive(Debug, Default)]
pub(crate) struct Timers {
    queue: BTreeSet<(Instant, StreamId, TimerKind)>,
}

impl Timers {
    pub(crate) fn set(&mut self, at: Instant, id: StreamId, kind: TimerKind) {
        self.queue.insert((at, id, kind));
    }

    pub(crate) fn clear(&mut self, at: Instant, id: StreamId, kind: TimerKind) {
        self.queue.remove(&(at, id, kind));
    }

    pub(crate) fn next(&self) -> Option<Instant> {
        self.queue.first().map(|&(at, ..)| at)
    }

    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<(StreamId, TimerKind)> {
        let &(at, ..) = self.queue.first()?;
        if at > now {
            return None;
        }
        self.queue.pop_first().map(|(_, id, kind)| (id, kind))
    }

    pub(crate) fn len(&self) -> usize {
        self.queue.len()
    }
}
