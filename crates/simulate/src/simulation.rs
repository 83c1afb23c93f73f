//! The queue of events that takes the place of a clock.

use std::{
    cmp::{Ordering, Reverse},
    collections::BinaryHeap,
    time::Duration,
};

use dynamo_engine_api::KvCacheEventData;
use dynamo_scheduler::{NewRequest, RequestId};
use dynamo_tokens::{BlockSize, HashSeed, TokenId};
use dynamo_trace::{TraceRequest, TurnTime, Turns};

use crate::{
    Outcome, Setting, SimulateError,
    prompts::Prompts,
    recorder::Recorder,
    router::{Booking, Refusal, Routed, Router},
    worker::Worker,
};

enum Event {
    /// A request is due, by its place in the trace.
    Arrival(u32),
    /// A worker's step is due.
    Step(u32),
    /// A worker's KV events reach the router.
    Kv(u32, Vec<KvCacheEventData>),
    /// Somebody may have waited for a worker for too long.
    Impatience,
}

/// Ranks of all workers at most, as many as there may be workers: each has an engine in memory.
const MAX_RANKS: u32 = 100_000;

struct Due {
    time: Duration,
    /// Counts events, so that of several at one time the one that was foreseen first happens first.
    order: u64,
    event: Event,
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.time, self.order).cmp(&(other.time, other.order))
    }
}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}

impl Eq for Due {}

/// Runs a trace (in order of time, as [`read_trace`](dynamo_trace::read_trace) gives it) through a router and its workers.
///
/// # Errors
/// If the setting makes no sense.
pub fn simulate(requests: &[TraceRequest], setting: &Setting) -> Result<Outcome, SimulateError> {
    if setting.ranks() == 0 {
        return Err(SimulateError::flag("--workers", "give at least one, of at least one rank"));
    }
    if setting.ranks() > MAX_RANKS {
        let why = format!("workers times ranks must not be more than {MAX_RANKS}");
        return Err(SimulateError::flag("--data-parallel-size", why));
    }
    if !(setting.speedup.is_finite() && setting.speedup > 0.0) {
        return Err(SimulateError::flag("--speedup", "give a number above 0"));
    }
    let workers =
        (0..setting.ranks()).map(|_| Worker::new(&setting.engine)).collect::<Result<Vec<_>, _>>()?;
    // The engine's own check went before.
    let block_size = BlockSize::new(setting.engine.block_size)
        .ok_or_else(|| SimulateError::flag("--block-size", "give at least 1"))?;
    let turns = Turns::of(requests);
    let last = turns.starts().last().map_or(Duration::ZERO, |index| turns.due(&requests[*index as usize]));
    let run = Run {
        setting,
        requests,
        router: Router::new(setting, block_size)?,
        workers,
        prompts: Prompts::of(setting),
        recorder: Recorder::new(setting, requests.len(), last.div_f64(setting.speedup)),
        block_size: block_size.get(),
        turns,
        next_start: 0,
        events: BinaryHeap::new(),
        order: 0,
        bookings: vec![None; requests.len()],
        advances: Vec::new(),
        prompt: Vec::new(),
    };
    Ok(run.finish())
}

struct Run<'a> {
    setting: &'a Setting,
    requests: &'a [TraceRequest],
    turns: Turns,
    router: Router,
    workers: Vec<Worker>,
    prompts: Prompts,
    recorder: Recorder,
    block_size: usize,
    /// The next request that follows no other.
    next_start: usize,
    events: BinaryHeap<Reverse<Due>>,
    order: u64,
    bookings: Vec<Option<Booking>>,
    // Scratch space, kept for its memory.
    advances: Vec<crate::worker::Advance>,
    prompt: Vec<TokenId>,
}

impl Run<'_> {
    fn finish(mut self) -> Outcome {
        self.foresee_start();
        while let Some(Reverse(Due { time, event, .. })) = self.events.pop() {
            self.recorder.sample_until(time);
            match event {
                Event::Arrival(request) => self.arrive(request, time),
                Event::Step(worker) => self.step(worker, time),
                Event::Kv(worker, events) => self.router.apply(worker, &events),
                Event::Impatience => self.lose_patience(time),
            }
        }
        self.recorder.finish(self.setting, self.requests, &self.workers)
    }

    fn foresee(&mut self, time: Duration, event: Event) {
        self.order += 1;
        self.events.push(Reverse(Due { time, order: self.order, event }));
    }

    /// Starts come in order, so one of them is foreseen at a time.
    fn foresee_start(&mut self) {
        if let Some(&start) = self.turns.starts().get(self.next_start) {
            self.next_start += 1;
            let due = self.turns.due(&self.requests[start as usize]).div_f64(self.setting.speedup);
            self.foresee(due, Event::Arrival(start));
        }
    }

    fn arrive(&mut self, index: u32, now: Duration) {
        let request = &self.requests[index as usize];
        let follows = self.turns.starts().get(self.next_start.wrapping_sub(1)) != Some(&index);
        self.prompts.prompt(request, &mut self.prompt);
        self.recorder.arrived(index, self.router.class_of(self.prompt.len()), now);
        let before = self.router.waiting();
        match self.router.route(index, &self.prompt, now) {
            Ok(Routed::Booked(booking)) => self.send(index, booking, now),
            Ok(Routed::Waits(until)) => {
                self.recorder.queue_changed(before, self.router.waiting());
                self.foresee(until, Event::Impatience);
                // There may be room by the threshold of its class, if not by that of those who wait already.
                self.call_waiting(now);
            }
            Err(refusal) => self.refuse(index, reason(&refusal), now),
        }
        if !follows {
            self.foresee_start();
        }
    }

    /// Hands a request, whose prompt is in `self.prompt`, to its worker.
    fn send(&mut self, index: u32, booking: Booking, now: Duration) {
        let new = NewRequest {
            id: RequestId(u64::from(index)),
            prompt: self.prompt.clone(),
            hash_seed: HashSeed::PLAIN,
            max_new_tokens: self.prompts.answer_len(&self.requests[index as usize]) as usize,
            deadline: None,
        };
        let worker = &mut self.workers[booking.rank as usize];
        let before = worker.waiting();
        match worker.submit(new, index) {
            Ok(()) => {
                self.bookings[index as usize] = Some(booking);
                self.recorder.routed(index, booking.rank);
                self.begin(booking.rank, now, before);
            }
            Err(error) => {
                self.router.free(booking, now);
                self.refuse(index, kind_of(&error), now);
            }
        }
    }

    fn refuse(&mut self, index: u32, why: String, now: Duration) {
        self.recorder.refused(index, why);
        // A client goes on after a refusal.
        self.follow(index, now);
    }

    /// Calls those who wait for a worker, one after the other, while there is room.
    fn call_waiting(&mut self, now: Duration) {
        while let Some(index) = self.router.next_in_queue() {
            let waiting = self.router.waiting();
            self.recorder.queue_changed(waiting + 1, waiting);
            self.prompts.prompt(&self.requests[index as usize], &mut self.prompt);
            match self.router.call(&self.prompt, now) {
                Ok(booking) => self.send(index, booking, now),
                Err(refusal) => self.refuse(index, reason(&refusal), now),
            }
        }
    }

    fn lose_patience(&mut self, now: Duration) {
        while let Some(index) = self.router.next_expired(now) {
            let waiting = self.router.waiting();
            self.recorder.queue_changed(waiting + 1, waiting);
            self.refuse(index, "waited for a worker for too long".to_owned(), now);
        }
    }

    /// Lets a worker begin a step if it is idle. `waiting_before` is its queue before whatever happened.
    fn begin(&mut self, worker: u32, now: Duration, waiting_before: usize) {
        let state = &mut self.workers[worker as usize];
        let due = state.begin(now);
        self.recorder.queue_changed(waiting_before, state.waiting());
        self.recorder.live_changed(worker, state.live(), now);
        if let Some(due) = due {
            self.foresee(due, Event::Step(worker));
        }
    }

    fn step(&mut self, worker: u32, now: Duration) {
        let mut advances = std::mem::take(&mut self.advances);
        advances.clear();
        let state = &mut self.workers[worker as usize];
        let waiting = state.waiting();
        let prompts = self.prompts;
        state.complete(
            now,
            |request, place| prompts.answer(request, place),
            |advance| advances.push(advance),
        );
        let events = state.events();
        if self.router.wants_events() && !events.is_empty() {
            self.foresee(now + self.setting.event_delay, Event::Kv(worker, events));
        }
        for advance in &advances {
            let Some(booking) = self.bookings[advance.request as usize] else { continue };
            let generated = advance.usage.generated_tokens;
            let blocks = generated / self.block_size - (generated - advance.tokens) / self.block_size;
            if advance.tokens > 0 && (generated == advance.tokens || blocks > 0) {
                self.router.advance(booking, blocks, now);
            }
            self.recorder.advanced(advance, now);
            if advance.ended {
                self.router.free(booking, now);
                self.bookings[advance.request as usize] = None;
                self.follow(advance.request, now);
            }
        }
        self.advances = advances;
        self.begin(worker, now, waiting);
        self.call_waiting(now);
    }

    /// A request is over: the next turn of its session is due some time.
    fn follow(&mut self, request: u32, now: Duration) {
        let Some((next, time)) = self.turns.after(self.requests, request as usize) else { return };
        let due = match time {
            TurnTime::AfterPrevious(delay) => now + delay.div_f64(self.setting.speedup),
            TurnTime::FromStart(due) => due.div_f64(self.setting.speedup).max(now),
        };
        self.foresee(due, Event::Arrival(next as u32));
    }
}

/// A refusal without its numbers, so that equal ones are counted together.
fn kind_of(error: &dynamo_scheduler::SubmitError) -> String {
    use dynamo_scheduler::SubmitError as E;
    match error {
        E::QueueFull { .. } => "the worker's queue is full",
        E::PromptTooLong { .. } => "the prompt does not fit in the worker's cache or step",
        E::Duplicate(_) | E::EmptyPrompt | E::NothingAsked => "the request is malformed",
    }
    .to_owned()
}

/// A refusal by the router, without numbers too.
fn reason(refusal: &Refusal) -> String {
    match refusal {
        Refusal::Schedule(error) => error.to_string(),
        Refusal::Queue(rejected) => format!("the router's queue is full ({})", rejected.reason()),
    }
}
