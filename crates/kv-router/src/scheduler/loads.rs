//! Loads, for whoever asks from outside.

use dynamo_tokens::SequenceHash;

use super::KvScheduler;
use crate::{Candidate, MatchBuffer, SlotLoad, WorkerRank};

/// What would be on a rank if a request went there.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PotentialLoad {
    /// The rank.
    pub worker: WorkerRank,
    /// Prompt tokens to compute, the request's included.
    pub potential_prefill_tokens: u64,
    /// Blocks, the request's included.
    pub potential_decode_blocks: f64,
    /// Requests, without this one.
    pub active_requests: u32,
}

impl KvScheduler {
    /// What would be on each rank if a request went there. Prompts that are computed now count in full: these are the
    /// figures of what was sent, not of a [`crate::PrefillLoadModel`].
    pub fn potential_loads(
        &mut self,
        prompt_blocks: &[SequenceHash],
        isl_tokens: usize,
        matches: &MatchBuffer,
    ) -> Vec<PotentialLoad> {
        self.project(prompt_blocks, None);
        let counts_tokens = self.config.track_prefill_tokens;
        let of = |candidate: &Candidate| {
            let load = self.loads.get(candidate.slot).copied().unwrap_or_default();
            let cached = matches.device_blocks(candidate.slot) as usize * self.block_size.get();
            let new_tokens = if counts_tokens { isl_tokens.saturating_sub(cached) as u64 } else { 0 };
            PotentialLoad {
                worker: candidate.worker,
                potential_prefill_tokens: load.prefill_tokens + new_tokens,
                potential_decode_blocks: load.decode_blocks,
                active_requests: load.requests,
            }
        };
        self.candidates().iter().map(of).collect()
    }

    /// What runs on each rank.
    pub fn worker_loads(&self) -> impl Iterator<Item = (WorkerRank, SlotLoad)> + '_ {
        self.candidates().iter().map(|candidate| (candidate.worker, self.active.load(candidate.slot)))
    }

    /// Prompt tokens that ranks compute in a second, of those whose speed is measured and known: see
    /// [`crate::PrefillLoadModel::Measured`].
    pub fn prefill_speeds(&self) -> impl Iterator<Item = (WorkerRank, f64)> + '_ {
        self.candidates()
            .iter()
            .filter_map(|candidate| Some((candidate.worker, self.active.prefill_speed(candidate.slot)?)))
    }
}
