//! One of several, by cost.

use std::cmp::Ordering;

use rand::Rng;

use super::Scored;
use crate::MatchBuffer;

/// The cheapest, in one pass: each further equal one takes the place with probability 1/n.
pub(super) fn cheapest(scored: &[Scored], matches: &MatchBuffer, rng: &mut impl Rng) -> Option<Scored> {
    let mut best: Option<(Scored, u32)> = None;
    let mut equal = 0u32;
    for &scored in scored {
        let held = matches.held_blocks(scored.slot);
        let order = best.map_or(Ordering::Less, |(best, best_held)| {
            scored.cost.total_cmp(&best.cost).then(held.cmp(&best_held))
        });
        equal = match order {
            Ordering::Less => 1,
            Ordering::Equal => equal + 1,
            Ordering::Greater => continue,
        };
        if equal == 1 || rng.random_range(0..equal) == 0 {
            best = Some((scored, held));
        }
    }
    best.map(|(best, _)| best)
}

/// Any, the cheaper the likelier.
pub(super) fn draw(scored: &[Scored], temperature: f64, rng: &mut impl Rng) -> Option<Scored> {
    let costs = || scored.iter().map(|scored| scored.cost);
    let min = costs().fold(f64::INFINITY, f64::min);
    let max = costs().fold(f64::NEG_INFINITY, f64::max);
    let spread = (max - min) * temperature;
    let weight = |cost: f64| if spread > 0.0 { (-(cost - min) / spread).exp() } else { 1.0 };
    let total: f64 = costs().map(weight).sum();
    let mut left = rng.random::<f64>() * total;
    for &scored in scored {
        left -= weight(scored.cost);
        if left <= 0.0 {
            return Some(scored);
        }
    }
    // Rounding may leave a trace of the sum.
    scored.last().copied()
}
