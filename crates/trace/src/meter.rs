//! What is counted while the load runs. Histograms are in microseconds.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use parking_lot::Mutex;

use crate::{failure::Failure, failure::FailureKind, sse::Usage};

/// The longest time told apart: a day.
const MAX_MICROS: u64 = 86_400_000_000;
/// Three digits: percentiles are within 0.1 %.
const DIGITS: u8 = 3;
/// How many messages of each kind of failure are shown.
const EXAMPLES: usize = 3;
/// Longest message kept.
const MAX_MESSAGE_BYTES: usize = 300;
/// Most workers counted apart; a larger fleet's rest is left out.
const MAX_WORKERS: usize = 100_000;
/// Width of a slot of the time line of ends.
const SLOT: Duration = Duration::from_millis(10);
/// Most slots (28 hours); later ends count in the last one.
const MAX_SLOTS: usize = 10_000_000;

/// A histogram of microseconds.
pub(crate) type Micros = Histogram<u64>;

/// Counts of one measured phase.
pub(crate) struct Counts {
    pub(crate) sent: u64,
    pub(crate) ok: u64,
    pub(crate) asked_tokens: u64,
    pub(crate) prompt_tokens: u64,
    pub(crate) cached_tokens: u64,
    pub(crate) completion_tokens: u64,
    pub(crate) events: u64,
    pub(crate) content_events: u64,
    pub(crate) without_content: u64,
    pub(crate) connections: u64,
    pub(crate) reconnects: u64,
    pub(crate) first: Micros,
    pub(crate) between: Micros,
    pub(crate) whole: Micros,
    pub(crate) lateness: Micros,
    pub(crate) timer_lag: Micros,
    /// Whole times of the requests due in the first half of the window.
    pub(crate) early: Micros,
    pub(crate) workers: BTreeMap<u64, u64>,
    pub(crate) failures: BTreeMap<FailureKind, (u64, Vec<String>)>,
    ends: Vec<u32>,
    pub(crate) last_end: Option<Instant>,
}

/// Counts shared by the streams of a phase; a lock is taken once a read, and there is no contention on one thread.
pub(crate) struct Meter {
    pub(crate) start: Instant,
    /// How long requests are due, in open loop.
    pub(crate) window: Option<Duration>,
    counts: Mutex<Counts>,
}

/// A request that was answered.
pub(crate) struct Served {
    pub(crate) usage: Usage,
    pub(crate) worker: Option<u64>,
    pub(crate) content_events: u64,
    pub(crate) end: Instant,
}

fn histogram() -> Micros {
    // The bounds are constants that the constructor accepts: 1 is the least, two times it fits, digits are at most 5.
    #[allow(clippy::expect_used)]
    Histogram::new_with_bounds(1, MAX_MICROS, DIGITS).expect("constant bounds")
}

fn micros(duration: Duration) -> u64 {
    duration.as_micros().min(u128::from(MAX_MICROS)) as u64
}

impl Meter {
    pub(crate) fn new(start: Instant, window: Option<Duration>) -> Self {
        let counts = Counts {
            sent: 0,
            ok: 0,
            asked_tokens: 0,
            prompt_tokens: 0,
            cached_tokens: 0,
            completion_tokens: 0,
            events: 0,
            content_events: 0,
            without_content: 0,
            connections: 0,
            reconnects: 0,
            first: histogram(),
            between: histogram(),
            whole: histogram(),
            lateness: histogram(),
            timer_lag: histogram(),
            early: histogram(),
            workers: BTreeMap::new(),
            failures: BTreeMap::new(),
            ends: Vec::new(),
            last_end: None,
        };
        Self { start, window, counts: Mutex::new(counts) }
    }

    /// A request goes out, so long after it was due.
    pub(crate) fn sent(&self, asked_tokens: u32, lateness: Option<Duration>) {
        let mut counts = self.counts.lock();
        counts.sent += 1;
        counts.asked_tokens += u64::from(asked_tokens);
        if let Some(lateness) = lateness {
            counts.lateness.saturating_record(micros(lateness));
        }
    }

    /// A read brought `content` of `events` events; `since` is the time from the last text, or from the start of the
    /// request when this is its `first` text.
    pub(crate) fn read(&self, events: u64, content: u64, since: Duration, first: bool) {
        let mut counts = self.counts.lock();
        counts.events += events;
        counts.content_events += content;
        if content == 0 {
            return;
        }
        if first {
            counts.first.saturating_record(micros(since));
        } else {
            counts.between.saturating_record(micros(since));
        }
        if content > 1 {
            counts.between.saturating_record_n(0, content - 1);
        }
    }

    /// A request that counted from `origin` is answered.
    pub(crate) fn served(&self, origin: Instant, served: &Served) {
        let mut counts = self.counts.lock();
        counts.ok += 1;
        counts.prompt_tokens += served.usage.prompt_tokens;
        counts.cached_tokens += served.usage.cached_tokens();
        counts.completion_tokens += served.usage.completion_tokens;
        counts.without_content += u64::from(served.content_events == 0);
        let whole = micros(served.end - origin);
        counts.whole.saturating_record(whole);
        if self.window.is_some_and(|window| origin < self.start + window / 2) {
            counts.early.saturating_record(whole);
        }
        if let Some(worker) = served.worker
            && (counts.workers.len() < MAX_WORKERS || counts.workers.contains_key(&worker))
        {
            *counts.workers.entry(worker).or_default() += 1;
        }
        if self.window.is_some() {
            let slot = ((served.end - self.start).as_nanos() / SLOT.as_nanos()) as usize;
            let slot = slot.min(MAX_SLOTS - 1);
            if counts.ends.len() <= slot {
                counts.ends.resize(slot + 1, 0);
            }
            counts.ends[slot] += 1;
        }
        counts.last_end = counts.last_end.max(Some(served.end));
    }

    pub(crate) fn failed(&self, failure: Failure) {
        let mut counts = self.counts.lock();
        counts.last_end = Some(Instant::now());
        let (count, examples) = counts.failures.entry(failure.kind).or_default();
        *count += 1;
        if examples.len() < EXAMPLES && !examples.contains(&failure.message) {
            let mut message = failure.message;
            while message.len() > MAX_MESSAGE_BYTES {
                message.pop();
            }
            examples.push(message);
        }
    }

    pub(crate) fn with<T>(&self, f: impl FnOnce(&mut Counts) -> T) -> T {
        f(&mut self.counts.lock())
    }
}

impl Counts {
    /// How many requests had failed.
    pub(crate) fn failed(&self) -> u64 {
        self.failures.values().map(|(count, _)| count).sum()
    }

    /// How many requests had been answered `after` so long after the start, to 10 ms.
    pub(crate) fn ended_within(&self, after: Duration) -> u64 {
        let slots = (after.as_nanos() / SLOT.as_nanos()) as usize + 1;
        self.ends.iter().take(slots).map(|n| u64::from(*n)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_events_of_a_read_have_no_time_between_them() {
        let meter = Meter::new(Instant::now(), None);
        meter.read(1, 0, Duration::ZERO, true);
        meter.read(3, 3, Duration::from_millis(5), true);
        meter.read(1, 1, Duration::from_millis(2), false);
        meter.with(|counts| {
            assert_eq!((counts.events, counts.content_events), (5, 4));
            assert_eq!(counts.first.len(), 1);
            assert_eq!(counts.between.len(), 3);
            assert_eq!(counts.between.min(), 0);
            assert!((1990..=2010).contains(&counts.between.max()));
        });
    }

    #[test]
    fn ends_are_found_by_time() {
        let start = Instant::now();
        let meter = Meter::new(start, Some(Duration::from_secs(1)));
        for millis in [5, 500, 1500] {
            let end = start + Duration::from_millis(millis);
            meter.served(start, &Served { usage: Usage::default(), worker: Some(1), content_events: 1, end });
        }
        meter.with(|counts| {
            assert_eq!(counts.ended_within(Duration::from_secs(1)), 2);
            assert_eq!(counts.ended_within(Duration::from_secs(2)), 3);
            assert_eq!(counts.workers[&1], 3);
        });
    }

    #[test]
    fn failures_keep_a_few_different_messages() {
        let meter = Meter::new(Instant::now(), None);
        for n in 0..9 {
            meter.failed(Failure::new(FailureKind::Cut, format!("{}", n / 2)));
        }
        meter.with(|counts| {
            assert_eq!(counts.failed(), 9);
            assert_eq!(counts.failures[&FailureKind::Cut].1, ["0", "1", "2"]);
        });
    }
}
