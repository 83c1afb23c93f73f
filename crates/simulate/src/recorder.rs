//! What is written down while a run goes on.

use std::{collections::BTreeMap, time::Duration};

use dynamo_kv_router::ClassId;
use dynamo_trace::{Distribution, TraceRequest, cached_share};
use hdrhistogram::Histogram;

use crate::{
    Balance, ClassOutcome, Outcome, Queue, Sample, Setting,
    worker::{Advance, Worker},
};

/// Samples while requests come: enough for a screen's width.
const SAMPLES: u32 = 200;
/// Samples in all: a run that takes far longer than its requests came for is sampled no further.
const MAX_SAMPLES: usize = 1000;
/// Times are kept to three digits, up to this many microseconds: a day.
const LONGEST_MICROS: u64 = 86_400_000_000;
/// The share of requests that must be answered in time.
const SERVED: f64 = 0.98;
/// The usual time of an answer is the median of the first so many of all.
const EARLY_SHARE: f64 = 0.1;

#[derive(Clone, Copy, Default)]
struct Times {
    arrived: Duration,
    /// The latest token.
    token: Duration,
    ended: Option<Duration>,
    class: ClassId,
}

/// What is written down of one policy class.
struct ClassRecord {
    requests: u64,
    refused: u64,
    first_token: Histogram<u64>,
}

/// Requests on one worker, and their sum over time since the last sample.
#[derive(Clone, Copy, Default)]
struct Live {
    now: u32,
    changed: Duration,
    request_seconds: f64,
}

impl Live {
    fn until(&mut self, time: Duration) {
        self.request_seconds += f64::from(self.now) * (time - self.changed).as_secs_f64();
        self.changed = time;
    }

    fn take_mean(&mut self, time: Duration, period: Duration) -> f64 {
        self.until(time);
        std::mem::take(&mut self.request_seconds) / period.as_secs_f64()
    }
}

pub(crate) struct Recorder {
    times: Vec<Times>,
    by_worker: Vec<u64>,
    requests: u64,
    refused: BTreeMap<String, u64>,
    first_token: Histogram<u64>,
    /// By id.
    classes: Vec<ClassRecord>,
    between_tokens: Histogram<u64>,
    whole: Histogram<u64>,
    prompt_tokens: u64,
    cached_tokens: u64,
    tokens: u64,
    waiting: u64,
    max_waiting: u64,
    last_arrival: Duration,
    samples: Vec<Sample>,
    sample_period: Duration,
    /// Prompt and cached tokens since the last sample.
    since: (u64, u64),
    live: Vec<Live>,
    end: Duration,
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST_MICROS, 3).expect("three digits up to a day are possible")
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(LONGEST_MICROS)
}

impl Recorder {
    /// For so many requests, the last of which is foreseen to come after `window`.
    pub(crate) fn new(setting: &Setting, requests: usize, window: Duration) -> Self {
        Self {
            times: vec![Times::default(); requests],
            by_worker: vec![0; setting.ranks() as usize],
            requests: 0,
            refused: BTreeMap::new(),
            first_token: histogram(),
            classes: (0..setting.kv.queue.class_count())
                .map(|_| ClassRecord { requests: 0, refused: 0, first_token: histogram() })
                .collect(),
            between_tokens: histogram(),
            whole: histogram(),
            prompt_tokens: 0,
            cached_tokens: 0,
            tokens: 0,
            waiting: 0,
            max_waiting: 0,
            last_arrival: Duration::ZERO,
            samples: Vec::new(),
            sample_period: (window / SAMPLES).max(Duration::from_micros(1)),
            since: (0, 0),
            live: vec![Live::default(); setting.ranks() as usize],
            end: Duration::ZERO,
        }
    }

    pub(crate) fn arrived(&mut self, request: u32, class: ClassId, now: Duration) {
        let times = &mut self.times[request as usize];
        (times.arrived, times.class) = (now, class);
        self.requests += 1;
        self.classes[class.index()].requests += 1;
        self.last_arrival = now;
    }

    pub(crate) fn refused(&mut self, request: u32, why: String) {
        self.classes[self.times[request as usize].class.index()].refused += 1;
        *self.refused.entry(why).or_default() += 1;
    }

    pub(crate) fn routed(&mut self, request: u32, worker: u32) {
        debug_assert!(self.times[request as usize].ended.is_none());
        self.by_worker[worker as usize] += 1;
    }

    /// One worker's queue, or the router's, had so many, and has so many now.
    pub(crate) fn queue_changed(&mut self, before: usize, after: usize) {
        self.waiting = self.waiting + after as u64 - before as u64;
        self.max_waiting = self.max_waiting.max(self.waiting);
    }

    /// A worker has so many requests from now on.
    pub(crate) fn live_changed(&mut self, worker: u32, live: usize, now: Duration) {
        let state = &mut self.live[worker as usize];
        state.until(now);
        state.now = live as u32;
    }

    pub(crate) fn advanced(&mut self, advance: &Advance, now: Duration) {
        let times = &mut self.times[advance.request as usize];
        let usage = advance.usage;
        self.tokens += advance.tokens as u64;
        if advance.tokens > 0 {
            if usage.generated_tokens == advance.tokens {
                let waited = micros(now - times.arrived);
                self.first_token.saturating_record(waited);
                self.classes[times.class.index()].first_token.saturating_record(waited);
                let (prompt, cached) = (usage.prompt_tokens as u64, usage.cached_tokens as u64);
                self.prompt_tokens += prompt;
                self.cached_tokens += cached;
                self.since = (self.since.0 + prompt, self.since.1 + cached);
            } else {
                self.between_tokens.saturating_record(micros(now - times.token));
            }
            times.token = now;
        }
        if advance.ended {
            times.ended = Some(now);
            self.whole.saturating_record(micros(now - times.arrived));
            self.end = self.end.max(now);
        }
    }

    /// Takes the samples that were due before `now`.
    pub(crate) fn sample_until(&mut self, now: Duration) {
        loop {
            let due = self.sample_period * self.samples.len() as u32;
            if due > now || self.samples.len() >= MAX_SAMPLES {
                return;
            }
            let (prompt, cached) = std::mem::take(&mut self.since);
            self.samples.push(Sample {
                seconds: due.as_secs_f64(),
                waiting: self.waiting,
                live: self.live.iter_mut().map(|live| live.take_mean(due, self.sample_period)).collect(),
                cached_share: (prompt > 0).then(|| cached as f64 / prompt as f64),
            });
        }
    }

    /// How many were answered in the time in which requests came, or in the usual time of an answer after.
    fn served(&self) -> u64 {
        let early = ((self.times.len() as f64 * EARLY_SHARE).ceil() as usize).max(1);
        let lengths = self.times.iter().take(early).filter_map(|times| Some(times.ended? - times.arrived));
        let mut lengths: Vec<Duration> = lengths.collect();
        lengths.sort_unstable();
        let usual = lengths.get(lengths.len() / 2).copied().unwrap_or_default();
        let limit = self.last_arrival + usual;
        self.times.iter().filter(|times| times.ended.is_some_and(|ended| ended <= limit)).count() as u64
    }

    pub(crate) fn finish(self, setting: &Setting, requests: &[TraceRequest], workers: &[Worker]) -> Outcome {
        let seconds = self.end.as_secs_f64();
        let per_second = |count: u64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
        let window = self.last_arrival.as_secs_f64();
        let served_share = self.served() as f64 / self.requests.max(1) as f64;
        let all_blocks = setting.ranks() as usize * setting.engine.num_gpu_blocks as usize;
        let trace_blocks =
            all_blocks * setting.engine.block_size as usize / setting.trace_block_tokens as usize;
        let prompts = requests.iter().map(|request| request.hash_ids.as_slice());
        let waiting: u64 = self.samples.iter().map(|sample| sample.waiting).sum();
        let routed: u64 = self.by_worker.iter().sum();
        let mean = routed as f64 / setting.ranks() as f64;
        let over_mean =
            |count: Option<&u64>| count.map_or(0.0, |count| *count as f64 / mean.max(f64::MIN_POSITIVE));
        let names = setting.kv.queue.class_names().map(|(_, name)| name.to_owned());
        let of_class = |(name, class): (String, &ClassRecord)| ClassOutcome {
            name,
            requests: class.requests,
            refused: class.refused,
            first_token: Distribution::of(&class.first_token),
        };
        let mut classes: Vec<ClassOutcome> = names.zip(&self.classes).map(of_class).collect();
        if classes.len() == 1 {
            // It is all that there is.
            classes.clear();
        }
        Outcome {
            classes,
            mode: setting.mode,
            load: 1.0,
            requests: self.requests,
            answered: self.whole.len(),
            refused: self.refused,
            seconds,
            offered_per_second: if window > 0.0 { self.requests as f64 / window } else { 0.0 },
            requests_per_second: per_second(self.whole.len()),
            tokens_per_second: per_second(self.tokens),
            served_share,
            saturated: served_share < SERVED,
            prompt_tokens: self.prompt_tokens,
            cached_tokens: self.cached_tokens,
            cached_share: self.cached_tokens as f64 / self.prompt_tokens.max(1) as f64,
            cached_share_limit: cached_share(prompts, Some(trace_blocks)),
            first_token: Distribution::of(&self.first_token),
            between_tokens: Distribution::of(&self.between_tokens),
            whole: Distribution::of(&self.whole),
            balance: Balance {
                mean,
                min_over_mean: over_mean(self.by_worker.iter().min()),
                max_over_mean: over_mean(self.by_worker.iter().max()),
                requests: self.by_worker,
            },
            queue: Queue { mean: waiting as f64 / self.samples.len().max(1) as f64, max: self.max_waiting },
            preemptions: workers.iter().map(Worker::preemptions).sum(),
            samples: self.samples,
        }
    }
}
