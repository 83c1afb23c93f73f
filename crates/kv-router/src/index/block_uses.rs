//! How often blocks were asked for lately: a few counters a block, each for a part of a window of time.

use std::time::{Duration, Instant};

/// Parts of a window. What happened in the present part and the seven before counts.
const PARTS: usize = 8;

/// How long a use of a block counts.
///
/// Time is cut into eighths of the window, and uses leave the count by whole eighths: each counts for at least seven
/// eighths of the window, and none for longer than the window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrequencyWindow(Duration);

impl FrequencyWindow {
    /// The shortest window: its eighths have numbers of 32 bits, which last for 17 years.
    pub const SHORTEST: Duration = Duration::from_secs(1);

    /// `None` if it is shorter than [`Self::SHORTEST`].
    pub fn new(window: Duration) -> Option<Self> {
        (window >= Self::SHORTEST).then_some(Self(window))
    }
}

/// Numbers the parts of time from a start on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parts {
    start: Instant,
    length: u128,
}

impl Parts {
    pub(super) fn new(window: FrequencyWindow, start: Instant) -> Self {
        Self { start, length: window.0.as_nanos() / PARTS as u128 }
    }

    /// The part in which `now` is; of all that is before the start, the first.
    pub(super) fn number(self, now: Instant) -> u32 {
        let part = now.saturating_duration_since(self.start).as_nanos() / self.length;
        u32::try_from(part).unwrap_or(u32::MAX)
    }
}

/// The uses of one block. Of more than 65,535 in a part, so many count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BlockUses {
    /// The part of the last use.
    last: u32,
    /// By the number of the part, modulo [`PARTS`]: those up to `last`.
    counts: [u16; PARTS],
}

impl BlockUses {
    pub(super) const NONE: Self = Self { last: 0, counts: [0; PARTS] };

    /// Counts a use in a part, and returns how many there were before it within the window.
    pub(super) fn add(&mut self, part: u32) -> u32 {
        // Those who ask at once may come in another order than they looked at the clock.
        let part = part.max(self.last);
        for newer in (0..part - self.last).take(PARTS) {
            self.counts[Self::place(part - newer)] = 0;
        }
        self.last = part;
        let before = self.counts.iter().map(|&count| u32::from(count)).sum();
        let count = &mut self.counts[Self::place(part)];
        *count = count.saturating_add(1);
        before
    }

    fn place(part: u32) -> usize {
        part as usize % PARTS
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_use_counts_for_seven_eighths_of_the_window_at_least_and_the_window_at_most() {
        let window = FrequencyWindow::new(Duration::from_secs(8)).unwrap();
        let start = Instant::now();
        let parts = Parts::new(window, start);
        let at = |milliseconds| parts.number(start + Duration::from_millis(milliseconds));
        for (first, then, count) in
            [(0, 7999, 1), (0, 8000, 0), (999, 7999, 1), (999, 8000, 0), (1000, 8999, 1), (1999, 9000, 0)]
        {
            let mut uses = BlockUses::NONE;
            assert_eq!(uses.add(at(first)), 0);
            assert_eq!(uses.add(at(then)), count, "{first} ms, then {then} ms");
        }
        assert_eq!(parts.number(start - Duration::from_secs(1)), 0);
        assert_eq!(FrequencyWindow::new(Duration::from_millis(999)), None);
    }

    #[test]
    fn counts_and_numbers_end_at_their_largest_value() {
        let mut uses = BlockUses::NONE;
        for before in 0..70_000u32 {
            assert_eq!(uses.add(3), before.min(u16::MAX.into()));
        }
        assert_eq!(uses.add(u32::MAX), 0);
        assert_eq!(uses.add(u32::MAX), 1);
    }

    proptest! {
        #[test]
        fn counts_equal_a_queue_of_all_uses(steps in prop::collection::vec(0u32..12, 1..200)) {
            let (mut uses, mut queue, mut part) = (BlockUses::NONE, VecDeque::new(), 0);
            for step in steps {
                // Mostly within the window; sometimes far behind it.
                part += if step < 10 { step / 3 } else { step };
                while queue.front().is_some_and(|&used| used + PARTS as u32 <= part) {
                    queue.pop_front();
                }
                prop_assert_eq!(uses.add(part), queue.len() as u32);
                queue.push_back(part);
            }
        }
    }
}
