//! One data-parallel rank: a scheduler, a timetable, and the loop that joins them.

use std::sync::Arc;
use std::time::Duration;

use dynamo_engine_api::{ActiveLoad, DpRank, EngineObserver, EngineOutput, Submission};
use dynamo_scheduler::{BlockChange, BlockPool, NewRequest, RequestId, Scheduler, Step, StepResults};
use dynamo_tokens::{HashSeed, TokenId};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::disaggregation::promised_tokens;
use crate::inbox::{Asked, Directory, Inbox};
use crate::kv_report::events_of;
use crate::stop::StopRules;
use crate::stream::{Stream, refused_by, shut_down};
use crate::{MockStats, MockerConfig, SimPool, Timetable, TimingModel, TokenState};

/// Tokens after which connections have their turn, though nothing was prefilled and nobody is done: some 20 µs, and
/// enough to be worth a turn of the runtime, which costs as much as ten tokens.
const TOKENS_PER_TURN: usize = 64;

/// What a rank shares with the engine's handle.
pub(crate) struct Shared {
    pub(crate) inbox: Inbox,
    pub(crate) stats: Mutex<MockStats>,
}

/// The task of one rank.
pub(crate) struct Rank {
    dp_rank: DpRank,
    config: Arc<MockerConfig>,
    scheduler: Scheduler<SimPool, Stream>,
    timing: TimingModel,
    timetable: Timetable,
    shared: Arc<Shared>,
    directory: Arc<Directory>,
    observer: Arc<dyn EngineObserver>,
    origin: Instant,
    // Scratch space, kept for its memory.
    asked: Asked,
    results: StepResults,
    output: EngineOutput,
    changes: Vec<BlockChange>,
    tokens: Vec<TokenId>,
    wants_tokens: bool,
    reported: ActiveLoad,
    steps: u64,
    generated_tokens: u64,
    tokens_this_turn: usize,
}

/// The engine is gone.
struct Closed;

impl Rank {
    pub(crate) fn new(
        dp_rank: DpRank,
        config: Arc<MockerConfig>,
        mut scheduler: Scheduler<SimPool, Stream>,
        shared: Arc<Shared>,
        directory: Arc<Directory>,
        observer: Arc<dyn EngineObserver>,
        origin: Instant,
    ) -> Self {
        let wants_tokens = observer.wants_tokens();
        if wants_tokens {
            scheduler.pool_mut().keep_tokens();
        }
        Self {
            dp_rank,
            timing: TimingModel::new(config.speedup_ratio).with_decode_speedup(config.decode_speedup_ratio),
            config,
            scheduler,
            timetable: Timetable::default(),
            shared,
            directory,
            observer,
            origin,
            asked: Asked::default(),
            results: StepResults::default(),
            output: EngineOutput::default(),
            changes: Vec::new(),
            tokens: Vec::new(),
            wants_tokens,
            reported: ActiveLoad { dp_rank, ..ActiveLoad::default() },
            steps: 0,
            generated_tokens: 0,
            tokens_this_turn: 0,
        }
    }

    /// Serves until the engine is dropped.
    pub(crate) async fn run(mut self) {
        // `Closed` is how it ends; there is nobody to tell.
        let _ = self.serve().await;
    }

    async fn serve(&mut self) -> Result<(), Closed> {
        let ready_at = self.origin + self.config.startup();
        while Instant::now() < ready_at {
            self.wait_until(ready_at).await?;
        }
        self.timetable.idle_until(self.now());
        self.report();
        loop {
            self.take_asked()?;
            let now = self.now();
            self.scheduler.pool_mut().set_now(now);
            let step = self.scheduler.plan(now);
            if step.is_empty() {
                self.scheduler.recycle(step);
                self.report();
                self.idle().await?;
                continue;
            }
            let pool = self.scheduler.pool();
            let share = pool.active_blocks() as f64 / pool.capacity(0) as f64;
            let decodes = step.works().iter().any(|work| work.samples);
            self.timetable.begin(self.timing.step(step.prefill_tokens(), decodes, share));
            self.wait().await?;
            self.compute(&step);
            let first_tokens = step.prefill_tokens() > 0;
            self.scheduler.recycle(step);
            self.report();
            if first_tokens || self.tokens_this_turn >= TOKENS_PER_TURN {
                self.tokens_this_turn = 0;
                tokio::task::yield_now().await;
            }
        }
    }

    /// Since the engine was started. An engine without delays is always at the start, and saves asking the clock.
    fn now(&self) -> Duration {
        if self.timing.is_instant() { Duration::ZERO } else { self.origin.elapsed() }
    }

    /// There is nothing to compute: waits until something is asked, or blocks arrive.
    async fn idle(&mut self) -> Result<(), Closed> {
        let Some(due) = self.scheduler.pool().next_load_due() else {
            self.shared.inbox.asked().await;
            self.timetable.idle_until(self.now());
            return Ok(());
        };
        // What is due by now arrives in the next plan, so this does not go round and round.
        if self.now() < due {
            self.wait_until(self.origin + due).await?;
        }
        self.timetable.idle_until(due.min(self.now()));
        Ok(())
    }

    /// Waits until the step that was begun is due.
    async fn wait(&mut self) -> Result<(), Closed> {
        while self.timetable.worth_sleeping(self.now()) {
            self.wait_until(self.origin + self.timetable.due()).await?;
        }
        Ok(())
    }

    /// Sleeps, but hears what is asked, and returns when something was.
    async fn wait_until(&mut self, when: Instant) -> Result<(), Closed> {
        tokio::select! {
            biased;
            () = self.shared.inbox.asked() => {
                self.take_asked()?;
                self.report();
            }
            () = tokio::time::sleep_until(when) => {}
        }
        Ok(())
    }

    fn take_asked(&mut self) -> Result<(), Closed> {
        let mut asked = std::mem::take(&mut self.asked);
        self.shared.inbox.take(&mut asked);
        if asked.closed {
            return Err(Closed);
        }
        for submission in asked.submissions.drain(..) {
            self.accept(submission);
        }
        for (key, reason) in asked.aborts.drain(..) {
            if self.scheduler.abort(RequestId(key.0)).is_some() {
                self.scheduler.pool_mut().withdraw(RequestId(key.0));
                tracing::debug!(key = key.0, ?reason, "request taken back");
                self.directory.leave(key);
            }
        }
        if std::mem::take(&mut asked.clear_cache) {
            self.scheduler.pool_mut().clear_idle();
        }
        self.asked = asked;
        Ok(())
    }

    fn accept(&mut self, submission: Submission) {
        let Submission { key, request, sink, .. } = submission;
        if self.directory.is_taken_back(key) {
            self.directory.leave(key);
            return;
        }
        let state =
            TokenState::new(self.config.seed, request.sampling_options.seed).after_all(&request.token_ids);
        let stream = Stream { key, sink, state, stop: StopRules::new(&request), generated: 0 };
        let routing = &request.routing;
        let promised = request.prefill_result.as_ref().map_or(0, |result| {
            promised_tokens(result).unwrap_or_else(|| {
                tracing::debug!(
                    key = key.0,
                    "the prefill worker said nothing of its blocks: they are computed"
                );
                0
            })
        });
        let new = NewRequest {
            id: RequestId(key.0),
            hash_seed: HashSeed::new(routing.lora_name.as_deref(), routing.cache_salt.as_deref()),
            max_new_tokens: request.stop_conditions.max_tokens.map_or(usize::MAX, |tokens| tokens as usize),
            prompt: request.token_ids,
            deadline: None,
        };
        if let Err((error, mut stream)) = self.scheduler.submit(new, stream) {
            stream.sink.refuse(refused_by(&error));
            self.directory.leave(key);
            return;
        }
        let pool = self.scheduler.pool_mut();
        let blocks = promised / pool.block_size().get();
        pool.promise(RequestId(key.0), blocks);
    }

    /// Gives every request of the step its token, and sends them off.
    fn compute(&mut self, step: &Step) {
        let Self { scheduler, results, output, config, directory, .. } = self;
        results.clear();
        for work in step.works() {
            match scheduler.payload_mut(work) {
                Some(stream) if work.samples => {
                    let (token, stops) = stream.next(&config.vocabulary, config.draw_end_tokens);
                    results.push(work.len, &[token], stops);
                }
                _ => results.push(work.len, &[], false),
            }
        }
        let mut generated = 0;
        // No request has a deadline here, so the time does not matter: the worker keeps them, and takes requests back.
        scheduler
            .commit(step, results, Duration::ZERO, |progress| {
                generated += progress.tokens.len() as u64;
                Stream::send(progress, config, output)
            })
            .expect("each step is committed once, with a result per work");
        for work in step.works().iter().filter(|work| work.samples) {
            if let Some(stream) = scheduler.payload_mut(work) {
                stream.sink.flush();
            }
        }
        for mut ended in scheduler.drain_ended() {
            ended.payload.sink.flush();
            directory.leave(ended.payload.key);
        }
        self.steps += 1;
        self.generated_tokens += generated;
        self.tokens_this_turn += generated as usize;
    }

    /// Tells of what changed.
    fn report(&mut self) {
        let pool = self.scheduler.pool_mut();
        if pool.has_changes() {
            pool.take_changes(&mut self.changes);
            let events = events_of(&mut self.changes);
            if self.wants_tokens {
                pool.take_tokens(&mut self.tokens);
                self.observer.kv_events_with_tokens(self.dp_rank, events, &self.tokens);
                self.tokens.clear();
            } else {
                self.observer.kv_events(self.dp_rank, events);
            }
        }
        let scheduler = self.scheduler.stats();
        let pool = self.scheduler.pool();
        let stats = MockStats {
            live: 0,
            running: (scheduler.running + scheduler.loading) as u64,
            waiting: scheduler.waiting as u64,
            used_blocks: pool.active_blocks() as u64,
            held_blocks: scheduler.held_blocks as u64,
            cached_blocks: pool.cached_blocks() as u64,
            total_blocks: pool.capacity(0) as u64,
            preemptions: scheduler.preemptions,
            steps: self.steps,
            generated_tokens: self.generated_tokens,
        };
        let load = ActiveLoad {
            worker_id: 0,
            dp_rank: self.dp_rank,
            active_decode_blocks: Some(stats.used_blocks),
            active_prefill_tokens: Some(scheduler.prefill_tokens as u64),
            kv_used_blocks: Some(pool.used_blocks() as u64),
            kv_total_blocks: Some(stats.total_blocks),
            waiting_requests: stats.waiting,
            running_requests: stats.running,
        };
        *self.shared.stats.lock() = stats;
        if load != self.reported {
            self.reported = load;
            self.observer.load(load);
        }
    }
}

impl Drop for Rank {
    /// Also when the task is cancelled: nobody may wait for it any more.
    fn drop(&mut self) {
        for mut submission in self.shared.inbox.close() {
            submission.sink.refuse(shut_down());
        }
        self.directory.leave_all(self.dp_rank);
        let mut stats = self.shared.stats.lock();
        (stats.running, stats.waiting, stats.used_blocks, stats.held_blocks) = (0, 0, 0, 0);
    }
}
