//! Whatever the pool does: all requests end with the right tokens, and the pool is whole again.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use dynamo_tokens::{HashSeed, SequenceHash, TokenId};
use proptest::prelude::*;

use super::executor::{Launched, blocks_of, launch, reference, run};
use super::fake_pool::{Dice, FakePool};
use crate::{
    BlockChange, BlockPool, End, HoldId, NewRequest, PreemptionMode, RequestId, Scheduler, SchedulerConfig,
    StepResults, SubmitError, Verdict,
};

#[derive(Clone, Debug)]
struct Setting {
    seed: u64,
    requests: u64,
    block_size: usize,
    blocks: usize,
    windows: Vec<Option<usize>>,
    max_num_seqs: usize,
    budget: usize,
    chunked: bool,
    preemption: PreemptionMode,
    max_advance: usize,
    overlap: bool,
    lose: u64,
    fail: u64,
    aborts: bool,
    holds: bool,
    remote: bool,
}

fn settings() -> impl Strategy<Value = Setting> {
    let windows = prop_oneof![
        3 => Just(vec![None]),
        1 => Just(vec![None, Some(5)]),
        1 => Just(vec![None, Some(9), None]),
    ];
    let preemption = prop_oneof![Just(PreemptionMode::Lifo), Just(PreemptionMode::Fifo)];
    let sizes = (any::<u64>(), 1..24u64, 1..6usize, 8..40usize, windows, 1..6usize, 1..30usize);
    let modes = (any::<bool>(), preemption, 1..4usize, any::<bool>(), 0..60u64, 0..20u64);
    (sizes, modes, any::<[bool; 3]>()).prop_map(
        |(
            (seed, requests, block_size, blocks, windows, max_num_seqs, extra),
            (chunked, preemption, max_advance, overlap, lose, fail),
            [aborts, holds, remote],
        )| Setting {
            seed,
            requests,
            block_size,
            blocks,
            windows,
            max_num_seqs,
            budget: max_num_seqs + extra,
            chunked,
            preemption,
            max_advance,
            overlap,
            lose,
            fail,
            aborts,
            holds,
            remote,
        },
    )
}

struct Client {
    prompt: Vec<TokenId>,
    max_new: usize,
    tokens: Vec<TokenId>,
}

struct World {
    setting: Setting,
    scheduler: Scheduler<FakePool, ()>,
    dice: Dice,
    clients: BTreeMap<u64, Client>,
    finished: BTreeMap<u64, Option<End>>,
    holds: Vec<HoldId>,
    first_works: Vec<u64>,
    seen: BTreeSet<u64>,
    cached: BTreeSet<SequenceHash>,
    results: StepResults,
    now: Duration,
}

impl World {
    fn new(setting: Setting) -> Self {
        let mut pool = FakePool::new(setting.block_size, setting.blocks, &setting.windows, setting.seed);
        (pool.lose, pool.fail) = (setting.lose, setting.fail);
        let config = SchedulerConfig {
            max_num_seqs: setting.max_num_seqs,
            max_num_batched_tokens: setting.budget,
            chunked_prefill: setting.chunked,
            watermark: 0.05,
            preemption: setting.preemption,
            max_waiting: 12,
            max_sequence_len: 120,
            max_advance: setting.max_advance,
            load_timeout: Duration::from_millis(6),
        };
        Self {
            dice: Dice::new(setting.seed ^ 99),
            scheduler: Scheduler::new(config, pool).unwrap(),
            setting,
            clients: BTreeMap::new(),
            finished: BTreeMap::new(),
            holds: Vec::new(),
            first_works: Vec::new(),
            seen: BTreeSet::new(),
            cached: BTreeSet::new(),
            results: StepResults::default(),
            now: Duration::ZERO,
        }
    }

    /// Prompts that share beginnings.
    fn prompt(&mut self) -> Vec<TokenId> {
        let family = self.dice.below(3) as TokenId;
        let shared = self.dice.below(30) as TokenId;
        let own = 1 + self.dice.below(12) as TokenId;
        let unique = self.dice.below(1 << 20) as TokenId;
        (0..shared).map(|i| family * 100 + i).chain((0..own).map(|i| unique + i)).collect()
    }

    fn submit(&mut self, id: u64) {
        let (prompt, max_new) = (self.prompt(), 1 + self.dice.below(20) as usize);
        if self.setting.remote && self.dice.percent(50) {
            let blocks = blocks_of(&prompt, self.scheduler.pool());
            self.scheduler.pool_mut().remote.extend(blocks);
        }
        let fits = self.scheduler.max_len();
        let new = NewRequest {
            id: RequestId(id),
            prompt: prompt.clone(),
            hash_seed: HashSeed::PLAIN,
            max_new_tokens: max_new,
            deadline: None,
        };
        match self.scheduler.submit(new, ()) {
            Ok(()) => {
                let max_new = max_new.min(fits - prompt.len());
                self.clients.insert(id, Client { prompt, max_new, tokens: Vec::new() });
            }
            Err((SubmitError::QueueFull { limit }, ())) => assert!(self.scheduler.stats().waiting >= limit),
            Err((SubmitError::PromptTooLong { prompt: got, limit }, ())) => {
                assert!(got == prompt.len() && got > limit);
            }
            Err((error, ())) => panic!("{error}"),
        }
    }

    fn commit(&mut self, launched: Launched) {
        run(&mut self.scheduler, &launched, &mut self.dice, self.setting.max_advance, &mut self.results);
        let clients = &mut self.clients;
        let outcome = self.scheduler.commit(&launched.step, &self.results, self.now, |progress| {
            let client = clients.get_mut(&progress.id.0).unwrap();
            client.tokens.extend(progress.tokens);
            assert_eq!(progress.usage.generated_tokens, client.tokens.len());
            assert_eq!(progress.usage.prompt_tokens, client.prompt.len());
            assert!(progress.usage.cached_tokens < client.prompt.len() + client.tokens.len());
            Verdict::Continue
        });
        outcome.unwrap();
        self.scheduler.recycle(launched.step);
        for ended in self.scheduler.drain_ended() {
            assert!(self.finished.insert(ended.id.0, Some(ended.end)).is_none(), "ended twice");
        }
    }

    fn meddle(&mut self) {
        let live: Vec<u64> =
            self.clients.keys().filter(|id| !self.finished.contains_key(id)).copied().collect();
        if live.is_empty() {
            return;
        }
        let id = live[self.dice.below(live.len() as u64) as usize];
        if self.setting.aborts && self.dice.percent(5) {
            assert!(self.scheduler.abort(RequestId(id)).is_some());
            assert!(self.scheduler.abort(RequestId(id)).is_none());
            self.finished.insert(id, None);
        } else if self.setting.holds && self.dice.percent(10) {
            let deadline = self.now + Duration::from_millis(self.dice.below(40));
            self.holds.extend(self.scheduler.hold(RequestId(id), deadline));
        }
        if !self.holds.is_empty() && self.dice.percent(10) {
            let hold = self.holds.remove(0);
            self.scheduler.let_go(hold);
        }
    }

    fn note_step(&mut self, launched: &Launched) {
        let mut tokens = 0;
        let mut requests = BTreeSet::new();
        for work in launched.step.works() {
            assert!(work.len > 0);
            assert!(requests.insert(work.request), "a request is twice in a step");
            tokens += work.len;
            if self.seen.insert(work.request.0) {
                self.first_works.push(work.request.0);
            }
        }
        assert!(requests.len() <= self.setting.max_num_seqs);
        let alone = launched.step.works().iter().filter(|work| work.prefill).count() == 1;
        assert!(tokens <= self.setting.budget || (!self.setting.chunked && alone));
    }

    fn replay_changes(&mut self) {
        let mut changes = Vec::new();
        self.scheduler.pool_mut().take_changes(&mut changes);
        for change in changes {
            match change {
                BlockChange::Stored(block) => assert!(self.cached.insert(block.sequence_hash)),
                BlockChange::Removed(hash) => assert!(self.cached.remove(&hash)),
            }
        }
        let there: BTreeSet<_> = self.scheduler.pool().groups[0].cached.keys().copied().collect();
        assert_eq!(self.cached, there);
    }

    fn run(mut self) {
        let mut in_flight: VecDeque<Launched> = VecDeque::new();
        let depth = if self.setting.overlap { 2 } else { 1 };
        let mut submitted = 0;
        for turn in 0.. {
            assert!(turn < 50_000, "it never ends: {:?}", self.scheduler.stats());
            self.now += Duration::from_millis(1);
            self.scheduler.pool_mut().advance();
            while submitted < self.setting.requests && self.dice.percent(40) {
                submitted += 1;
                self.submit(submitted);
            }
            self.meddle();
            while in_flight.len() < depth {
                let step = self.scheduler.plan(self.now);
                if step.is_empty() {
                    self.scheduler.recycle(step);
                    break;
                }
                let launched = launch(&self.scheduler, step);
                self.note_step(&launched);
                in_flight.push_back(launched);
            }
            self.meddle();
            if let Some(launched) = in_flight.pop_front() {
                self.commit(launched);
            }
            self.replay_changes();
            let live = self.clients.len() - self.finished.len();
            if submitted == self.setting.requests && live == 0 && in_flight.is_empty() {
                break;
            }
        }
        for hold in std::mem::take(&mut self.holds) {
            self.scheduler.let_go(hold);
        }
        for _ in 0..60 {
            self.now += Duration::from_millis(1);
            self.scheduler.pool_mut().advance();
            assert!(self.scheduler.plan(self.now).is_empty());
        }
        self.check();
    }

    fn check(&self) {
        let stats = self.scheduler.stats();
        assert_eq!((stats.waiting, stats.loading, stats.running), (0, 0, 0));
        assert_eq!((stats.held_blocks, stats.prefill_tokens), (0, 0));
        assert_eq!(self.scheduler.steps_in_flight(), 0);
        self.scheduler.pool().assert_empty();
        for (id, client) in &self.clients {
            let expected = reference(&client.prompt, client.max_new);
            if self.finished[id].is_some() {
                assert_eq!(client.tokens, expected, "request {id}");
            } else {
                assert!(expected.starts_with(&client.tokens), "request {id}");
            }
        }
        if !self.setting.remote {
            assert!(self.first_works.is_sorted(), "first come, first served: {:?}", self.first_works);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn all_requests_end_with_the_right_tokens_and_the_pool_is_whole(setting in settings()) {
        World::new(setting).run();
    }
}
