//! A listener that delivers what a test says.

use std::collections::HashMap;

use dynamo_kv_router::WorkerRank;
use dynamo_runtime::TaskScope;
use parking_lot::Mutex;

use super::source::{Deliveries, Delivery, EventSource, ListenTo, ListenerStatus, StatusCell, Unregistered};

struct Listening {
    to: ListenTo,
    deliveries: Deliveries,
    scope: TaskScope,
}

/// Keeps the way to the index of each rank that was registered last.
#[derive(Default)]
pub(super) struct FakeSource(Mutex<HashMap<WorkerRank, Listening>>);

impl EventSource for FakeSource {
    fn listen(&self, to: ListenTo, deliveries: Deliveries, status: StatusCell, scope: TaskScope) {
        status.set(ListenerStatus::Active);
        self.0.lock().insert(to.rank, Listening { to, deliveries, scope });
    }
}

impl FakeSource {
    pub(super) async fn deliver(&self, rank: WorkerRank, delivery: Delivery) -> Result<(), Unregistered> {
        let deliveries = self.0.lock()[&rank].deliveries.clone();
        deliveries.deliver(delivery).await
    }

    pub(super) fn listens(&self, rank: WorkerRank) -> Option<ListenTo> {
        let known = self.0.lock();
        known.get(&rank).filter(|listening| !listening.scope.is_cancelled()).map(|it| it.to.clone())
    }
}
