//! Events on the way that they take in a router: through a queue to a lane, which applies them.

use std::{
    num::NonZeroUsize,
    time::{Duration, Instant},
};

use dynamo_engine_api::{KvCacheEventData, StorageTier};
use dynamo_kv_router::{IndexerKind, LaneConfig, LaneIndex, WorkerRank};

/// Seconds until all events are applied by one lane.
pub(crate) fn write(kind: IndexerKind, workers: u32, events: Vec<(u32, KvCacheEventData)>) -> f64 {
    let one = NonZeroUsize::MIN;
    let config = LaneConfig { lanes: one, ..LaneConfig::REFERENCE };
    let index = LaneIndex::start(kind.build(one), &config, |report| panic!("{report:?}")).expect("a thread");
    for worker_id in 0..u64::from(workers) {
        index.add_worker(worker_id, 1, 0..1, None).expect("room");
    }
    let start = Instant::now();
    for (worker, event) in events {
        let worker = WorkerRank { worker_id: worker.into(), dp_rank: 0 };
        index.apply(worker, 1, StorageTier::Device, event).expect("known workers");
    }
    index.flush(Duration::from_secs(600)).expect("in time");
    start.elapsed().as_secs_f64()
}
