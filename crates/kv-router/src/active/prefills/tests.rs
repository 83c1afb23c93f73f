use std::time::Duration;

use super::*;

const TOKENS: u64 = 1600;
const TOOK: Duration = Duration::from_millis(160);

/// Time is in milliseconds, and requests are named as they please.
struct Ranks {
    prefills: Prefills,
    now: Instant,
}

impl Ranks {
    /// Both compute ten tokens in a millisecond, as they showed.
    fn measured() -> Self {
        let mut ranks = Self { prefills: Prefills::default(), now: Instant::now() };
        for _ in 0..20 {
            for slot in [0, 1] {
                ranks.begin(slot, slot, TOKENS);
            }
            ranks.pass(TOOK);
            for slot in [0, 1] {
                ranks.first_token(slot, slot);
            }
        }
        ranks
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
    }

    fn pass_ms(&mut self, ms: u64) {
        self.pass(Duration::from_millis(ms));
    }

    fn begin(&mut self, slot: usize, request: usize, tokens: u64) {
        self.prefills.begin(slot, request, tokens, self.now);
    }

    fn first_token(&mut self, slot: usize, request: usize) {
        self.prefills.end(slot, request, true, self.now);
    }

    fn give_up(&mut self, slot: usize, request: usize) {
        self.prefills.end(slot, request, false, self.now);
    }

    fn computed(&self, slot: usize) -> u64 {
        self.prefills.computed(slot, self.now)
    }

    fn assert_computed(&self, slot: usize, expected: u64) {
        let computed = self.computed(slot);
        assert!(computed.abs_diff(expected) <= expected / 100 + 1, "{computed}, not {expected}");
    }
}

#[test]
fn the_oldest_falls_linearly_to_a_small_remainder() {
    let mut ranks = Ranks::measured();
    ranks.begin(0, 7, TOKENS);
    assert_eq!(ranks.computed(0), 0);
    for ms in 1..=14 {
        ranks.pass_ms(10);
        ranks.assert_computed(0, ms * 100);
    }
    ranks.pass_ms(1000);
    assert_eq!(ranks.computed(0), TOKENS - TOKENS / 16);
    assert_eq!(ranks.computed(1), 0, "nothing is outstanding there");
    ranks.first_token(0, 7);
    assert_eq!(ranks.computed(0), 0);
    for tokens in 1..40 {
        ranks.begin(0, 7, tokens);
        ranks.pass_ms(1000);
        assert!(ranks.computed(0) < tokens, "something is left");
        ranks.give_up(0, 7);
    }
}

#[test]
fn of_several_the_oldest_alone_falls_and_then_the_next() {
    let mut ranks = Ranks::measured();
    ranks.begin(0, 1, 1000);
    ranks.pass_ms(50);
    ranks.begin(0, 2, 2000);
    ranks.begin(1, 3, 3000);
    ranks.pass_ms(40);
    ranks.assert_computed(0, 900);
    ranks.assert_computed(1, 400);
    ranks.pass_ms(10);
    ranks.first_token(0, 1);
    assert_eq!(ranks.computed(0), 0, "the next begins now");
    ranks.pass_ms(100);
    ranks.assert_computed(0, 1000);
    ranks.assert_computed(1, 1500);
}

#[test]
fn whoever_is_complete_out_of_turn_leaves_the_oldest_where_it_is() {
    let mut ranks = Ranks::measured();
    for request in 1..=4 {
        ranks.begin(0, request, 1000);
    }
    ranks.pass_ms(30);
    ranks.first_token(0, 3);
    ranks.give_up(0, 4);
    ranks.assert_computed(0, 300);
    ranks.begin(0, 9, 500);
    ranks.pass_ms(30);
    ranks.assert_computed(0, 600);
    ranks.first_token(0, 1);
    ranks.first_token(0, 2);
    ranks.pass_ms(20);
    ranks.assert_computed(0, 200);
    ranks.first_token(0, 9);
    assert_eq!(ranks.computed(0), 0);
    assert!(ranks.prefills.ranks[0].line.is_none());
}

#[test]
fn what_is_complete_out_of_turn_counts_for_the_speed() {
    let mut ranks = Ranks { prefills: Prefills::default(), now: Instant::now() };
    for _ in 0..40 {
        ranks.begin(0, 0, 1000);
        ranks.begin(0, 1, 1000);
        ranks.pass_ms(100);
        ranks.first_token(0, 1);
        ranks.first_token(0, 0);
        ranks.pass_ms(3000);
    }
    ranks.begin(0, 0, 10_000);
    ranks.pass_ms(100);
    ranks.assert_computed(0, 2000);
}

#[test]
fn given_up_prompts_are_no_sample() {
    let mut ranks = Ranks::measured();
    let known = ranks.prefills.ranks[0].tokens_per_second;
    for _ in 0..100 {
        ranks.begin(0, 5, 1000);
        ranks.begin(0, 6, 1000);
        ranks.pass_ms(1);
        ranks.give_up(0, 5);
        ranks.pass_ms(5000);
        ranks.give_up(0, 6);
    }
    assert_eq!(ranks.prefills.ranks[0].tokens_per_second, known);
}

#[test]
fn nothing_falls_before_the_speed_is_known() {
    let mut ranks = Ranks { prefills: Prefills::default(), now: Instant::now() };
    for _ in 0..5 {
        ranks.begin(0, 0, TOKENS);
        ranks.pass(TOOK);
        assert_eq!(ranks.computed(0), 0);
        ranks.first_token(0, 0);
    }
}

#[test]
fn a_rank_that_leaves_takes_its_speed_and_its_prompts_along() {
    let mut ranks = Ranks::measured();
    for request in 2..6 {
        ranks.begin(0, request, TOKENS);
    }
    ranks.begin(1, 6, TOKENS);
    ranks.prefills.forget(0);
    ranks.prefills.forget(30);
    ranks.pass_ms(50);
    assert_eq!(ranks.computed(0), 0);
    ranks.assert_computed(1, 500);
    for request in 2..6 {
        ranks.first_token(0, request);
    }
    ranks.begin(0, 3, TOKENS);
    ranks.pass_ms(50);
    assert_eq!(ranks.computed(0), 0, "the new one has shown nothing yet");
    ranks.first_token(1, 6);
    assert_eq!(ranks.computed(1), 0);
}

#[test]
fn a_stall_does_not_make_later_prompts_look_slow() {
    let mut ranks = Ranks::measured();
    ranks.begin(0, 0, TOKENS);
    ranks.pass_ms(30_000);
    ranks.first_token(0, 0);
    for _ in 0..60 {
        ranks.begin(0, 0, TOKENS);
        ranks.pass(TOOK);
        ranks.first_token(0, 0);
    }
    ranks.begin(0, 0, TOKENS);
    ranks.pass(TOOK / 2);
    let computed = ranks.computed(0);
    assert!(computed > TOKENS * 4 / 10, "{computed}");
}

#[test]
fn memory_goes_back_and_speeds_stay() {
    let mut ranks = Ranks::measured();
    (0..10_000).for_each(|request| ranks.begin(0, request, 1));
    (0..10_000).for_each(|request| ranks.give_up(0, request));
    let full = ranks.prefills.bytes();
    ranks.prefills.give_back();
    assert!(ranks.prefills.bytes() < full / 100, "{}", ranks.prefills.bytes());
    ranks.begin(0, 0, TOKENS);
    ranks.pass_ms(50);
    ranks.assert_computed(0, 500);
}
