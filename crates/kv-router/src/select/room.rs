//! How full the caches are, as far as it is a reason for or against them.
//!
//! A new block in a full cache takes the place of one that may be asked for again; in one with room it takes nobody's.
//! Without this, a worker that has nothing yet never gets anything while others idle that have the block with which
//! all prompts begin: the first one to get it would get all.

use super::{Candidate, Scored};
use crate::MatchBuffer;

/// How full the candidates' caches are, beside the fullest of them.
pub(super) struct Fills<'a> {
    matches: &'a MatchBuffer,
    candidates: &'a [Candidate],
    /// Whether all say how many blocks they can hold. Else the blocks themselves are compared.
    in_shares: bool,
    fullest: f64,
}

impl<'a> Fills<'a> {
    pub(super) fn new(scored: &[Scored], candidates: &'a [Candidate], matches: &'a MatchBuffer) -> Self {
        let says = |scored: &Scored| candidates[scored.place as usize].profile.limits.total_kv_blocks;
        let in_shares = scored.iter().all(|scored| says(scored).is_some_and(|blocks| blocks > 0));
        let mut fills = Self { matches, candidates, in_shares, fullest: 0.0 };
        fills.fullest = scored.iter().map(|scored| fills.held(scored)).fold(0.0, f64::max);
        fills
    }

    /// 0 for an empty cache to 1 for the fullest one, or as full a one; 0 where nobody has anything.
    pub(super) fn of(&self, scored: &Scored) -> f64 {
        if self.fullest > 0.0 { self.held(scored) / self.fullest } else { 0.0 }
    }

    fn held(&self, scored: &Scored) -> f64 {
        let held = f64::from(self.matches.held_blocks(scored.slot));
        match self.candidates[scored.place as usize].profile.limits.total_kv_blocks {
            Some(blocks) if self.in_shares => held / blocks as f64,
            _ => held,
        }
    }
}
