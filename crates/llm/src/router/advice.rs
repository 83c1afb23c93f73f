//! What the router would do, without doing it.

use std::time::Instant;

use dynamo_kv_router::{PotentialLoad, WorkerRank};

use super::{RouteRequest, Router};
use crate::GenerateError;

impl Router {
    /// Whom a request would go to, and how many leading blocks of its prompt that one is believed to hold. Nothing is
    /// booked.
    pub(crate) async fn best_worker(
        &self,
        request: &RouteRequest<'_>,
    ) -> Result<(WorkerRank, u32), GenerateError> {
        let mut scratch = self.scratch.lock().pop().unwrap_or_default();
        self.look_up(request, &mut scratch).await;
        let result = self.choose(request, &scratch);
        self.keep(scratch);
        result.map(|selection| (selection.worker, selection.overlap_blocks))
    }

    /// Whether whoever may serve a request has more prompt tokens outstanding than so many of its largest steps, or is over
    /// a busy threshold.
    pub(crate) fn is_beyond(&self, request: &RouteRequest<'_>, steps: f64) -> bool {
        let class = self.class_of(request).unwrap_or_default();
        let mut scheduler = self.scheduler.lock();
        let select = self.select_request(request, class, &mut scheduler, Instant::now());
        scheduler.all_beyond(&select, steps) || scheduler.eligible(&select).next().is_none()
    }

    /// What would be on each rank if a request went there.
    pub(crate) async fn potential_loads(&self, request: &RouteRequest<'_>) -> Vec<PotentialLoad> {
        let mut scratch = self.scratch.lock().pop().unwrap_or_default();
        self.look_up(request, &mut scratch).await;
        let tokens = request.tokens.len();
        let loads = self.scheduler.lock().potential_loads(&scratch.sequence, tokens, &scratch.matches);
        self.keep(scratch);
        loads
    }
}
