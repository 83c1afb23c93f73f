//! No worker idles while another queues, however skewed the prefixes; and where they are not, caches are used as well as
//! without the bound.

use std::time::Duration;

use dynamo_kv_router::KvRouterConfig;
use dynamo_tokens::LocalBlockHash;
use rand::{Rng, SeedableRng, rngs::SmallRng};

use super::stack::{Arrival, BLOCK, Setting, run};

fn setting(config: KvRouterConfig) -> Setting {
    Setting { config, workers: 8, routers: 1, capacity: 4096, sync: None }
}

fn unbound(config: &KvRouterConfig) -> KvRouterConfig {
    KvRouterConfig { max_imbalance: None, ..config.clone() }
}

fn hash(stream: u64, at: usize) -> LocalBlockHash {
    LocalBlockHash((stream << 20 | at as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
}

/// All requests begin with the same long document, and ask little about it; they come faster than one worker serves.
fn skewed(requests: usize, per_second: f64) -> Vec<Arrival> {
    let mut rng = SmallRng::seed_from_u64(5);
    let mut at = Duration::ZERO;
    (0..requests as u64)
        .map(|number| {
            at += Duration::from_secs_f64(-rng.random::<f64>().max(1e-9).ln() / per_second);
            let blocks =
                (0..300).map(|block| hash(1, block)).chain((0..20).map(|block| hash(10 + number, block)));
            Arrival { at, blocks: blocks.collect(), output_tokens: 40 }
        })
        .collect()
}

/// Conversations: each turn repeats all before it; some begin with one of a few system prompts.
pub(crate) fn conversations(turns: usize, per_second: f64, seed: u64) -> Vec<Arrival> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut at = Duration::ZERO;
    let mut open: Vec<Vec<LocalBlockHash>> = Vec::new();
    let mut trace = Vec::new();
    for turn in 0..turns as u64 {
        at += Duration::from_secs_f64(-rng.random::<f64>().max(1e-9).ln() / per_second);
        let place = if open.len() < 40 || rng.random_range(0..6) == 0 {
            let system = rng.random_range(0..4);
            open.push((0..8).map(|block| hash(2 + system, block)).collect());
            open.len() - 1
        } else {
            rng.random_range(0..open.len())
        };
        let new = rng.random_range(2..40);
        open[place].extend((0..new).map(|block| hash(100 + turn, block)));
        trace.push(Arrival { at, blocks: open[place].clone(), output_tokens: rng.random_range(10..200) });
        if open[place].len() > 200 || open.len() > 120 {
            open.swap_remove(place);
        }
    }
    trace
}

#[test]
fn no_worker_idles_while_another_queues_beyond_the_bound() {
    let prompt = 320 * BLOCK as u64;
    // Weights under which a cache is worth any wait: the older weight at its lowest, and a credit beyond all reason.
    let reference = KvRouterConfig::REFERENCE;
    let greedy = KvRouterConfig { prefill_load_scale: 0.01, ..reference.clone() };
    let blind = KvRouterConfig { overlap_score_credit: 20.0, ..reference.clone() };
    for config in [reference, greedy, blind] {
        let trace = skewed(600, 40.0);
        let bound = run(&setting(config.clone()), &trace);
        let without = run(&setting(unbound(&config)), &trace);
        let (_, least) = bound.spread();
        assert!(least > 0.5, "{:?} requests by worker", bound.requests);
        // Twice the prompt, and the part of it that was being computed while routed.
        assert!(bound.worst_wait_beside_an_idle_worker <= 2 * prompt, "{bound:?}");
        let p99 = (bound.first_token_at(0.99), without.first_token_at(0.99));
        assert!(p99.0 <= p99.1.mul_f64(1.05), "{p99:?}");
    }
}

#[test]
fn an_ordinary_load_uses_caches_as_well_as_without_the_bound() {
    let reference = KvRouterConfig::REFERENCE;
    // Which conversation lands where differs with every choice: single runs differ by a percent or two.
    let (mut bound, mut without) = (0.0, 0.0);
    for per_second in [8.0, 14.0, 26.0] {
        let trace = conversations(1500, per_second, 9);
        bound += run(&setting(reference.clone()), &trace).cached_share();
        without += run(&setting(unbound(&reference)), &trace).cached_share();
    }
    assert!(bound >= without * 0.98, "{bound} {without}");
}
