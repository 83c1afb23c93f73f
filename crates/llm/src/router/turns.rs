//! The modes that choose without looking at caches.

use dynamo_kv_router::{KvScheduler, SelectRequest, SlotLoad, WorkerRank};
use rand::{Rng, seq::IteratorRandom};

use super::{Router, RouterMode};
use crate::GenerateError;

impl Router {
    /// In the other modes than KV: the request with the rank that is next. Whether the rank takes it is for the scheduler to
    /// say.
    pub(super) fn in_turn<'a>(
        &self,
        select: SelectRequest<'a>,
        scheduler: &mut KvScheduler,
    ) -> Result<SelectRequest<'a>, GenerateError> {
        if self.config.mode == RouterMode::Kv || select.pinned_worker.is_some() {
            return Ok(select);
        }
        if self.config.mode == RouterMode::Direct {
            return Err(GenerateError::Invalid {
                param: Some("nvext.backend_instance_id"),
                message: "nvext.backend_instance_id: this server routes directly, so a request must name its worker"
                    .to_owned(),
            });
        }
        let chosen = match self.config.mode {
            RouterMode::Random => scheduler.eligible(&select).choose(&mut rand::rng()),
            RouterMode::LeastLoaded => least_loaded(scheduler.eligible_loads(&select)),
            RouterMode::PowerOfTwo => {
                let drawn = scheduler.eligible_loads(&select).choose_multiple(&mut rand::rng(), 2);
                least_loaded(drawn.into_iter())
            }
            _ => {
                let eligible = scheduler.eligible(&select);
                // In the order of ids, so that turns do not depend on the order in which workers came.
                let order = |worker: &WorkerRank| (worker.worker_id, worker.dp_rank);
                let mut last_turn = self.last_turn.lock();
                let after = last_turn.as_ref().map(order);
                let following =
                    eligible.clone().filter(|worker| after.is_none_or(|after| order(worker) > after));
                let chosen = following.min_by_key(order).or_else(|| eligible.min_by_key(order));
                *last_turn = chosen.or(*last_turn);
                chosen
            }
        };
        // With nobody to name, the scheduler says why.
        Ok(match chosen {
            Some(WorkerRank { worker_id, dp_rank }) => {
                SelectRequest { pinned_worker: Some(worker_id), pinned_rank: Some(dp_rank), ..select }
            }
            None => select,
        })
    }
}

/// Of those that run the fewest requests, one with the fewest prompt tokens to compute; among equals any.
fn least_loaded(ranks: impl Iterator<Item = (WorkerRank, SlotLoad)>) -> Option<WorkerRank> {
    let mut rng = rand::rng();
    let key = |(_, load): &(WorkerRank, SlotLoad)| (load.requests, load.prefill_tokens, rng.random::<u32>());
    ranks.min_by_key(key).map(|(rank, _)| rank)
}
