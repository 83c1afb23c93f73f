//! Requests that are counted on workers and sent there by others.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use dynamo_llm::HeldBooking;
use parking_lot::Mutex;

/// Bookings at most; each is a request that somebody else runs.
const MAX_BOOKINGS: usize = 1 << 16;
/// Longer ids are refused.
const MAX_ID: usize = 1024;

/// Why a booking was not kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum BookingRefused {
    #[error("{MAX_BOOKINGS} requests are booked already: mark them free when they are over")]
    Full,
    #[error("a request_id has at most {MAX_ID} bytes")]
    Id,
}

/// Bookings by id. Who does not mark its requests free loses them after a time, as the load does.
pub(super) struct Bookings<B = HeldBooking> {
    held: Mutex<HashMap<String, (B, Instant)>>,
    expiry: Duration,
}

impl<B> Bookings<B> {
    pub(super) fn new(expiry: Duration) -> Self {
        Self { held: Mutex::default(), expiry }
    }

    /// Whether one more can be kept under this id.
    pub(super) fn admit(&self, id: &str) -> Result<(), BookingRefused> {
        if id.len() > MAX_ID {
            return Err(BookingRefused::Id);
        }
        let held = self.held.lock();
        if held.len() >= MAX_BOOKINGS && !held.contains_key(id) { Err(BookingRefused::Full) } else { Ok(()) }
    }

    /// Keeps a booking; one of the same id is over.
    pub(super) fn keep(&self, id: String, booking: B, now: Instant) {
        let replaced = self.held.lock().insert(id, (booking, now));
        // It is freed outside of the lock.
        drop(replaced);
    }

    /// The first token came; `false` if the request is not known.
    pub(super) fn mark(&self, id: &str, now: Instant, mark: impl FnOnce(&mut B)) -> bool {
        let mut held = self.held.lock();
        let Some((booking, seen)) = held.get_mut(id) else { return false };
        *seen = now;
        mark(booking);
        true
    }

    /// The request is over; `false` if it is not known.
    pub(super) fn free(&self, id: &str) -> bool {
        let freed = self.held.lock().remove(id);
        freed.is_some()
    }

    /// Forgets those of which nothing was heard for too long; returns how many.
    pub(super) fn expire(&self, now: Instant) -> usize {
        let mut held = self.held.lock();
        let before = held.len();
        held.retain(|_, (_, seen)| now.saturating_duration_since(*seen) < self.expiry);
        before - held.len()
    }

    pub(super) fn len(&self) -> usize {
        self.held.lock().len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bookings_end_when_marked_free_replaced_or_forgotten() {
        let (bookings, now) = (Bookings::new(Duration::from_secs(300)), Instant::now());
        let held = std::sync::Arc::new(());
        let count = || std::sync::Arc::strong_count(&held) - 1;
        bookings.keep("a".into(), held.clone(), now);
        bookings.keep("a".into(), held.clone(), now);
        bookings.keep("b".into(), held.clone(), now);
        assert_eq!((bookings.len(), count()), (2, 2));
        assert!(bookings.mark("a", now + Duration::from_secs(200), |_| {}));
        assert!(!bookings.mark("c", now, |_| {}));
        assert_eq!(bookings.expire(now + Duration::from_secs(300)), 1);
        assert_eq!(count(), 1);
        assert!(bookings.free("a"));
        assert!(!bookings.free("a"));
        assert_eq!(count(), 0);
    }

    #[test]
    fn they_are_bounded() {
        let (bookings, now) = (Bookings::new(Duration::from_secs(300)), Instant::now());
        for id in 0..MAX_BOOKINGS {
            bookings.keep(id.to_string(), (), now);
        }
        assert_eq!(bookings.admit("x"), Err(BookingRefused::Full));
        assert_eq!(bookings.admit("7"), Ok(()));
        assert_eq!(bookings.admit(&"x".repeat(MAX_ID + 1)), Err(BookingRefused::Id));
    }
}
