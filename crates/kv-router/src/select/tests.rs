use std::time::{Duration, Instant};

use dynamo_tokens::SequenceHash;
use rand::{SeedableRng, rngs::SmallRng};

use super::*;
use crate::{ActiveSequences, Match, NewRequest};

const CONFIG: SelectConfig = SelectConfig {
    block_size: BlockSize::new(16).unwrap(),
    overlap_score_weight: 1.0,
    temperature: 0.0,
    track_active_blocks: true,
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
            })
            .collect();
        Self {
            candidates,
            matches: MatchBuffer::default(),
            active: ActiveSequences::new(CONFIG.block_size, Duration::from_secs(300), 1000),
            scratch: SelectScratch::default(),
            rng: SmallRng::seed_from_u64(7),
        }
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
    let double = SelectRequest { overlap_score_weight: Some(2.0), ..pinned };
    assert_eq!(bench.select(&double, &CONFIG).unwrap().cost, 115.0 / 8.0 + 15.0);
    let untracked = SelectConfig { track_active_blocks: false, ..CONFIG };
    assert_eq!(bench.select(&pinned, &untracked).unwrap().cost, 115.0 / 16.0 + 7.0);
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
    let even = bench.chosen(&SelectRequest { temperature: Some(0.01), ..request(64) }, &CONFIG);
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
