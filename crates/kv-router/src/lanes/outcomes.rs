//! What became of events, counted without a lock.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::{EventCounters, EventKind, EventStatus};

/// Counters that threads share.
#[derive(Default)]
pub(super) struct Outcomes([[AtomicU64; EventStatus::ALL.len()]; EventKind::ALL.len()]);

impl Outcomes {
    pub(super) fn count(&self, kind: EventKind, status: EventStatus) {
        self.0[kind as usize][status as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Adds what a lane has counted, and lets it begin anew.
    pub(super) fn add(&self, counted: &mut EventCounters) {
        for (kind, status, count) in std::mem::take(counted).iter().filter(|counted| counted.2 > 0) {
            self.0[kind as usize][status as usize].fetch_add(count, Ordering::Relaxed);
        }
    }

    pub(super) fn get(&self) -> EventCounters {
        let mut counters = EventCounters::default();
        for kind in EventKind::ALL {
            for status in EventStatus::ALL {
                counters.add(kind, status, self.0[kind as usize][status as usize].load(Ordering::Relaxed));
            }
        }
        counters
    }
}
