use std::time::Duration;

use dynamo_engine_api::{ExternalBlockHash, KvCacheEventData, StoredBlock};
use dynamo_tokens::{HashSeed, TokenSequence};

use super::*;
use crate::{KvIndex, SlotLoad};

const FOUR: BlockSize = BlockSize::new(4).unwrap();

/// An index and a scheduler with the same workers, wired as a frontend does it.
struct Router {
    index: KvIndex,
    scheduler: KvScheduler,
    matches: MatchBuffer,
    now: Instant,
}

impl Router {
    fn new(config: KvRouterConfig, workers: u64) -> Self {
        let mut router = Self {
            index: KvIndex::default(),
            scheduler: KvScheduler::new(config, FOUR, 1).unwrap(),
            matches: MatchBuffer::default(),
            now: Instant::now(),
        };
        for worker_id in 0..workers {
            router.add_worker(worker_id, 1);
        }
        router
    }

    fn add_worker(&mut self, worker_id: WorkerId, epoch: u64) {
        let slots = self.index.add_worker(worker_id, epoch, 0..1, None).unwrap();
        assert!(self.scheduler.set_worker(worker_id, epoch, &slots, false));
    }

    fn route(&mut self, tokens: std::ops::Range<u32>) -> Reservation {
        let prompt = TokenSequence::new(tokens.collect(), FOUR, HashSeed::PLAIN);
        self.index.find_matches(prompt.local_hashes(), &mut self.matches);
        let select = SelectRequest { isl_tokens: prompt.tokens().len(), ..SelectRequest::default() };
        let prompt_blocks = prompt.sequence_hashes();
        let request = ScheduleRequest { prompt_blocks, expected_output_tokens: None, select };
        self.scheduler.choose_and_reserve(&request, &self.matches, self.now).unwrap()
    }

    /// The chosen worker computes the prompt and caches it.
    fn serve(&mut self, tokens: std::ops::Range<u32>) -> Reservation {
        let reservation = self.route(tokens.clone());
        let prompt = TokenSequence::new(tokens.collect(), FOUR, HashSeed::PLAIN);
        let hashes = prompt.sequence_hashes().iter().zip(prompt.local_hashes());
        let blocks = hashes
            .map(|(name, &local)| StoredBlock { block_hash: ExternalBlockHash(name.0), tokens_hash: local })
            .collect();
        let stored = KvCacheEventData::Stored { parent_hash: None, blocks };
        self.index.apply(reservation.selection.worker, 1, &stored).unwrap();
        reservation
    }

    fn assert_idle(&self) {
        assert!(self.scheduler.worker_loads().all(|(_, load)| load == SlotLoad::default()));
        assert_eq!((self.scheduler.active_requests(), self.scheduler.tracked_blocks()), (0, 0));
    }
}

#[test]
fn repeats_of_a_prompt_on_an_idle_stack_go_to_one_worker() {
    let mut router = Router::new(KvRouterConfig::REFERENCE, 8);
    let first = router.serve(0..50);
    assert_eq!(first.selection.overlap_blocks, 0);
    router.scheduler.free(first.id, router.now);
    for _ in 0..20 {
        let again = router.serve(0..50);
        assert_eq!(again.selection.worker, first.selection.worker);
        assert_eq!(again.selection.overlap_blocks, 12);
        router.scheduler.mark_prefill_completed(again.id, router.now);
        router.scheduler.free(again.id, router.now);
    }
    router.assert_idle();
}

#[test]
fn distinct_prompts_at_once_spread_evenly() {
    let mut router = Router::new(KvRouterConfig::REFERENCE, 4);
    let reservations: Vec<_> = (0..40).map(|i| router.route(i * 1000..i * 1000 + 64)).collect();
    for (_, load) in router.scheduler.worker_loads() {
        assert_eq!(load, SlotLoad { prefill_tokens: 640, decode_blocks: 160.0, requests: 10 });
    }
    for reservation in reservations {
        router.scheduler.free(reservation.id, router.now);
    }
    router.assert_idle();
}

#[test]
fn a_new_incarnation_or_a_removal_drops_what_ran_there() {
    let mut router = Router::new(KvRouterConfig::REFERENCE, 1);
    let lost = router.serve(0..64);
    router.add_worker(0, 2);
    router.assert_idle();
    assert!(!router.scheduler.free(lost.id, router.now));
    assert_eq!(router.route(0..64).selection.overlap_blocks, 0, "its cache is empty");
    assert!(!router.scheduler.set_worker(0, 1, &[], true), "an older record changes nothing");
    assert_eq!(router.scheduler.ranks(0).collect::<Vec<_>>(), [0]);
    router.scheduler.remove_worker(0);
    router.assert_idle();
    let none = router.scheduler.choose(&ScheduleRequest::default(), &router.matches, router.now);
    assert_eq!(none, Err(SelectError::NoEndpoints));
}

#[test]
fn a_changed_record_keeps_what_runs_there() {
    let mut router = Router::new(KvRouterConfig::REFERENCE, 2);
    let running = router.route(0..64);
    let WorkerRank { worker_id, .. } = running.selection.worker;
    router.scheduler.set_overloaded(running.selection.worker, true);
    let slots = router.index.worker_slots(worker_id);
    router.scheduler.set_worker(worker_id, 1, &slots, true);
    assert_eq!(router.scheduler.active_requests(), 1);
    assert!(router.scheduler.candidates().iter().any(|candidate| candidate.draining && candidate.overloaded));
    for _ in 0..10 {
        assert_ne!(router.route(0..64).selection.worker.worker_id, worker_id);
    }
    router.scheduler.set_draining(worker_id, false);
    router.scheduler.set_overloaded(running.selection.worker, false);
    assert_eq!(router.route(1000..1064).selection.worker.worker_id, worker_id, "now the less busy one");
}

#[test]
fn settings_decide_which_blocks_count() {
    let reference = KvRouterConfig::REFERENCE;
    let loads = |config| {
        let mut router = Router::new(config, 1);
        let ids = [router.route(0..64).id, router.route(0..64).id];
        router.scheduler.add_output_block(ids[0], router.now);
        let load = router.scheduler.worker_loads().next().unwrap().1;
        router.scheduler.free(ids[0], router.now);
        router.scheduler.free(ids[1], router.now);
        router.assert_idle();
        load.decode_blocks
    };
    assert_eq!(loads(reference.clone()), 16.0);
    assert_eq!(loads(KvRouterConfig { track_output_blocks: true, ..reference.clone() }), 17.0);
    assert_eq!(loads(KvRouterConfig { assume_kv_reuse: false, ..reference.clone() }), 32.0);
    assert_eq!(loads(KvRouterConfig { track_active_blocks: false, ..reference }), 0.0);
}

#[test]
fn potential_loads_and_expiry_are_seen_from_outside() {
    let mut router = Router::new(KvRouterConfig::REFERENCE, 2);
    let running = router.serve(0..64);
    let prompt = TokenSequence::new((0..64).collect(), FOUR, HashSeed::PLAIN);
    router.index.find_matches(prompt.local_hashes(), &mut router.matches);
    let loads = router.scheduler.potential_loads(prompt.sequence_hashes(), 64, &router.matches);
    let there = loads.iter().find(|load| load.worker == running.selection.worker).unwrap();
    let elsewhere = loads.iter().find(|load| load.worker != running.selection.worker).unwrap();
    assert_eq!(
        (there.potential_prefill_tokens, there.potential_decode_blocks, there.active_requests),
        (64, 16.0, 1)
    );
    assert_eq!((elsewhere.potential_prefill_tokens, elsewhere.potential_decode_blocks), (64, 16.0));
    assert_eq!(router.scheduler.expire(router.now + Duration::from_secs(301)), 1);
    router.assert_idle();
}

#[test]
fn a_rank_over_a_busy_threshold_takes_nothing_until_it_is_under_it() {
    let mut router = Router::new(KvRouterConfig::REFERENCE, 2);
    let busy = BusyThresholds { active_prefill_tokens: Some(60), ..BusyThresholds::NONE };
    router.scheduler.set_busy_thresholds(busy).unwrap();
    let first = router.route(0..64);
    let second = router.route(0..64);
    assert_ne!(first.selection.worker, second.selection.worker);
    let request = ScheduleRequest::default();
    let none = router.scheduler.choose_and_reserve(&request, &router.matches, router.now);
    assert_eq!(none, Err(SelectError::AllEligibleWorkersOverloaded.into()));
    assert_eq!(router.scheduler.eligible(&request.select).count(), 0);
    router.scheduler.mark_prefill_completed(first.id, router.now);
    assert_eq!(router.route(100..164).selection.worker, first.selection.worker);
    assert!(
        router
            .scheduler
            .set_busy_thresholds(BusyThresholds { active_decode_blocks: Some(2.0), ..busy })
            .is_err()
    );
    assert_eq!(router.scheduler.busy_thresholds(), busy);
}

#[test]
fn requests_wait_while_all_that_may_serve_them_are_beyond_the_queue_threshold() {
    let queue = crate::QueueConfig { threshold: Some(0.5), ..crate::QueueConfig::OFF };
    let mut router = Router::new(KvRouterConfig { queue, ..KvRouterConfig::REFERENCE }, 2);
    let limits = crate::RankLimits { max_num_batched_tokens: Some(100), ..crate::RankLimits::default() };
    for worker_id in [0, 1] {
        router.scheduler.set_profile(worker_id, WorkerProfile { limits, ..WorkerProfile::default() });
    }
    let anyone = SelectRequest::default();
    let first = router.route(0..64);
    assert!(!router.scheduler.must_wait(&anyone, crate::ClassId::DEFAULT));
    let pinned = SelectRequest { pinned_worker: Some(first.selection.worker.worker_id), ..anyone };
    assert!(
        router.scheduler.must_wait(&pinned, crate::ClassId::DEFAULT),
        "its worker has 64 of 50 tokens outstanding"
    );
    router.route(200..264);
    assert!(router.scheduler.must_wait(&anyone, crate::ClassId::DEFAULT));
    assert!(
        !router.scheduler.must_wait(&SelectRequest { excluded: &[0, 1], ..anyone }, crate::ClassId::DEFAULT),
        "for whom?"
    );
    router.scheduler.mark_prefill_completed(first.id, router.now);
    assert!(
        !router.scheduler.must_wait(&anyone, crate::ClassId::DEFAULT)
            && !router.scheduler.must_wait(&pinned, crate::ClassId::DEFAULT)
    );
}

#[test]
fn requests_may_set_for_themselves_what_counts() {
    let mut router = Router::new(KvRouterConfig::REFERENCE, 1);
    let prompt = TokenSequence::new((0..64).collect(), FOUR, HashSeed::PLAIN);
    let overrides = crate::RouterOverrides {
        assume_kv_reuse: Some(false),
        track_prefill_tokens: Some(false),
        ..crate::RouterOverrides::default()
    };
    let select = SelectRequest { isl_tokens: 64, overrides, ..SelectRequest::default() };
    let request =
        ScheduleRequest { prompt_blocks: prompt.sequence_hashes(), expected_output_tokens: None, select };
    for _ in 0..2 {
        router.scheduler.choose_and_reserve(&request, &router.matches, router.now).unwrap();
    }
    let load = router.scheduler.worker_loads().next().unwrap().1;
    assert_eq!(load, SlotLoad { prefill_tokens: 0, decode_blocks: 32.0, requests: 2 });
}

/// Two workers that have shown that they compute ten tokens in a millisecond. Then 0 gets a prompt of 1,000 tokens, 1 one
/// of 800 tokens 50 ms later, and 45 ms pass.
fn computing(prefill_load_model: crate::PrefillLoadModel) -> Router {
    let queue = crate::QueueConfig { threshold: Some(7.0), ..crate::QueueConfig::OFF };
    let config = KvRouterConfig { prefill_load_model, queue, ..KvRouterConfig::DEFAULT };
    let mut router = Router::new(config, 2);
    let limits = crate::RankLimits { max_num_batched_tokens: Some(100), ..crate::RankLimits::default() };
    let send = |router: &mut Router, worker_id, prefill_tokens| {
        let worker = WorkerRank { worker_id, dp_rank: 0 };
        let booking =
            WorkerBooking { worker, prompt_blocks: &[], prefill_tokens, expected_output_tokens: None };
        router.scheduler.book(&booking, router.now).unwrap().unwrap()
    };
    for worker_id in [0, 1] {
        router.scheduler.set_profile(worker_id, WorkerProfile { limits, ..WorkerProfile::default() });
    }
    for _ in 0..20 {
        let ids = [0, 1].map(|worker_id| send(&mut router, worker_id, 1000));
        router.now += Duration::from_millis(100);
        for id in ids {
            router.scheduler.mark_prefill_completed(id, router.now);
            router.scheduler.free(id, router.now);
        }
    }
    send(&mut router, 0, 1000);
    router.now += Duration::from_millis(50);
    send(&mut router, 1, 800);
    router.now += Duration::from_millis(45);
    router
}

#[test]
fn with_measured_speeds_a_prompt_that_is_nearly_computed_draws_the_next_one() {
    use crate::PrefillLoadModel::{Measured, None};
    let chosen = |model, later| {
        let mut router = computing(model);
        router.now += later;
        let request = ScheduleRequest::default();
        let now = router.now;
        router.scheduler.choose(&request, &router.matches, now).unwrap().worker.worker_id
    };
    assert_eq!(chosen(None, Duration::ZERO), 1);
    assert_eq!(chosen(Measured, Duration::ZERO), 0);
    assert_eq!(
        chosen(Measured, Duration::from_secs(5)),
        1,
        "a share of either is left, of the shorter one less"
    );
}

#[test]
fn thresholds_and_advice_go_by_what_was_sent() {
    let mut router = computing(crate::PrefillLoadModel::Measured);
    let tokens =
        |router: &Router| router.scheduler.worker_loads().map(|(_, load)| load.prefill_tokens).sum::<u64>();
    assert_eq!(tokens(&router), 1800);
    assert!(
        router.scheduler.must_wait(&SelectRequest::default(), crate::ClassId::DEFAULT),
        "both have more than 700 outstanding"
    );
    let advice = router.scheduler.potential_loads(&[], 10, &router.matches);
    let mut advised: Vec<_> = advice.iter().map(|load| load.potential_prefill_tokens).collect();
    advised.sort_unstable();
    assert_eq!(advised, [810, 1010]);
    let busy = BusyThresholds { active_prefill_tokens: Some(799), ..BusyThresholds::NONE };
    router.scheduler.set_busy_thresholds(busy).unwrap();
    assert_eq!(router.scheduler.eligible(&SelectRequest::default()).count(), 0);
}

#[test]
fn measured_speeds_are_told_of_ranks_that_are_there() {
    let mut router = computing(crate::PrefillLoadModel::Measured);
    let speeds = |router: &Router| {
        let speeds = router.scheduler.prefill_speeds();
        speeds.map(|(worker, speed)| (worker.worker_id, speed.round())).collect::<Vec<_>>()
    };
    assert_eq!(speeds(&router), [(0, 10_000.0), (1, 10_000.0)]);
    router.scheduler.remove_worker(0);
    assert_eq!(speeds(&router), [(1, 10_000.0)]);
    assert_eq!(speeds(&computing(crate::PrefillLoadModel::None)), []);
}
