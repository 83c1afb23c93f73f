//! The modes that choose without looking at caches.

use dynamo_kv_router::{KvScheduler, SelectRequest, WorkerRank};
use rand::seq::IteratorRandom;

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
        let eligible = scheduler.eligible(&select);
        let chosen = if self.config.mode == RouterMode::Random {
            eligible.choose(&mut rand::rng())
        } else {
            // In the order of ids, so that turns do not depend on the order in which workers came.
            let order = |worker: &WorkerRank| (worker.worker_id, worker.dp_rank);
            let mut last_turn = self.last_turn.lock();
            let after = last_turn.as_ref().map(order);
            let following = eligible.clone().filter(|worker| after.is_none_or(|after| order(worker) > after));
            let chosen = following.min_by_key(order).or_else(|| eligible.min_by_key(order));
            *last_turn = chosen.or(*last_turn);
            chosen
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
