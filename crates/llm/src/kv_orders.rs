//! Where the events of each rank stand, and which questions its worker is to be asked. No I/O, no clock.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
    time::{Duration, Instant},
};

use dynamo_engine_api::{DpRank, KvCacheEventData, StorageTier};
use dynamo_kv_router::{
    EventOrder, KvQueryAnswer, Observed, RankEvent, Recovered, RecoveryPolicy, RecoveryRequest, WorkerRank,
};

/// An index that disagrees with its worker asks for all that the worker holds, but not more often than this: a worker
/// whose events never fit would be asked for nothing else.
const DUMP_PAUSE: Duration = Duration::from_secs(5);

/// A question to a worker. One at a time is out for a rank.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ask {
    pub(crate) rank: WorkerRank,
    /// Which of the orders that the rank has had: a later one counts its questions anew.
    pub(crate) generation: u64,
    pub(crate) request: RecoveryRequest,
}

/// What became of an [`Ask`].
pub(crate) struct Outcome {
    pub(crate) rank: WorkerRank,
    pub(crate) generation: u64,
    pub(crate) token: u64,
    pub(crate) answer: Result<KvQueryAnswer, String>,
}

/// What to do about an event.
pub(crate) enum Step {
    Apply(StorageTier, KvCacheEventData),
    Ask(Ask),
    Nothing,
}

/// What to do about an outcome.
pub(crate) struct Answered {
    /// The incarnation that the events are of.
    pub(crate) epoch: u64,
    pub(crate) recovered: Recovered,
    pub(crate) next: Option<Ask>,
}

struct Followed {
    generation: u64,
    order: EventOrder,
    /// When a dump was last asked for because the index lost something.
    dumped: Option<Instant>,
}

/// The orders of all ranks of a model's workers.
#[derive(Default)]
pub(crate) struct KvOrders {
    ranks: HashMap<WorkerRank, Followed>,
    /// Ranks whose dump is still to be asked for.
    wanted_dumps: HashSet<WorkerRank>,
    generations: u64,
}

impl KvOrders {
    /// A worker is there, or is there again with a higher epoch.
    pub(crate) fn add(&mut self, worker_id: u64, epoch: u64, ranks: Range<DpRank>, now: Instant) -> Vec<Ask> {
        let mut asks = Vec::new();
        for dp_rank in ranks {
            let rank = WorkerRank { worker_id, dp_rank };
            if self.ranks.get(&rank).is_none_or(|known| known.order.epoch() < epoch) {
                self.generations += 1;
                let order = EventOrder::new(dp_rank, epoch, RecoveryPolicy::REFERENCE);
                self.ranks.insert(rank, Followed { generation: self.generations, order, dumped: None });
                self.wanted_dumps.remove(&rank);
            }
            let Some(known) = self.ranks.get_mut(&rank) else { continue };
            if known.order.last_event_id().is_none()
                && let Some(request) = known.order.request_dump(now)
            {
                asks.push(Ask { rank, generation: known.generation, request });
            }
        }
        asks
    }

    /// A worker is gone.
    pub(crate) fn remove(&mut self, worker_id: u64) {
        self.ranks.retain(|rank, _| rank.worker_id != worker_id);
        self.wanted_dumps.retain(|rank| rank.worker_id != worker_id);
    }

    /// An event came. Those of a worker that discovery has not named yet count for nothing: its dump will hold them.
    pub(crate) fn observe(&mut self, rank: WorkerRank, epoch: u64, event: RankEvent, now: Instant) -> Step {
        let Some(known) = self.ranks.get_mut(&rank) else { return Step::Nothing };
        match known.order.observe(epoch, event, now) {
            Observed::Apply(event) => Step::Apply(event.storage_tier, event.data),
            Observed::Recover(request) => Step::Ask(Ask { rank, generation: known.generation, request }),
            Observed::Held | Observed::Drop(_) => Step::Nothing,
        }
    }

    /// A question has an outcome; `None` if it is that of an order that is no more.
    pub(crate) fn answered(&mut self, outcome: Outcome, now: Instant) -> Option<Answered> {
        let Outcome { rank, generation, token, answer } = outcome;
        let known = self.ranks.get_mut(&rank).filter(|known| known.generation == generation)?;
        let mut recovered = match answer {
            Ok(answer) => known.order.answered(token, answer, now),
            Err(error) => {
                tracing::debug!(worker_id = rank.worker_id, error, "a KV query was not answered");
                known.order.failed(token, now)
            }
        };
        if recovered.replace {
            self.wanted_dumps.remove(&rank);
        }
        let next = recovered.next.take().map(|request| Ask { rank, generation, request });
        Some(Answered { epoch: known.order.epoch(), recovered, next })
    }

    /// The index lacks something of a rank: its dump is asked for as soon as may be.
    pub(crate) fn lost(&mut self, rank: WorkerRank) {
        if self.ranks.contains_key(&rank) {
            self.wanted_dumps.insert(rank);
        }
    }

    /// The dumps to ask for now. Look after each loss and outcome, and every second or so.
    pub(crate) fn due_dumps(&mut self, now: Instant) -> Vec<Ask> {
        let mut asks = Vec::new();
        self.wanted_dumps.retain(|&rank| {
            let Some(known) = self.ranks.get_mut(&rank) else { return false };
            if known.dumped.is_some_and(|at| now < at + DUMP_PAUSE) {
                return true;
            }
            // While another question is out, the dump waits for its outcome.
            let Some(request) = known.order.request_dump(now) else { return true };
            known.dumped = Some(now);
            asks.push(Ask { rank, generation: known.generation, request });
            false
        });
        asks
    }
}

#[cfg(test)]
mod tests;
