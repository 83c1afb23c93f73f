//! How many workers are routed to, and whether that is enough to begin.

use std::sync::atomic::{AtomicUsize, Ordering};

/// Written by whoever keeps the workers in step, read by all.
pub(crate) struct WorkerCount {
    now: AtomicUsize,
    /// There have been so many at once.
    most: AtomicUsize,
    to_begin: usize,
}

impl WorkerCount {
    /// None yet; `to_begin` of them are enough.
    pub(crate) fn new(to_begin: usize) -> Self {
        Self { now: AtomicUsize::new(0), most: AtomicUsize::new(0), to_begin }
    }

    pub(crate) fn set(&self, workers: usize) {
        self.now.store(workers, Ordering::Relaxed);
        self.most.fetch_max(workers, Ordering::Relaxed);
    }

    pub(crate) fn now(&self) -> usize {
        self.now.load(Ordering::Relaxed)
    }

    /// Whether enough have been there at once. What has begun does not end when workers leave.
    pub(crate) fn has_begun(&self) -> bool {
        self.most.load(Ordering::Relaxed) >= self.to_begin
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_begins_with_enough_workers_and_goes_on_with_fewer() {
        assert!(WorkerCount::new(0).has_begun());
        let count = WorkerCount::new(2);
        for (workers, has_begun) in [(0, false), (1, false), (0, false), (2, true), (0, true)] {
            count.set(workers);
            assert_eq!((count.now(), count.has_begun()), (workers, has_begun));
        }
    }
}
