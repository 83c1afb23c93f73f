//! Whether what workers held before this router came is known: each one's dump is waited for, but not for long.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use dynamo_engine_api::DpRank;
use dynamo_kv_router::WorkerRank;
use parking_lot::Mutex;

/// How long a worker's dump is waited for. After that it is routed to as if it held nothing, while its dump is still asked
/// for.
pub(crate) const DUMP_PATIENCE: Duration = Duration::from_secs(10);

struct Warming {
    since: Instant,
    /// Ranks whose dump is not in; `None` before the worker is routed to.
    pending: Option<BTreeSet<DpRank>>,
    /// Its time was over before its dump was in.
    late: bool,
}

impl Warming {
    fn is_warm(&self) -> bool {
        self.pending.as_ref().is_some_and(BTreeSet::is_empty)
    }
}

/// What has become known of the workers of one endpoint. Bounded by the workers there are.
pub(crate) struct Warmup {
    patience: Duration,
    workers: Mutex<BTreeMap<u64, Warming>>,
    /// Workers that are not warm: read with each event.
    not_warm: AtomicUsize,
    late: AtomicUsize,
}

impl Warmup {
    pub(crate) fn new(patience: Duration) -> Self {
        Self { patience, workers: Mutex::default(), not_warm: AtomicUsize::new(0), late: AtomicUsize::new(0) }
    }

    fn change<T>(&self, change: impl FnOnce(&mut BTreeMap<u64, Warming>) -> T) -> T {
        let mut workers = self.workers.lock();
        let changed = change(&mut workers);
        self.not_warm.store(workers.values().filter(|it| !it.is_warm()).count(), Ordering::Release);
        changed
    }

    /// These are registered; nobody else is, unless it is routed to.
    pub(crate) fn expect(&self, registered: &BTreeSet<u64>, now: Instant) {
        self.change(|workers| {
            workers.retain(|id, warming| warming.pending.is_some() || registered.contains(id));
            for &id in registered {
                workers.entry(id).or_insert(Warming { since: now, pending: None, late: false });
            }
        });
    }

    /// A worker, or its next incarnation, is routed to, and its dumps were asked for.
    pub(crate) fn added(&self, worker_id: u64, ranks: Range<DpRank>, now: Instant) {
        self.change(|workers| {
            let expected = workers.remove(&worker_id).filter(|it| it.pending.is_none() && !it.late);
            let since = expected.map_or(now, |expected| expected.since);
            workers.insert(worker_id, Warming { since, pending: Some(ranks.collect()), late: false });
        });
    }

    /// A worker is not routed to any more.
    pub(crate) fn removed(&self, worker_id: u64) {
        self.change(|workers| workers.remove(&worker_id));
    }

    /// What a rank holds is known.
    pub(crate) fn recovered(&self, rank: WorkerRank) {
        if self.not_warm.load(Ordering::Acquire) == 0 {
            return;
        }
        self.change(|workers| {
            if let Some(pending) = workers.get_mut(&rank.worker_id).and_then(|it| it.pending.as_mut()) {
                pending.remove(&rank.dp_rank);
            }
        });
    }

    /// Gives up waiting for those whose time is over, and says who they are.
    pub(crate) fn expire(&self, now: Instant) -> Vec<u64> {
        if self.not_warm.load(Ordering::Acquire) == 0 {
            return Vec::new();
        }
        let mut late = Vec::new();
        for (&id, warming) in self.workers.lock().iter_mut() {
            if !warming.late && !warming.is_warm() && now >= warming.since + self.patience {
                warming.late = true;
                late.push(id);
            }
        }
        self.late.fetch_add(late.len(), Ordering::Relaxed);
        late
    }

    /// Whether somebody is there, and nobody is waited for any more.
    pub(crate) fn is_settled(&self) -> bool {
        let workers = self.workers.lock();
        !workers.is_empty() && workers.values().all(|it| it.late || it.is_warm())
    }

    /// Workers that are routed to as if they held nothing, for what they hold is not known.
    pub(crate) fn cold_workers(&self) -> usize {
        self.workers.lock().values().filter(|it| it.pending.is_some() && !it.is_warm()).count()
    }

    /// How often a worker's dump did not come in time.
    pub(crate) fn late_dumps(&self) -> usize {
        self.late.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(10);

    fn rank(worker_id: u64, dp_rank: DpRank) -> WorkerRank {
        WorkerRank { worker_id, dp_rank }
    }

    #[test]
    fn it_is_settled_when_every_rank_of_every_worker_is_known() {
        let (warmup, now) = (Warmup::new(PATIENCE), Instant::now());
        assert!(!warmup.is_settled(), "nobody is there");
        warmup.expect(&BTreeSet::from([7, 8]), now);
        warmup.added(7, 0..2, now);
        warmup.recovered(rank(7, 0));
        warmup.recovered(rank(7, 1));
        assert!(!warmup.is_settled(), "8 is registered");
        assert_eq!(warmup.cold_workers(), 0);
        warmup.added(8, 0..1, now);
        assert_eq!(warmup.cold_workers(), 1);
        warmup.recovered(rank(8, 0));
        assert!(warmup.is_settled());
        warmup.added(8, 0..1, now);
        assert!(!warmup.is_settled(), "its next incarnation is not known");
        warmup.removed(8);
        assert!(warmup.is_settled());
    }

    #[test]
    fn a_worker_whose_dump_does_not_come_is_cold_and_nobody_waits() {
        let (warmup, now) = (Warmup::new(PATIENCE), Instant::now());
        warmup.expect(&BTreeSet::from([7, 8]), now);
        warmup.added(7, 0..1, now + Duration::from_secs(9));
        assert!(warmup.expire(now + Duration::from_secs(9)).is_empty());
        assert_eq!(warmup.expire(now + PATIENCE), [7, 8], "8 never came");
        assert!(warmup.expire(now + PATIENCE).is_empty());
        assert!(warmup.is_settled());
        assert_eq!((warmup.cold_workers(), warmup.late_dumps()), (1, 2));
        warmup.recovered(rank(7, 0));
        assert_eq!((warmup.cold_workers(), warmup.late_dumps()), (0, 2));
    }

    #[test]
    fn a_registration_that_vanishes_is_not_waited_for() {
        let (warmup, now) = (Warmup::new(PATIENCE), Instant::now());
        warmup.expect(&BTreeSet::from([7, 8]), now);
        warmup.added(7, 0..1, now);
        warmup.recovered(rank(7, 0));
        warmup.expect(&BTreeSet::from([]), now);
        assert!(warmup.is_settled(), "7 is in doubt and stays");
    }
}
