//! How far the batches of an engine's rank have come, so that what a peer gave and what the own listener heard can be put
//! together without a hole.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// No batch. It is no number of one either: engines end a replay with it.
const NONE: u64 = u64::MAX;

/// The numbers of one rank's batches. The listener writes what it heard; the lane, and a recovery while lanes are closed,
/// the rest.
#[derive(Debug)]
pub(super) struct Progress {
    /// The first batch that was heard from the engine in its present life.
    first_heard: AtomicU64,
    /// The last one whose events the index has.
    last: AtomicU64,
    /// What the index has comes from a peer, and the first own batch is to follow it.
    is_taken_over: AtomicBool,
}

/// How a batch follows what the index has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Follows {
    /// Without a hole: it is the next one, or one of those before it, which change nothing when all up to the next one are
    /// applied again.
    Closely,
    /// It is the engine's first, and the index has later ones: the engine began anew, or all there is will come again.
    /// What the index has is to be forgotten.
    Anew,
    /// Those from `from` on did not come.
    Hole {
        /// The first that is missing.
        from: u64,
    },
}

impl Progress {
    pub(super) const fn new() -> Self {
        Self {
            first_heard: AtomicU64::new(NONE),
            last: AtomicU64::new(NONE),
            is_taken_over: AtomicBool::new(false),
        }
    }

    /// The listener heard a batch.
    pub(super) fn heard(&self, sequence: u64) {
        if self.first_heard.load(Ordering::Relaxed) == NONE {
            self.first_heard.store(sequence, Ordering::Relaxed);
        }
    }

    /// The listener heard that the engine counts anew.
    pub(super) fn heard_restart(&self) {
        self.first_heard.store(NONE, Ordering::Relaxed);
    }

    /// The first batch that was heard, if one was.
    pub(super) fn first_heard(&self) -> Option<u64> {
        some(self.first_heard.load(Ordering::Relaxed))
    }

    /// The index has a batch.
    pub(super) fn brought(&self, sequence: u64) {
        self.last.store(sequence, Ordering::Release);
    }

    /// The index has nothing of the engine's present life.
    pub(super) fn restarted(&self) {
        self.last.store(NONE, Ordering::Release);
        self.is_taken_over.store(false, Ordering::Relaxed);
    }

    /// The index has what a peer had after a batch.
    pub(super) fn taken_over(&self, last: u64) {
        self.last.store(last, Ordering::Release);
        self.is_taken_over.store(true, Ordering::Relaxed);
    }

    /// The last batch that the index has, if it is known.
    pub(super) fn last(&self) -> Option<u64> {
        some(self.last.load(Ordering::Acquire))
    }

    /// How the batch in hand follows. The listener itself finds holes between two batches that it heard.
    pub(super) fn follow(&self, sequence: u64) -> Follows {
        let (Some(last), true) = (self.last(), self.is_taken_over.swap(false, Ordering::Relaxed)) else {
            return Follows::Closely;
        };
        if sequence == 0 && last > 0 {
            Follows::Anew
        } else if sequence > last + 1 {
            Follows::Hole { from: last + 1 }
        } else {
            Follows::Closely
        }
    }
}

fn some(number: u64) -> Option<u64> {
    (number != NONE).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_batch_after_a_peers_is_looked_at() {
        let follows = |first| {
            let progress = Progress::new();
            progress.taken_over(7);
            progress.follow(first)
        };
        assert_eq!([1, 7, 8].map(follows), [Follows::Closely; 3]);
        assert_eq!(follows(9), Follows::Hole { from: 8 });
        assert_eq!(follows(0), Follows::Anew);
        let progress = Progress::new();
        assert_eq!(progress.follow(9), Follows::Closely, "nothing is known of those before");
        progress.taken_over(7);
        progress.follow(8);
        progress.brought(8);
        assert_eq!((progress.follow(20), progress.last()), (Follows::Closely, Some(8)));
        progress.taken_over(30);
        progress.restarted();
        assert_eq!((progress.follow(40), progress.last()), (Follows::Closely, None));
    }

    #[test]
    fn what_was_heard_first_is_of_the_engines_present_life() {
        let progress = Progress::new();
        progress.heard(5);
        progress.heard(6);
        assert_eq!(progress.first_heard(), Some(5));
        progress.heard_restart();
        assert_eq!(progress.first_heard(), None);
        progress.heard(0);
        assert_eq!(progress.first_heard(), Some(0));
    }
}
