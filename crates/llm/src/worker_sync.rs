//! Keeps one model's router in step with its workers.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use dynamo_kv_router::{MAX_RANKS_PER_WORKER, RankLimits};
use dynamo_runtime::{Client, Instance, InstanceState, TaskScope};
use tokio::sync::{mpsc, watch};

use crate::{
    RuntimeConfigCard,
    kv_events::WorkerNews,
    router::{RoutedWorker, Router},
    worker_count::WorkerCount,
};

/// What a card says of a worker's size, and others of its adapters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WorkerCard {
    pub(crate) epoch: u64,
    pub(crate) runtime_config: RuntimeConfigCard,
    /// Adapters that it has, in order.
    pub(crate) adapters: Vec<String>,
}

/// What is registered under a model's name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct WorkerCards {
    /// By worker: the model itself.
    pub(crate) own: BTreeMap<u64, WorkerCard>,
    /// Workers that registered something else.
    pub(crate) others: BTreeSet<u64>,
}

/// One endpoint instance, as far as it matters here.
#[derive(Clone, Copy, Debug)]
struct Seen {
    worker_id: u64,
    epoch: u64,
    state: InstanceState,
}

/// Keeps the router's workers equal to those that are both instances of the endpoint and registered with the card.
pub(crate) struct WorkerSync {
    router: Arc<Router>,
    news: Option<mpsc::Sender<WorkerNews>>,
    /// Cards of all instances there are. A worker whose records vanished is in doubt and may live: its card is needed
    /// for as long as the instance is known.
    remembered: BTreeMap<u64, WorkerCard>,
    routed: BTreeMap<u64, RoutedWorker>,
    /// How many those are, for others to see.
    count: Arc<WorkerCount>,
}

impl WorkerSync {
    pub(crate) fn new(
        router: Arc<Router>,
        news: Option<mpsc::Sender<WorkerNews>>,
        count: Arc<WorkerCount>,
    ) -> Self {
        Self { router, news, remembered: BTreeMap::new(), routed: BTreeMap::new(), count }
    }

    pub(crate) async fn run(
        mut self,
        client: Client,
        mut cards: watch::Receiver<WorkerCards>,
        scope: TaskScope,
    ) {
        let mut instances = client.watch();
        loop {
            let seen: Vec<Seen> = instances.borrow_and_update().iter().map(seen).collect();
            let registered = cards.borrow_and_update().clone();
            let news = self.update(&seen, registered);
            for news in news {
                self.tell(news).await;
            }
            tokio::select! {
                () = scope.cancelled() => return,
                changed = instances.changed() => if changed.is_err() { return },
                changed = cards.changed() => if changed.is_err() { return },
            }
        }
    }

    /// Takes in what is known now, and returns what the follower of events is to be told.
    fn update(&mut self, instances: &[Seen], cards: WorkerCards) -> Vec<WorkerNews> {
        let WorkerCards { own, others } = cards;
        self.remembered.extend(own);
        self.remembered.retain(|worker_id, card| {
            let same = |seen: &Seen| seen.worker_id == *worker_id && seen.epoch <= card.epoch;
            instances.iter().any(same) && !others.contains(worker_id)
        });
        let wanted = wanted(instances, &self.remembered);
        let mut news = Vec::new();
        let gone: Vec<u64> = self.routed.keys().filter(|id| !wanted.contains_key(id)).copied().collect();
        for worker_id in gone {
            tracing::info!(worker_id, "worker is gone");
            self.routed.remove(&worker_id);
            self.router.remove_worker(worker_id);
            news.push(WorkerNews::Removed { worker_id });
        }
        for (worker_id, new) in wanted {
            let old = self.routed.get(&worker_id);
            // What could not be taken on is tried again with the next change.
            if old == Some(&new) || !self.router.set_worker(&new) {
                continue;
            }
            let described = |worker: &RoutedWorker| (worker.epoch, worker.first_rank, worker.ranks);
            if old.is_none_or(|old| described(old) != described(&new)) {
                tracing::info!(worker_id, epoch = new.epoch, ranks = new.ranks, "worker is routed to");
                let ranks = new.first_rank..new.first_rank.saturating_add(new.ranks);
                news.push(WorkerNews::Added { worker_id, epoch: new.epoch, ranks });
            } else {
                tracing::info!(worker_id, draining = new.draining, adapters = ?new.adapters, "worker changed");
            }
            self.routed.insert(worker_id, new);
        }
        self.count.set(self.routed.len());
        news
    }

    async fn tell(&self, news: WorkerNews) {
        if let Some(sender) = &self.news {
            // A follower that is gone ended with this task's own scope.
            let _ = sender.send(news).await;
        }
    }
}

fn seen(instance: &Instance) -> Seen {
    Seen {
        worker_id: instance.worker_id().get(),
        epoch: instance.incarnation().epoch.get(),
        state: instance.state(),
    }
}

fn wanted(instances: &[Seen], cards: &BTreeMap<u64, WorkerCard>) -> BTreeMap<u64, RoutedWorker> {
    let routed = |&Seen { worker_id, epoch, state }: &Seen| {
        let card = cards.get(&worker_id).filter(|card| card.epoch == epoch)?;
        let runtime = &card.runtime_config;
        let worker = RoutedWorker {
            worker_id,
            epoch,
            first_rank: runtime.data_parallel_start_rank,
            ranks: runtime.data_parallel_size.clamp(1, MAX_RANKS_PER_WORKER),
            limits: RankLimits {
                total_kv_blocks: runtime.total_kv_blocks,
                max_num_batched_tokens: runtime.max_num_batched_tokens,
                max_num_seqs: runtime.max_num_seqs,
            },
            // Whoever is in doubt is avoided request by request, for it is asked when nobody else is left.
            draining: state == InstanceState::Draining,
            taints: runtime.taints.clone(),
            adapters: card.adapters.clone(),
        };
        Some((worker_id, worker))
    };
    instances.iter().filter_map(routed).collect()
}

#[cfg(test)]
mod tests;
