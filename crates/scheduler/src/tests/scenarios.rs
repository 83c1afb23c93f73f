//! Single behaviours, told step by step.

use std::time::Duration;

use dynamo_tokens::{HashSeed, TokenId};

use super::executor::blocks_of;
use super::fake_pool::FakePool;
use crate::{
    CommitError, ConfigError, End, NewRequest, PreemptionMode, RequestId, Scheduler, SchedulerConfig, Step,
    StepResults, SubmitError, Verdict,
};

const NOW: Duration = Duration::ZERO;

fn config() -> SchedulerConfig {
    SchedulerConfig {
        max_num_seqs: 8,
        max_num_batched_tokens: 16,
        chunked_prefill: true,
        watermark: 0.0,
        preemption: PreemptionMode::Lifo,
        max_waiting: 4,
        max_sequence_len: 1000,
        max_advance: 1,
        load_timeout: Duration::from_millis(10),
    }
}

fn scheduler(config: SchedulerConfig, blocks: usize) -> Scheduler<FakePool, u64> {
    Scheduler::new(config, FakePool::new(4, blocks, &[None], 1)).unwrap()
}

fn request(id: u64, prompt: std::ops::Range<TokenId>, max_new_tokens: usize) -> NewRequest {
    let prompt = prompt.collect();
    NewRequest { id: RequestId(id), prompt, hash_seed: HashSeed::PLAIN, max_new_tokens, deadline: None }
}

/// Commits a step in which every request gets one token where it samples; returns who ended.
fn commit(scheduler: &mut Scheduler<FakePool, u64>, step: &Step) -> Vec<(u64, End)> {
    let mut results = StepResults::default();
    for work in step.works() {
        let token = [7];
        results.push(work.len, if work.samples { &token } else { &[] }, false);
    }
    scheduler.commit(step, &results, NOW, |_| Verdict::Continue).unwrap();
    scheduler.drain_ended().map(|ended| (ended.id.0, ended.end)).collect()
}

fn parts(step: &Step) -> Vec<(u64, usize, usize, bool)> {
    step.works().iter().map(|work| (work.request.0, work.start, work.len, work.samples)).collect()
}

#[test]
fn a_long_prompt_is_spread_and_others_run_beside_it() {
    let mut scheduler = scheduler(config(), 100);
    scheduler.submit(request(1, 0..3, 9), 0).unwrap();
    scheduler.submit(request(2, 100..130, 2), 0).unwrap();
    let step = scheduler.plan(NOW);
    assert_eq!(parts(&step), [(1, 0, 3, true), (2, 0, 13, false)]);
    commit(&mut scheduler, &step);
    let step = scheduler.plan(NOW);
    assert_eq!(parts(&step), [(1, 3, 1, true), (2, 13, 15, false)]);
    assert_eq!(step.prefill_tokens(), 15);
    assert_eq!(scheduler.stats().prefill_tokens, 17);
    commit(&mut scheduler, &step);
    assert_eq!(parts(&scheduler.plan(NOW)), [(1, 4, 1, true), (2, 28, 2, true)]);
}

#[test]
fn without_chunks_a_prompt_waits_for_a_step_of_its_own() {
    let mut scheduler = scheduler(SchedulerConfig { chunked_prefill: false, ..config() }, 100);
    scheduler.submit(request(1, 0..10, 2), 0).unwrap();
    scheduler.submit(request(2, 100..110, 2), 0).unwrap();
    let step = scheduler.plan(NOW);
    assert_eq!(parts(&step), [(1, 0, 10, true)]);
    commit(&mut scheduler, &step);
    assert_eq!(parts(&scheduler.plan(NOW)), [(1, 10, 1, true), (2, 0, 10, true)]);
    let refused = scheduler.submit(request(3, 0..17, 1), 0).unwrap_err().0;
    assert_eq!(refused, SubmitError::PromptTooLong { prompt: 17, limit: 16 });
}

#[test]
fn a_full_hit_still_computes_the_last_token() {
    let mut scheduler = scheduler(config(), 100);
    scheduler.submit(request(1, 0..8, 2), 0).unwrap();
    let step = scheduler.plan(NOW);
    commit(&mut scheduler, &step);
    scheduler.submit(request(2, 0..8, 2), 0).unwrap();
    scheduler.submit(request(3, 0..9, 2), 0).unwrap();
    let step = scheduler.plan(NOW);
    assert_eq!(parts(&step), [(1, 8, 1, true), (2, 4, 4, true), (3, 8, 1, true)]);
    assert_eq!(scheduler.usage(&step.works()[2]).unwrap().cached_tokens, 8);
}

#[test]
fn a_step_is_planned_while_one_is_computed() {
    let mut scheduler = scheduler(config(), 100);
    scheduler.submit(request(1, 0..20, 3), 0).unwrap();
    let first = scheduler.plan(NOW);
    let second = scheduler.plan(NOW);
    assert_eq!((parts(&first), parts(&second)), (vec![(1, 0, 16, false)], vec![(1, 16, 4, true)]));
    assert!(scheduler.plan(NOW).is_empty(), "two are in flight");
    commit(&mut scheduler, &first);
    let third = scheduler.plan(NOW);
    assert_eq!(parts(&third), [(1, 20, 1, true)]);
    assert!(third.works()[0].ahead && scheduler.tokens(&third.works()[0]).unwrap().is_empty());
    commit(&mut scheduler, &second);
    let fourth = scheduler.plan(NOW);
    commit(&mut scheduler, &third);
    assert!(scheduler.plan(NOW).is_empty(), "the third token ends it, so no step is planned beyond");
    assert_eq!(commit(&mut scheduler, &fourth), [(1, End::Length)]);
}

#[test]
fn a_step_planned_on_a_token_that_did_not_come_is_void() {
    let mut scheduler = scheduler(config(), 100);
    scheduler.submit(request(1, 0..4, 3), 0).unwrap();
    let (first, second) = (scheduler.plan(NOW), scheduler.plan(NOW));
    let mut results = StepResults::default();
    results.push(4, &[], false);
    scheduler.commit(&first, &results, NOW, |_| panic!("nothing came")).unwrap();
    assert!(scheduler.tokens(&second.works()[0]).is_none());
    let third = scheduler.plan(NOW);
    assert_eq!(parts(&third), [(1, 3, 1, true)], "the last token is computed again");
    results.clear();
    results.push(1, &[9], false);
    scheduler.commit(&second, &results, NOW, |_| panic!("it was void")).unwrap();
    scheduler.commit(&third, &results, NOW, |_| Verdict::Continue).unwrap();
    let fourth = scheduler.plan(NOW);
    assert_eq!(scheduler.usage(&fourth.works()[0]).unwrap().generated_tokens, 1);
}

#[test]
fn blocks_of_an_aborted_request_wait_for_the_step_in_flight() {
    let mut scheduler = scheduler(config(), 4);
    scheduler.submit(request(1, 0..12, 3), 41).unwrap();
    let step = scheduler.plan(NOW);
    assert_eq!(scheduler.abort(RequestId(1)), Some(41));
    assert_eq!(scheduler.stats().held_blocks, 3);
    scheduler.submit(request(2, 50..62, 3), 0).unwrap();
    assert!(scheduler.plan(NOW).is_empty());
    assert_eq!(commit(&mut scheduler, &step), []);
    assert_eq!(scheduler.stats().held_blocks, 0);
    assert_eq!(parts(&scheduler.plan(NOW)), [(2, 0, 12, true)]);
}

#[test]
fn held_blocks_outlive_their_request_until_the_reader_lets_go_or_its_deadline_passes() {
    for lets_go in [true, false] {
        let mut scheduler = scheduler(config(), 4);
        scheduler.submit(request(1, 0..12, 1), 0).unwrap();
        let step = scheduler.plan(NOW);
        let hold = scheduler.hold(RequestId(1), Duration::from_millis(5)).unwrap();
        assert_eq!(commit(&mut scheduler, &step), [(1, End::Length)]);
        assert_eq!(scheduler.stats().held_blocks, 3);
        scheduler.submit(request(2, 50..62, 3), 0).unwrap();
        assert!(scheduler.plan(Duration::from_millis(4)).is_empty());
        assert_eq!(scheduler.next_deadline(), Some(Duration::from_millis(5)));
        if lets_go {
            scheduler.let_go(hold);
        }
        let later = Duration::from_millis(if lets_go { 4 } else { 5 });
        assert_eq!(parts(&scheduler.plan(later)), [(2, 0, 12, true)]);
        assert_eq!(scheduler.stats().held_blocks, 0);
    }
}

#[test]
fn the_one_admitted_last_or_first_gives_way() {
    for (preemption, victim) in [(PreemptionMode::Lifo, 2), (PreemptionMode::Fifo, 1)] {
        let mut scheduler = scheduler(SchedulerConfig { preemption, ..config() }, 4);
        scheduler.submit(request(1, 0..8, 7), 0).unwrap();
        scheduler.submit(request(2, 50..58, 7), 0).unwrap();
        let step = scheduler.plan(NOW);
        commit(&mut scheduler, &step);
        let step = scheduler.plan(NOW);
        assert_eq!(parts(&step), [(3 - victim, 8, 1, true)]);
        assert_eq!((scheduler.stats().waiting, scheduler.stats().preemptions), (1, 1));
        let mut ended = commit(&mut scheduler, &step);
        while ended.len() < 2 {
            let step = scheduler.plan(NOW);
            assert!(!step.is_empty());
            ended.extend(commit(&mut scheduler, &step));
        }
        assert!(ended.iter().all(|&(_, end)| end == End::Length));
    }
}

#[test]
fn what_does_not_arrive_in_time_is_computed() {
    let mut scheduler = scheduler(config(), 10);
    let prompt: Vec<TokenId> = (0..10).collect();
    let blocks = blocks_of(&prompt, scheduler.pool());
    let pool = scheduler.pool_mut();
    (pool.remote, pool.lose) = (blocks, 100);
    scheduler.submit(request(1, 0..10, 1), 0).unwrap();
    assert!(scheduler.plan(NOW).is_empty());
    assert_eq!(scheduler.stats().loading, 1);
    assert_eq!(scheduler.next_deadline(), Some(Duration::from_millis(10)));
    assert!(scheduler.plan(Duration::from_millis(9)).is_empty());
    assert_eq!(parts(&scheduler.plan(Duration::from_millis(10))), [(1, 0, 10, true)]);
    assert_eq!(scheduler.stats().prefill_tokens, 10);
}

#[test]
fn what_arrives_counts_as_cached() {
    let mut scheduler = scheduler(config(), 10);
    let prompt: Vec<TokenId> = (0..10).collect();
    scheduler.pool_mut().remote = blocks_of(&prompt, scheduler.pool());
    scheduler.submit(request(1, 0..10, 1), 0).unwrap();
    assert!(scheduler.plan(NOW).is_empty());
    assert_eq!(scheduler.stats().prefill_tokens, 2, "the rest is on its way");
    scheduler.pool_mut().tick += 100;
    let step = scheduler.plan(NOW);
    assert_eq!(parts(&step), [(1, 8, 2, true)]);
    assert_eq!(scheduler.usage(&step.works()[0]).unwrap().cached_tokens, 8);
}

#[test]
fn a_load_may_be_for_one_request_alone() {
    let mut scheduler = scheduler(config(), 20);
    let prompt: Vec<TokenId> = (0..10).collect();
    let blocks = blocks_of(&prompt, scheduler.pool());
    let pool = scheduler.pool_mut();
    (pool.remote, pool.remote_for, pool.lose) = (blocks, Some(RequestId(2)), 100);
    scheduler.submit(request(1, 0..10, 1), 0).unwrap();
    scheduler.submit(request(2, 0..10, 1), 0).unwrap();
    assert_eq!(parts(&scheduler.plan(NOW)), [(1, 0, 10, true)]);
    assert_eq!(scheduler.stats().loading, 1);
}

#[test]
fn without_chunks_a_prompt_that_loads_waits_for_no_step_of_its_own() {
    let mut scheduler = scheduler(SchedulerConfig { chunked_prefill: false, ..config() }, 100);
    let prompt: Vec<TokenId> = (100..110).collect();
    let blocks = blocks_of(&prompt, scheduler.pool());
    let pool = scheduler.pool_mut();
    (pool.remote, pool.remote_for) = (blocks, Some(RequestId(2)));
    scheduler.submit(request(1, 0..10, 3), 0).unwrap();
    scheduler.submit(request(2, 100..110, 2), 0).unwrap();
    let step = scheduler.plan(NOW);
    assert_eq!((parts(&step), scheduler.stats().loading), (vec![(1, 0, 10, true)], 1));
    commit(&mut scheduler, &step);
    scheduler.pool_mut().tick += 100;
    assert_eq!(parts(&scheduler.plan(NOW)), [(1, 10, 1, true), (2, 8, 2, true)]);
}

#[test]
fn deadlines_end_requests_wherever_they_are() {
    let mut scheduler = scheduler(SchedulerConfig { max_num_seqs: 1, ..config() }, 10);
    let late = |id, ms| NewRequest { deadline: Some(Duration::from_millis(ms)), ..request(id, 0..4, 9) };
    scheduler.submit(late(1, 20), 0).unwrap();
    scheduler.submit(late(2, 10), 0).unwrap();
    let step = scheduler.plan(NOW);
    commit(&mut scheduler, &step);
    for (at, expected) in [(10, 2), (20, 1)] {
        assert_eq!(scheduler.next_deadline(), Some(Duration::from_millis(at)));
        let step = scheduler.plan(Duration::from_millis(at));
        let ended: Vec<_> = scheduler.drain_ended().map(|ended| (ended.id.0, ended.end)).collect();
        assert_eq!(ended, [(expected, End::DeadlineExceeded)]);
        if !step.is_empty() {
            commit(&mut scheduler, &step);
        }
    }
    assert_eq!(scheduler.next_deadline(), None);
    scheduler.pool().assert_empty();
}

#[test]
fn what_cannot_be_served_is_refused() {
    let mut scheduler = scheduler(config(), 4);
    let mut refusal = |new| scheduler.submit(new, 5);
    assert_eq!(refusal(request(1, 0..0, 1)), Err((SubmitError::EmptyPrompt, 5)));
    assert_eq!(refusal(request(1, 0..1, 0)), Err((SubmitError::NothingAsked, 5)));
    assert_eq!(refusal(request(1, 0..16, 1)), Err((SubmitError::PromptTooLong { prompt: 16, limit: 15 }, 5)));
    assert_eq!(refusal(request(1, 0..15, 1000)), Ok(()));
    assert_eq!(refusal(request(1, 0..1, 1)), Err((SubmitError::Duplicate(RequestId(1)), 5)));
    for id in 2..5 {
        assert_eq!(refusal(request(id, 0..1, 1)), Ok(()));
    }
    assert_eq!(refusal(request(9, 0..1, 1)), Err((SubmitError::QueueFull { limit: 4 }, 5)));
}

#[test]
fn the_watermark_keeps_room_for_those_that_run() {
    let mut scheduler = scheduler(SchedulerConfig { watermark: 0.25, ..config() }, 8);
    scheduler.submit(request(1, 0..12, 9), 0).unwrap();
    scheduler.submit(request(2, 50..65, 9), 0).unwrap();
    let step = scheduler.plan(NOW);
    assert_eq!(parts(&step), [(1, 0, 12, true)], "3 + 4 blocks would leave one, and two must be left");
    assert_eq!(scheduler.stats().waiting, 1);
}

#[test]
fn an_executor_that_miscounts_is_told_so() {
    let mut scheduler = scheduler(config(), 10);
    scheduler.submit(request(1, 0..4, 3), 0).unwrap();
    let step = scheduler.plan(NOW);
    let results = StepResults::default();
    let wrong = scheduler.commit(&step, &results, NOW, |_| Verdict::Continue);
    assert_eq!(wrong, Err(CommitError::WrongCount { expected: 1, got: 0 }));
    commit(&mut scheduler, &step);
    let again = scheduler.commit(&step, &results, NOW, |_| Verdict::Continue);
    assert_eq!(again, Err(CommitError::OutOfOrder { expected: 2, got: 1 }));
}

#[test]
fn a_reader_who_wants_no_more_ends_the_request() {
    let mut scheduler = scheduler(config(), 10);
    scheduler.submit(request(1, 0..4, 3), 0).unwrap();
    let step = scheduler.plan(NOW);
    let mut results = StepResults::default();
    results.push(4, &[1], false);
    scheduler.commit(&step, &results, NOW, |_| Verdict::Refuse).unwrap();
    assert_eq!(scheduler.drain_ended().next().unwrap().end, End::Refused);
    scheduler.pool().assert_empty();
}

#[test]
fn limits_are_checked_against_one_another() {
    let few = SchedulerConfig { max_num_batched_tokens: 7, ..config() };
    assert_eq!(few.validate(), Err(ConfigError::BudgetBelowSeqs { tokens: 7, seqs: 8 }));
    assert_eq!(SchedulerConfig { watermark: 1.0, ..config() }.validate(), Err(ConfigError::Watermark(1.0)));
    assert_eq!(
        SchedulerConfig { max_advance: 0, ..config() }.validate(),
        Err(ConfigError::Zero("max_advance"))
    );
}
