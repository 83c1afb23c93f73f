//! Waiting until lanes have applied what they were given.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;

/// Why a flush did not end well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FlushError {
    /// The lanes have more to do than the time allowed.
    #[error("the lanes did not apply their events in time: they are behind, or stuck")]
    Timeout,
    /// A lane is broken or has stopped.
    #[error("a lane is broken or has stopped, and will not apply its events")]
    Stopped,
}

/// Called once, with the outcome.
pub(super) type Done = Box<dyn FnOnce(Result<(), FlushError>) + Send>;

/// What each lane arrives at; the last one tells.
pub(super) struct Barrier {
    left: AtomicUsize,
    is_broken: AtomicBool,
    done: Mutex<Option<Done>>,
}

impl Barrier {
    pub(super) fn new(lanes: usize, done: Done) -> Self {
        Self {
            left: AtomicUsize::new(lanes),
            is_broken: AtomicBool::new(false),
            done: Mutex::new(Some(done)),
        }
    }

    pub(super) fn arrive(&self, is_broken: bool) {
        if is_broken {
            self.is_broken.store(true, Ordering::Release);
        }
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.end(if self.is_broken.load(Ordering::Acquire) { Err(FlushError::Stopped) } else { Ok(()) });
        }
    }

    fn end(&self, outcome: Result<(), FlushError>) {
        let done = self.done.lock().take();
        if let Some(done) = done {
            done(outcome);
        }
    }
}

impl Drop for Barrier {
    /// Some lane stopped before it came here.
    fn drop(&mut self) {
        self.end(Err(FlushError::Stopped));
    }
}
