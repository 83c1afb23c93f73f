//! What the router would do, without doing it.

use dynamo_kv_router::{MatchBuffer, PotentialLoad, SelectRequest, WorkerRank};
use dynamo_tokens::{HashSeed, SequenceHash, local_block_hashes, sequence_hashes};

use super::{RouteRequest, Router, schedule_error};
use crate::GenerateError;

impl Router {
    /// Whom a request would go to, and how many leading blocks of its prompt that one is believed to hold. Nothing is
    /// booked.
    pub(crate) fn best_worker(&self, request: &RouteRequest<'_>) -> Result<(WorkerRank, u32), GenerateError> {
        let (sequence, matches) = self.matches(request.tokens, request.seed);
        let wanted = dynamo_kv_router::ScheduleRequest {
            prompt_blocks: &sequence,
            expected_output_tokens: request.expected_output_tokens,
            select: SelectRequest {
                isl_tokens: request.tokens.len(),
                pinned_worker: request.pinned_worker,
                pinned_rank: request.pinned_rank,
                excluded: request.excluded,
                ..SelectRequest::default()
            },
        };
        let selection =
            self.scheduler.lock().choose(&wanted, &matches).map_err(|error| schedule_error(error.into()))?;
        Ok((selection.worker, selection.overlap_blocks))
    }

    /// What would be on each rank if a request went there.
    pub(crate) fn potential_loads(&self, tokens: &[u32], seed: HashSeed) -> Vec<PotentialLoad> {
        let (sequence, matches) = self.matches(tokens, seed);
        self.scheduler.lock().potential_loads(&sequence, tokens.len(), &matches)
    }

    fn matches(&self, tokens: &[u32], seed: HashSeed) -> (Vec<SequenceHash>, MatchBuffer) {
        let (mut local, mut sequence, mut matches) = (Vec::new(), Vec::new(), MatchBuffer::default());
        local_block_hashes(tokens, self.block_size, seed, &mut local);
        sequence_hashes(&local, &mut sequence);
        if self.wants_events() {
            self.index.read().find_matches(&local, &mut matches);
        }
        (sequence, matches)
    }
}
