use std::time::{Duration, Instant};

use dynamo_tokens::{BlockSize, SequenceHash};
use rand::{SeedableRng, rngs::SmallRng};

use super::*;
use crate::{ActiveSequences, Match, NewRequest, PrefillLoadModel, TierMatch};

const CONFIG: SelectConfig = SelectConfig {
    block_size: BlockSize::new(16).unwrap(),
    prefill_load_scale: 1.0,
    overlap_score_credit: 1.0,
    overlap_score_credit_decay: 0.0,
    host_cache_hit_weight: 0.75,
    disk_cache_hit_weight: 0.25,
    shared_cache_multiplier: 0.0,
    room_weight: 0.0,
    decode_active_request_weight: 0.0,
    temperature: 0.0,
    track_active_blocks: true,
    track_prefill_tokens: true,
    balance: Some(Balance { factor: 2.0 }),
};

/// Three workers with one rank each, ids 10 to 12.
struct Bench {
    candidates: Vec<Candidate>,
    matches: MatchBuffer,
    active: ActiveSequences,
    scratch: SelectScratch,
    rng: SmallRng,
}

impl Bench {
    fn new() -> Self {
        let candidates = (0..3)
            .map(|index| Candidate {
                slot: Slot::new(index, 0),
                worker: WorkerRank { worker_id: 10 + u64::from(index), dp_rank: 0 },
                draining: false,
                overloaded: false,
                profile: Arc::default(),
            })
            .collect();
        Self {
            candidates,
            matches: MatchBuffer::default(),
            active: ActiveSequences::new(
                CONFIG.block_size,
                Duration::from_secs(300),
                1000,
                PrefillLoadModel::None,
            ),
            scratch: SelectScratch::default(),
            rng: SmallRng::seed_from_u64(7),
        }
    }

    /// A request that runs.
    fn run(&mut self, index: u32, prefill_tokens: usize, blocks: u32) {
        let running = NewRequest {
            slot: Slot::new(index, 0),
            prompt_blocks: &[],
            private_blocks: blocks,
            prefill_tokens: prefill_tokens as u64,
            expected_output_tokens: None,
        };
        self.active.add_request(&running, Instant::now()).unwrap();
    }

    fn select(
        &mut self,
        request: &SelectRequest<'_>,
        config: &SelectConfig,
    ) -> Result<Selection, SelectError> {
        let blocks: Vec<_> = (0..request.isl_tokens as u64 / 16).map(SequenceHash).collect();
        let mut loads = PotentialLoads::default();
        self.active.potential(&blocks, 0, 3, &mut loads);
        let Self { candidates, matches, scratch, rng, .. } = self;
        select(request, candidates, matches, &loads, config, scratch, rng)
    }

    fn chosen(&mut self, request: &SelectRequest<'_>, config: &SelectConfig) -> [usize; 3] {
        let mut counts = [0; 3];
        for _ in 0..3000 {
            counts[self.select(request, config).unwrap().slot.index()] += 1;
        }
        counts
    }
}

fn request(isl_tokens: usize) -> SelectRequest<'static> {
    SelectRequest { isl_tokens, ..SelectRequest::default() }
}

fn hit(index: u32, device_blocks: u32) -> Match {
    Match { slot: Slot::new(index, 0), device_blocks }
}

#[test]
fn the_cost_is_the_references() {
    let mut bench = Bench::new();
    let elsewhere: Vec<_> = (100..105).map(SequenceHash).collect();
    let running = NewRequest {
        slot: Slot::new(0, 0),
        prompt_blocks: &elsewhere,
        private_blocks: 0,
        prefill_tokens: 58,
        expected_output_tokens: None,
    };
    bench.active.add_request(&running, Instant::now()).unwrap();
    bench.matches.push(hit(0, 7));
    bench.matches.push(hit(1, 3));
    // Worker 10: (58 active + 169 − 112 new) / 16 + 5 + 10; worker 11: (169 − 48) / 16 + 10.
    let pinned = SelectRequest { pinned_worker: Some(10), ..request(169) };
    assert_eq!(bench.select(&pinned, &CONFIG).unwrap().cost, (58.0 + 57.0) / 16.0 + 15.0);
    let chosen = bench.select(&request(169), &CONFIG).unwrap();
    assert_eq!((chosen.worker.worker_id, chosen.overlap_blocks, chosen.best_overlap_blocks), (11, 3, 7));
    assert_eq!(chosen.cost, 121.0 / 16.0 + 10.0);
    let overrides = RouterOverrides { overlap_score_weight: Some(2.0), ..RouterOverrides::default() };
    let double = SelectRequest { overrides, ..pinned };
    assert_eq!(bench.select(&double, &CONFIG).unwrap().cost, 115.0 / 8.0 + 15.0);
    let untracked = SelectConfig { track_active_blocks: false, ..CONFIG };
    assert_eq!(bench.select(&pinned, &untracked).unwrap().cost, 115.0 / 16.0 + 7.0);
}

#[test]
fn every_further_term_counts_as_it_says() {
    let mut bench = Bench::new();
    bench.run(0, 64, 4);
    bench.run(1, 32, 2);
    bench.matches.push(hit(0, 4));
    let pinned = SelectRequest { pinned_worker: Some(10), ..request(160) };
    let cost = |bench: &mut Bench, request: &SelectRequest<'_>, config: &SelectConfig| {
        bench.select(request, config).unwrap().cost
    };
    // 64 tokens active, 160 new, 4 blocks cached, 4 blocks active and 10 more.
    assert_eq!(cost(&mut bench, &pinned, &CONFIG), 10.0 + 14.0);
    let half = SelectConfig { overlap_score_credit: 0.5, ..CONFIG };
    assert_eq!(cost(&mut bench, &pinned, &half), 12.0 + 14.0);
    let requests = SelectConfig { decode_active_request_weight: 3.0, ..CONFIG };
    assert_eq!(cost(&mut bench, &pinned, &requests), 27.0);
    let scaled = SelectConfig { prefill_load_scale: 0.25, ..CONFIG };
    assert_eq!(cost(&mut bench, &pinned, &scaled), 2.5 + 14.0);
    let decode_only = SelectConfig { track_prefill_tokens: false, ..CONFIG };
    assert_eq!(cost(&mut bench, &pinned, &decode_only), 14.0 - 4.0);
    let without_credit = SelectConfig { overlap_score_credit: 0.0, ..decode_only };
    assert_eq!(cost(&mut bench, &pinned, &without_credit), 14.0);
    // The least outstanding is 0, so 10 is four blocks of ten behind: a credit of 1 / (1 + 5 · 4 / 10).
    let fading = SelectConfig { overlap_score_credit_decay: 5.0, temperature: 1e9, balance: None, ..CONFIG };
    let found = std::iter::repeat_with(|| bench.select(&request(160), &fading).unwrap());
    let tenth = found.take(200).find(|found| found.worker.worker_id == 10).unwrap();
    assert!((tenth.cost - (14.0 - 4.0 / 3.0 + 14.0)).abs() < 1e-9, "{}", tenth.cost);
}

#[test]
fn a_block_in_shared_storage_counts_once_at_the_best_of_its_weights() {
    let mut bench = Bench::new();
    // 10 has two blocks on its device, two more on the host, two on disk; 11 has three on the device.
    let tiers = TierMatch { slot: Slot::new(0, 0), device_blocks: 2, host_blocks: 4, any_blocks: 6 };
    bench.matches.push(hit(0, 2));
    bench.matches.push(hit(1, 3));
    bench.matches.lower.push(tiers);
    let saved = |bench: &mut Bench, shared: u32, multiplier: f64| {
        bench.matches.set_shared_blocks(shared);
        let config = SelectConfig { shared_cache_multiplier: multiplier, ..CONFIG };
        [10, 11, 12].map(|worker| {
            let pinned = SelectRequest { pinned_worker: Some(worker), ..request(160) };
            20.0 - bench.select(&pinned, &config).unwrap().cost
        })
    };
    let own = 2.0 + 2.0 * 0.75 + 2.0 * 0.25;
    assert_eq!(saved(&mut bench, 8, 0.0), [own, 3.0, 0.0]);
    // On disk a block counts a quarter, and half with the other half shared; on the host it is worth more than that.
    assert_eq!(saved(&mut bench, 8, 0.5), [own + 2.0 * 0.25 + 2.0 * 0.5, 3.0 + 2.5, 4.0]);
    assert_eq!(saved(&mut bench, 8, 1.0), [8.0, 8.0, 8.0]);
    assert_eq!(saved(&mut bench, 5, 1.0), [5.0 + 0.25, 5.0, 5.0]);
    assert_eq!(saved(&mut bench, 3, 1.0), [own + 0.25, 3.0, 3.0]);
    assert_eq!(saved(&mut bench, 2, 1.0), [own, 3.0, 2.0]);
    let decode_only = SelectConfig { shared_cache_multiplier: 0.5, track_prefill_tokens: false, ..CONFIG };
    bench.matches.set_shared_blocks(8);
    let pinned = SelectRequest { pinned_worker: Some(12), ..request(160) };
    assert_eq!(bench.select(&pinned, &decode_only).unwrap().cost, 10.0 - 4.0);
    let blind = RouterOverrides { overlap_score_credit: Some(0.0), ..RouterOverrides::default() };
    let sharing = SelectConfig { shared_cache_multiplier: 0.5, ..CONFIG };
    let blind = SelectRequest { overrides: blind, ..pinned };
    assert_eq!(bench.select(&blind, &sharing).unwrap().cost, 20.0, "a request that ignores caches");
}

#[test]
fn with_a_shared_cache_an_idle_worker_wins_over_a_busy_one_that_has_the_prompt() {
    let mut bench = Bench::new();
    bench.run(0, 96, 0);
    bench.run(2, 16, 0);
    bench.matches.push(hit(0, 10));
    let sharing = SelectConfig { shared_cache_multiplier: 0.5, ..CONFIG };
    let chosen = |bench: &mut Bench, shared: u32, config: &SelectConfig| {
        bench.matches.set_shared_blocks(shared);
        let chosen = bench.select(&request(160), config).unwrap();
        (chosen.worker.worker_id, chosen.overlap_blocks, chosen.cost)
    };
    // Six blocks are before it on 10, and all ten are to be computed on 11: half of that where they are loaded.
    assert_eq!(chosen(&mut bench, 0, &sharing), (10, 10, 16.0));
    assert_eq!(chosen(&mut bench, 6, &sharing), (10, 10, 16.0));
    assert_eq!(chosen(&mut bench, 10, &sharing), (11, 0, 15.0));
    assert_eq!(chosen(&mut bench, 10, &CONFIG), (10, 10, 16.0), "without a multiplier it does not count");
}

#[test]
fn preferred_taints_make_cheaper_and_required_ones_filter() {
    let mut bench = Bench::new();
    let profile =
        |taint: &str| Arc::new(WorkerProfile { taints: vec![taint.into()], ..WorkerProfile::default() });
    bench.candidates[1].profile = profile("zone=a");
    bench.candidates[2].profile = profile("zone=b");
    let preferred = [("zone=b".to_owned(), 1.0), ("zone=c".to_owned(), 9.0)];
    let prefers = SelectRequest { preferred_taints: &preferred, ..request(160) };
    let chosen = bench.select(&prefers, &CONFIG).unwrap();
    assert_eq!((chosen.worker.worker_id, chosen.cost), (12, 20.0 * (-1f64.tanh()).exp()));
    let required = ["zone=a".to_owned()];
    let requires = SelectRequest { required_taints: &required, ..prefers };
    assert_eq!(bench.select(&requires, &CONFIG).unwrap().worker.worker_id, 11);
    let pinned = SelectRequest { pinned_worker: Some(12), ..requires };
    assert_eq!(bench.select(&pinned, &CONFIG), Err(SelectError::PinnedWorkerNotAllowed(12)));
}

#[test]
fn an_adapter_is_served_where_it_is() {
    let mut bench = Bench::new();
    for (candidate, adapters) in
        bench.candidates.iter_mut().zip([vec![], vec!["a".to_owned()], vec!["b".to_owned()]])
    {
        candidate.profile = Arc::new(WorkerProfile { adapters: Some(adapters), ..WorkerProfile::default() });
    }
    let with = |adapter| SelectRequest { adapter: Some(adapter), ..request(64) };
    assert_eq!(bench.select(&with("b"), &CONFIG).unwrap().worker.worker_id, 12);
    assert_eq!(bench.select(&with("c"), &CONFIG), Err(SelectError::AllEligibleWorkersFiltered));
    bench.candidates[0].profile = Arc::default();
    assert_eq!(
        bench.select(&with("c"), &CONFIG).unwrap().worker.worker_id,
        10,
        "it says nothing of adapters"
    );
}

#[test]
fn a_cache_does_not_draw_requests_to_a_rank_that_is_far_ahead() {
    let mut bench = Bench::new();
    bench.matches.push(hit(0, 1250));
    // A prompt of 20,000 tokens that worker 10 has, and a price of prefill at which only blocks count.
    let free = SelectConfig { prefill_load_scale: 0.0, decode_active_request_weight: -1.0, ..CONFIG };
    let bench_with = |tokens: usize, bench: &mut Bench| {
        bench.run(0, tokens, 0);
        let selection = bench.select(&request(20_000), &free).unwrap();
        (selection.worker.worker_id, selection.balanced)
    };
    assert_eq!(bench_with(39_000, &mut bench), (10, false), "within twice the prompt");
    let unbound = SelectConfig { balance: None, ..free };
    let (worker, balanced) = bench_with(2_000, &mut bench);
    assert!(worker != 10 && balanced, "beyond it");
    assert_eq!(bench.select(&request(20_000), &unbound).unwrap().worker.worker_id, 10);
    let pinned = SelectRequest { pinned_worker: Some(10), ..request(20_000) };
    assert_eq!(bench.select(&pinned, &free).unwrap().worker.worker_id, 10, "there is no other");
}

#[test]
fn no_rank_runs_all_requests_while_others_have_none() {
    let mut bench = Bench::new();
    bench.matches.push(hit(0, 4));
    let free = SelectConfig { decode_active_request_weight: -1.0, ..CONFIG };
    let mut counts = [0; 3];
    for _ in 0..300 {
        let chosen = bench.select(&request(64), &free).unwrap().slot.index();
        counts[chosen] += 1;
        bench.run(chosen as u32, 0, 0);
    }
    assert!(counts.iter().all(|&count| count > 30), "{counts:?}");
}

#[test]
fn ties_go_to_the_fewest_cached_blocks_and_then_to_all_alike() {
    let mut bench = Bench::new();
    bench.matches.set_held_blocks([5, 4, 4].into_iter());
    let counts = bench.chosen(&request(64), &CONFIG);
    assert_eq!(counts[0], 0);
    assert!(counts[1].abs_diff(1500) < 150, "{counts:?}");
    bench.matches.clear();
    let counts = bench.chosen(&request(64), &CONFIG);
    assert!(counts.iter().all(|count| count.abs_diff(1000) < 150), "{counts:?}");
}

#[test]
fn an_emptier_cache_takes_prompts_that_share_little_with_a_fuller_one() {
    let roomy = SelectConfig { room_weight: 0.5, ..CONFIG };
    let mut bench = Bench::new();
    let held = |bench: &mut Bench, held: [u32; 3]| bench.matches.set_held_blocks(held.into_iter());
    bench.matches.push(hit(0, 3));
    bench.matches.push(hit(1, 3));
    held(&mut bench, [100, 100, 40]);
    // 10 blocks, 3 of them cached: 7 + 10 and half a block for each of 7, or 10 + 10 and 0.2 for each of 10.
    assert_eq!(bench.chosen(&request(160), &roomy)[2], 0);
    held(&mut bench, [100, 100, 5]);
    let chosen = bench.select(&request(160), &roomy).unwrap();
    assert_eq!((chosen.slot.index(), chosen.cost), (2, 20.25));
    assert_eq!(bench.chosen(&request(160), &CONFIG)[2], 0, "without the weight only what is cached counts");
    let blind = RouterOverrides { overlap_score_credit: Some(0.0), ..RouterOverrides::default() };
    let blind = SelectRequest { overrides: blind, ..request(160) };
    assert_eq!(bench.select(&blind, &roomy).unwrap().cost, 20.0, "a request that ignores caches");
    // Of caches of different sizes the share counts: 5 of 5 blocks are as full as 100 of 100.
    for (candidate, blocks) in bench.candidates.iter_mut().zip([100, 100, 5]) {
        let limits = RankLimits { total_kv_blocks: Some(blocks), ..RankLimits::default() };
        candidate.profile = Arc::new(WorkerProfile { limits, ..WorkerProfile::default() });
    }
    assert_eq!(bench.chosen(&request(160), &roomy)[2], 0);
}

#[test]
fn temperature_follows_the_formula() {
    let mut bench = Bench::new();
    bench.matches.push(hit(0, 4));
    bench.matches.push(hit(1, 2));
    let warm = SelectConfig { temperature: 0.5, ..CONFIG };
    // Costs 0, 2 and 4 above the least: exp(0), exp(−1), exp(−2).
    let counts = bench.chosen(&request(64), &warm);
    let total = 1.0 + (-1f64).exp() + (-2f64).exp();
    for (count, weight) in counts.into_iter().zip([1.0, (-1f64).exp(), (-2f64).exp()]) {
        assert!((count as f64 - 3000.0 * weight / total).abs() < 120.0, "{counts:?}");
    }
    bench.matches.clear();
    let overrides = RouterOverrides { temperature: Some(0.01), ..RouterOverrides::default() };
    let even = bench.chosen(&SelectRequest { overrides, ..request(64) }, &CONFIG);
    assert!(even.iter().all(|count| count.abs_diff(1000) < 150), "{even:?}");
}

#[test]
fn filters_leave_only_who_may_serve() {
    let mut bench = Bench::new();
    bench.candidates[0].draining = true;
    let chosen = |bench: &mut Bench, request: &SelectRequest<'_>| {
        bench.select(request, &CONFIG).map(|chosen| chosen.worker.worker_id)
    };
    assert_eq!(bench.chosen(&request(64), &CONFIG)[0], 0);
    assert_eq!(chosen(&mut bench, &SelectRequest { allowed: Some(&[10, 12]), ..request(64) }), Ok(12));
    assert_eq!(chosen(&mut bench, &SelectRequest { excluded: &[12], ..request(64) }), Ok(11));
    assert_eq!(chosen(&mut bench, &SelectRequest { pinned_worker: Some(12), ..request(64) }), Ok(12));
    bench.candidates[1].worker.dp_rank = 3;
    assert_eq!(chosen(&mut bench, &SelectRequest { pinned_rank: Some(3), ..request(64) }), Ok(11));
}

#[test]
fn every_reason_for_nobody_has_its_error() {
    let mut bench = Bench::new();
    bench.candidates[0].draining = true;
    bench.candidates[1].overloaded = true;
    let pinned = |worker_id| SelectRequest { pinned_worker: Some(worker_id), ..request(64) };
    let not_found = |worker_id, dp_rank| SelectError::PinnedWorkerNotFound { worker_id, dp_rank };
    let cases = [
        (pinned(10), not_found(10, None)),
        (pinned(99), not_found(99, None)),
        (SelectRequest { pinned_rank: Some(1), ..pinned(12) }, not_found(12, Some(1))),
        (pinned(11), SelectError::PinnedWorkerOverloaded(11)),
        (SelectRequest { allowed: Some(&[11]), ..pinned(12) }, SelectError::PinnedWorkerNotAllowed(12)),
        (SelectRequest { excluded: &[12], ..pinned(12) }, SelectError::PinnedWorkerNotAllowed(12)),
        (SelectRequest { excluded: &[12], ..request(64) }, SelectError::AllEligibleWorkersOverloaded),
        (SelectRequest { allowed: Some(&[10]), ..request(64) }, SelectError::AllEligibleWorkersFiltered),
    ];
    for (request, expected) in cases {
        assert_eq!(bench.select(&request, &CONFIG), Err(expected));
    }
    bench.candidates.truncate(1);
    assert_eq!(bench.select(&request(64), &CONFIG), Err(SelectError::NoEndpoints));
}

#[test]
fn a_match_of_an_earlier_owner_of_the_slot_does_not_count() {
    let mut bench = Bench::new();
    bench.matches.push(Match { slot: Slot::new(0, 1), device_blocks: 4 });
    bench.matches.push(hit(1, 1));
    let chosen = bench.select(&request(64), &CONFIG).unwrap();
    assert_eq!((chosen.worker.worker_id, chosen.overlap_blocks), (11, 1));
}
