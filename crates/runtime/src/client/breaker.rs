//! Leaves a worker alone after failures: closed, then open for a time that doubles, then open to one probe at a time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// After the first failure: longer than a connection reset takes to be seen by everybody, shorter than anyone notices.
const FIRST: Duration = Duration::from_millis(100);

/// Most: a worker that comes back is used again within this time.
const MOST: Duration = Duration::from_secs(5);

/// Doublings from [`FIRST`] that reach [`MOST`].
const DOUBLINGS: u32 = 6;

#[derive(Debug)]
pub(super) struct Breaker {
    state: Mutex<State>,
    /// Whether `state` has failures, for the common case without a lock.
    failing: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    /// In a row.
    failures: u32,
    /// Nothing is sent before; none while no request failed.
    closed_until: Option<Instant>,
    /// A probe is on its way.
    probing: bool,
}

impl Breaker {
    pub(super) fn new() -> Self {
        Self { state: Mutex::default(), failing: AtomicBool::new(false) }
    }

    /// Whether a request may be sent now.
    pub(super) fn admits(&self, now: Instant) -> bool {
        !self.failing.load(Ordering::Relaxed)
            || self.state.lock().closed_until.is_none_or(|until| now >= until)
    }

    /// Takes the right to send; of those who find it open to a probe, one gets it. A probe of which nothing is heard
    /// makes room for the next after the same pause.
    pub(super) fn claim(&self, now: Instant) -> bool {
        if !self.failing.load(Ordering::Relaxed) {
            return true;
        }
        let mut state = self.state.lock();
        match state.closed_until {
            None => true,
            Some(until) if now >= until => {
                state.closed_until = Some(now + pause(state.failures));
                state.probing = true;
                true
            }
            Some(_) => false,
        }
    }

    pub(super) fn succeeded(&self) {
        if self.failing.load(Ordering::Relaxed) {
            *self.state.lock() = State::default();
            self.failing.store(false, Ordering::Relaxed);
        }
    }

    /// Many requests that fail at the same time are one failure.
    pub(super) fn failed(&self, now: Instant) {
        let mut state = self.state.lock();
        if state.closed_until.is_some_and(|until| now < until) && !state.probing {
            return;
        }
        state.failures = state.failures.saturating_add(1);
        state.closed_until = Some(now + pause(state.failures));
        state.probing = false;
        self.failing.store(true, Ordering::Relaxed);
    }
}

/// How long nothing is sent after so many failures in a row.
fn pause(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(DOUBLINGS);
    (FIRST * (1 << doublings)).min(MOST)
}

#[cfg(test)]
mod tests {
    use super::{Breaker, FIRST, MOST};
    use tokio::time::Instant;

    #[tokio::test(start_paused = true)]
    async fn one_probe_goes_after_a_pause_that_doubles() {
        let (breaker, mut now) = (Breaker::new(), Instant::now());
        breaker.failed(now);
        breaker.failed(now);
        assert!(!breaker.admits(now) && !breaker.claim(now));
        now += FIRST;
        assert!(breaker.admits(now) && breaker.claim(now), "two failures at a time count once");
        assert!(!breaker.claim(now), "one probe at a time");
        breaker.failed(now);
        assert!(!breaker.admits(now + FIRST) && breaker.admits(now + 2 * FIRST));
        for _ in 0..20 {
            now += MOST;
            assert!(breaker.claim(now));
            breaker.failed(now);
        }
        assert!(!breaker.admits(now + MOST / 2) && breaker.admits(now + MOST));
    }

    #[tokio::test(start_paused = true)]
    async fn a_success_closes_it_and_a_silent_probe_is_followed_by_another() {
        let (breaker, now) = (Breaker::new(), Instant::now());
        breaker.failed(now);
        assert!(breaker.claim(now + FIRST));
        assert!(!breaker.claim(now + FIRST));
        assert!(breaker.claim(now + 2 * FIRST), "nothing was heard of the probe");
        breaker.succeeded();
        assert!(breaker.admits(now) && breaker.claim(now) && breaker.claim(now));
        breaker.failed(now);
        assert!(breaker.admits(now + FIRST), "it starts over with the first pause");
    }
}
