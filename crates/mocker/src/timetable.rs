//! Simulated time as a schedule.

use std::time::Duration;

/// A runtime's timer ticks once a millisecond, so to sleep for less would cost more time than it is meant to.
const WORTH_SLEEPING: Duration = Duration::from_millis(1);

/// When steps are due. Times are since the caller's origin.
///
/// A step begins when the one before it was due, not when that was run: running late or early does not add up.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timetable {
    due: Duration,
}

impl Timetable {
    /// Begins a step that takes `length`.
    pub fn begin(&mut self, length: Duration) {
        self.due = self.due.saturating_add(length);
    }

    /// When the step that was begun last is due.
    pub fn due(&self) -> Duration {
        self.due
    }

    /// Whether to sleep until the step is due. If not, it runs at once.
    pub fn worth_sleeping(&self, now: Duration) -> bool {
        self.due.saturating_sub(now) >= WORTH_SLEEPING
    }

    /// There was nothing to do until now: time that nobody used is not caught up with.
    pub fn idle_until(&mut self, now: Duration) {
        self.due = self.due.max(now);
    }
}
