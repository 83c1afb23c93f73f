//! A worker in virtual time: the simulated engine's scheduler, pool and timing model, without its task and its sleeping.

use std::time::Duration;

use dynamo_engine_api::KvCacheEventData;
use dynamo_mocker::{MockConfigError, MockerConfig, SimPool, Timetable, TimingModel, events_of};
use dynamo_scheduler::{
    BlockChange, BlockPool, End, NewRequest, Scheduler, Step, StepResults, SubmitError, Usage, Verdict,
};
use dynamo_tokens::{BlockSize, TokenId};

/// A step in which a request came forward.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Advance {
    /// Which one.
    pub(crate) request: u32,
    /// How many tokens it got.
    pub(crate) tokens: usize,
    /// How far it is.
    pub(crate) usage: Usage,
    /// Whether that was all.
    pub(crate) ended: bool,
}

pub(crate) struct Worker {
    scheduler: Scheduler<SimPool, u32>,
    timing: TimingModel,
    timetable: Timetable,
    step: Option<Step>,
    results: StepResults,
    changes: Vec<BlockChange>,
}

impl Worker {
    pub(crate) fn new(config: &MockerConfig) -> Result<Self, MockConfigError> {
        config.validate()?;
        let block_size = BlockSize::new(config.block_size).ok_or(MockConfigError::Zero("block_size"))?;
        let pool = SimPool::new(block_size, config.num_gpu_blocks, config.enable_prefix_caching);
        Ok(Self {
            scheduler: Scheduler::new(config.scheduler(), pool)?,
            timing: TimingModel::new(config.speedup_ratio).with_decode_speedup(config.decode_speedup_ratio),
            timetable: Timetable::default(),
            step: None,
            results: StepResults::default(),
            changes: Vec::new(),
        })
    }

    /// Queues a request.
    pub(crate) fn submit(&mut self, new: NewRequest, request: u32) -> Result<(), SubmitError> {
        self.scheduler.submit(new, request).map_err(|(error, _)| error)
    }

    /// Begins a step unless one is being computed or there is nothing to do; returns when it is due.
    pub(crate) fn begin(&mut self, now: Duration) -> Option<Duration> {
        if self.step.is_some() {
            return None;
        }
        let step = self.scheduler.plan(now);
        if step.is_empty() {
            self.scheduler.recycle(step);
            return None;
        }
        let pool = self.scheduler.pool();
        let share = pool.active_blocks() as f64 / pool.capacity(0) as f64;
        let decodes = step.works().iter().any(|work| work.samples);
        self.timetable.idle_until(now);
        self.timetable.begin(self.timing.step(step.prefill_tokens(), decodes, share));
        self.step = Some(step);
        Some(self.timetable.due())
    }

    /// The step that was begun is due. `answer` gives a request's token at a place, `on_advance` hears of each that came
    /// forward.
    pub(crate) fn complete(
        &mut self,
        now: Duration,
        answer: impl Fn(u32, usize) -> TokenId,
        mut on_advance: impl FnMut(Advance),
    ) {
        let Some(step) = self.step.take() else { return };
        self.results.clear();
        for work in step.works() {
            let place = self.scheduler.usage(work).map(|usage| usage.generated_tokens);
            match (self.scheduler.payload_mut(work), place) {
                (Some(request), Some(place)) if work.samples => {
                    self.results.push(work.len, &[answer(*request, place)], false);
                }
                _ => self.results.push(work.len, &[], false),
            }
        }
        let committed = self.scheduler.commit(&step, &self.results, now, |progress| {
            on_advance(Advance {
                request: *progress.payload,
                tokens: progress.tokens.len(),
                usage: progress.usage,
                ended: progress.end.is_some(),
            });
            Verdict::Continue
        });
        committed.expect("each step is committed once, with a result per work");
        self.scheduler.drain_ended().for_each(|ended| debug_assert_eq!(ended.end, End::Length));
        self.scheduler.recycle(step);
    }

    /// What changed in the cache since the last call, as the events that a worker sends.
    pub(crate) fn events(&mut self) -> Vec<KvCacheEventData> {
        let pool = self.scheduler.pool_mut();
        if !pool.has_changes() {
            return Vec::new();
        }
        pool.take_changes(&mut self.changes);
        events_of(&mut self.changes)
    }

    /// Requests that wait to be admitted.
    pub(crate) fn waiting(&self) -> usize {
        self.scheduler.stats().waiting
    }

    /// Requests that wait or are computed.
    pub(crate) fn live(&self) -> usize {
        let stats = self.scheduler.stats();
        stats.waiting + stats.running + stats.loading
    }

    /// Times that a request was preempted.
    pub(crate) fn preemptions(&self) -> u64 {
        self.scheduler.stats().preemptions
    }
}
