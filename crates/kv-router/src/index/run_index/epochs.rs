//! When nobody can still look at what the writer took out of sight.
//!
//! The writer counts epochs. A reader sits down for the length of one query and leaves the epoch it found on its seat;
//! what was taken out of sight in an epoch before the oldest one on any seat is seen by nobody. Both sides touch a
//! seat with read-modify-write operations, which all have one order: either the writer finds the reader on its seat,
//! or the reader, sitting down later, finds all that the writer did before it looked. No fence is needed.

#[cfg(loom)]
use loom::sync::atomic::{AtomicU64, AtomicUsize, Ordering::*};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::*};

/// Seats: readers that can be under way at once without holding up the return of memory; as many as the cores of a
/// large machine. More readers stand, see [`Epochs::pin`].
#[cfg(not(loom))]
const SEATS: usize = 128;
#[cfg(loom)]
const SEATS: usize = 2;

const EMPTY: u64 = 0;

/// Two cache lines, since processors fetch them in pairs.
#[repr(align(128))]
struct Seat(AtomicU64);

/// The epochs of one index.
pub(super) struct Epochs {
    current: AtomicU64,
    seats: Box<[Seat]>,
    /// Seats that were ever given to a reader, or taken.
    used: AtomicUsize,
    given: AtomicUsize,
    standing: AtomicUsize,
}

/// A reader that is under way. What it found stays as it is until this is dropped.
pub(super) struct Pin<'a> {
    epochs: &'a Epochs,
    seat: Option<usize>,
}

impl Epochs {
    pub(super) fn new() -> Self {
        Self {
            current: AtomicU64::new(EMPTY + 1),
            seats: (0..SEATS).map(|_| Seat(AtomicU64::new(EMPTY))).collect(),
            used: AtomicUsize::new(0),
            given: AtomicUsize::new(0),
            standing: AtomicUsize::new(0),
        }
    }

    /// The seat that a new reader tries first.
    pub(super) fn give_seat(&self) -> usize {
        let seat = self.given.fetch_add(1, Relaxed) % SEATS;
        self.used.fetch_max(seat + 1, AcqRel);
        seat
    }

    /// Begins a query, on a seat from `give_seat`. A reader whose seat is taken, because threads share it, tries the others; if all are taken it
    /// stands, and nothing is given back before it is done.
    #[inline]
    pub(super) fn pin(&self, seat: usize) -> Pin<'_> {
        let epoch = self.current.load(Acquire);
        if self.seats[seat].0.compare_exchange(EMPTY, epoch, AcqRel, Relaxed).is_ok() {
            return Pin { epochs: self, seat: Some(seat) };
        }
        self.pin_elsewhere(seat, epoch)
    }

    #[cold]
    fn pin_elsewhere(&self, taken: usize, epoch: u64) -> Pin<'_> {
        for step in 1..SEATS {
            let seat = (taken + step) % SEATS;
            if self.seats[seat].0.load(Relaxed) != EMPTY {
                continue;
            }
            // First, so that a writer that does not look at this seat yet is seen by us.
            self.used.fetch_max(seat + 1, AcqRel);
            if self.seats[seat].0.compare_exchange(EMPTY, epoch, AcqRel, Relaxed).is_ok() {
                return Pin { epochs: self, seat: Some(seat) };
            }
        }
        self.standing.fetch_add(1, AcqRel);
        Pin { epochs: self, seat: None }
    }

    /// The epoch in which the writer is; for the writer alone.
    pub(super) fn current(&self) -> u64 {
        self.current.load(Relaxed)
    }

    /// Ends the writer's epoch. What was taken out of sight in an epoch below the result is seen by nobody any more.
    pub(super) fn advance(&self) -> u64 {
        let next = self.current.load(Relaxed) + 1;
        self.current.store(next, Release);
        let mut oldest = next;
        for seat in &self.seats[..self.used.fetch_add(0, AcqRel)] {
            let epoch = seat.0.fetch_add(0, AcqRel);
            if epoch != EMPTY {
                oldest = oldest.min(epoch);
            }
        }
        if self.standing.fetch_add(0, AcqRel) > 0 { EMPTY } else { oldest }
    }

    pub(super) fn bytes(&self) -> usize {
        size_of_val(&*self.seats)
    }
}

impl Drop for Pin<'_> {
    #[inline]
    fn drop(&mut self) {
        match self.seat {
            Some(seat) => self.epochs.seats[seat].0.store(EMPTY, Release),
            None => {
                self.epochs.standing.fetch_sub(1, Release);
            }
        }
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    #[test]
    fn a_pinned_reader_keeps_what_was_there_when_it_began() {
        let epochs = Epochs::new();
        let seat = epochs.give_seat();
        let retired_in = epochs.current();
        let pin = epochs.pin(seat);
        assert!(retired_in >= epochs.advance(), "the reader may look at it");
        drop(pin);
        let _later = epochs.pin(seat);
        assert!(retired_in < epochs.advance(), "the reader began after it was gone");
    }

    #[test]
    fn readers_that_share_a_seat_or_find_none_count_too() {
        let epochs = Epochs::new();
        let mut pins: Vec<_> = (0..SEATS + 3).map(|_| epochs.pin(0)).collect();
        let retired_in = epochs.current();
        assert!(retired_in >= epochs.advance());
        pins.truncate(1);
        assert!(retired_in >= epochs.advance(), "one still sits");
        pins.clear();
        assert!(retired_in < epochs.advance());
        let _standing = Pin { epochs: &epochs, seat: None };
        epochs.standing.fetch_add(1, AcqRel);
        assert!(epochs.current() >= epochs.advance(), "one stands");
    }
}

/// `RUSTFLAGS="--cfg loom" cargo test -p dynamo-kv-router --release --lib epochs`
#[cfg(all(test, loom))]
mod loom_tests {
    use loom::{
        cell::UnsafeCell,
        sync::{Arc, atomic::AtomicU64},
        thread,
    };

    use super::*;

    /// Two places, of which one is published. Readers look at what is published without any lock; the writer writes
    /// the other only after all who may look at it are gone. Loom reports any access beside a write.
    struct Published {
        epochs: Epochs,
        current: AtomicU64,
        places: [UnsafeCell<u64>; 2],
    }

    fn read(published: &Published, seat: usize) {
        let _pin = published.epochs.pin(seat);
        let at = published.current.load(Acquire) as usize;
        // SAFETY: what the test is about; loom checks it.
        #[allow(unsafe_code)]
        let value = published.places[at].with(|place| unsafe { *place });
        assert!(value == 1 || value == 2 || value == 3);
    }

    fn with_readers(readers: usize, seats: &'static [usize]) {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(3);
        model.check(move || {
            let published = Arc::new(Published {
                epochs: Epochs::new(),
                current: AtomicU64::new(0),
                places: [UnsafeCell::new(1), UnsafeCell::new(2)],
            });
            published.epochs.give_seat();
            let threads: Vec<_> = (0..readers)
                .map(|number| {
                    let published = published.clone();
                    thread::spawn(move || read(&published, seats[number]))
                })
                .collect();
            let retired_in = published.epochs.current();
            published.current.store(1, Release);
            if retired_in < published.epochs.advance() {
                // SAFETY: nobody can look at it: what the test is about.
                #[allow(unsafe_code)]
                published.places[0].with_mut(|place| unsafe { *place = 3 });
                published.current.store(0, Release);
            }
            for thread in threads {
                thread.join().unwrap();
            }
        });
    }

    #[test]
    fn nothing_is_used_again_under_a_readers_eyes() {
        with_readers(1, &[0]);
    }

    #[test]
    fn nor_under_those_of_a_reader_whose_seat_is_taken() {
        // One of them finds a seat that was never given to anybody.
        with_readers(2, &[0, 0]);
    }
}
