//! Workers that report blocks in which nothing that they served is ever found: their caches count for nothing, and
//! nothing else would say so.
//!
//! Of each worker that was never found with anything, some prompts that it answered are kept, by the hash of their first
//! block, and looked for in the index when their events must have come. One that is found settles it for good; when many
//! in a row are not, although the worker holds blocks, the two do not hash alike.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use dynamo_kv_router::{MatchBuffer, WorkerRank};
use dynamo_tokens::LocalBlockHash;
use parking_lot::Mutex;

use super::Router;

/// Prompts that are looked for in vain before somebody is told: some may have been evicted at once, not all.
const MISSES: u32 = 16;
/// From the end of an answer to the look: events take milliseconds.
const SETTLED: Duration = Duration::from_secs(2);
/// Prompts of a worker that wait to be looked for; more are not needed.
const SAMPLES: usize = 4;

/// What is known of one worker.
struct Watched {
    epoch: u64,
    samples: Vec<Sample>,
    misses: u32,
    /// A prompt of it was found.
    is_found: bool,
}

#[derive(Clone, Copy)]
struct Sample {
    rank: WorkerRank,
    first_block: LocalBlockHash,
    since: Instant,
}

/// The workers of a router. No more than there are.
#[derive(Default)]
pub(super) struct Unfound {
    workers: Mutex<HashMap<u64, Watched>>,
    /// Those of which no prompt was found yet; read with each answer's end.
    open: AtomicUsize,
}

impl Unfound {
    fn change<T>(&self, change: impl FnOnce(&mut HashMap<u64, Watched>) -> T) -> T {
        let mut workers = self.workers.lock();
        let changed = change(&mut workers);
        self.open.store(workers.values().filter(|it| !it.is_found).count(), Ordering::Relaxed);
        changed
    }

    /// A worker is routed to; in a new incarnation nothing is known of it.
    pub(super) fn added(&self, worker_id: u64, epoch: u64) {
        self.change(|workers| {
            if workers.get(&worker_id).is_none_or(|known| known.epoch != epoch) {
                let watched = Watched { epoch, samples: Vec::new(), misses: 0, is_found: false };
                workers.insert(worker_id, watched);
            }
        });
    }

    pub(super) fn removed(&self, worker_id: u64) {
        self.change(|workers| workers.remove(&worker_id));
    }

    /// A rank has answered a prompt that begins so.
    pub(super) fn served(&self, rank: WorkerRank, first_block: LocalBlockHash, now: Instant) {
        if self.open.load(Ordering::Relaxed) == 0 {
            return;
        }
        if let Some(watched) = self.workers.lock().get_mut(&rank.worker_id)
            && !watched.is_found
            && watched.samples.len() < SAMPLES
        {
            watched.samples.push(Sample { rank, first_block, since: now });
        }
    }

    /// Those to be looked for now.
    fn due(&self, now: Instant) -> Vec<Sample> {
        if self.open.load(Ordering::Relaxed) == 0 {
            return Vec::new();
        }
        let mut due = Vec::new();
        for watched in self.workers.lock().values_mut() {
            let is_due = |sample: &mut Sample| now >= sample.since + SETTLED;
            due.extend(watched.samples.extract_if(.., is_due));
        }
        due
    }

    /// A prompt was looked for; whether it is time to tell.
    fn looked(&self, rank: WorkerRank, is_found: bool) -> bool {
        if is_found {
            self.change(|workers| {
                if let Some(watched) = workers.get_mut(&rank.worker_id) {
                    watched.is_found = true;
                    watched.misses = 0;
                    watched.samples = Vec::new();
                }
            });
            return false;
        }
        self.workers.lock().get_mut(&rank.worker_id).is_some_and(|watched| {
            watched.misses = watched.misses.saturating_add(1);
            watched.misses == MISSES
        })
    }

    /// Workers of which many prompts were looked for and none was found.
    fn count(&self) -> usize {
        self.workers.lock().values().filter(|watched| watched.misses >= MISSES).count()
    }
}

impl Router {
    /// Looks for prompts that workers have served, and tells of those whose hashes never match. For every second or so.
    pub(super) fn look_for_served(&self, now: Instant) {
        let due = self.unfound.due(now);
        // What waits in the lanes may be what is looked for.
        if due.is_empty() || self.index.gauges().oldest_wait >= SETTLED {
            return;
        }
        let mut matches = MatchBuffer::default();
        for Sample { rank, first_block, .. } in due {
            let held_blocks = self.index.held_blocks(rank);
            self.index.find_matches(&[first_block], &mut matches);
            let on_device = matches.matches().iter().map(|found| found.slot);
            let mut found = on_device.chain(matches.lower_tiers().iter().map(|found| found.slot));
            let is_found = found.any(|slot| self.index.owner(slot) == Some(rank));
            // A rank that reports nothing has no hashes that could differ.
            if (is_found || held_blocks > 0) && self.unfound.looked(rank, is_found) {
                tracing::warn!(
                    worker_id = rank.worker_id,
                    dp_rank = rank.dp_rank,
                    held_blocks,
                    prompts = MISSES,
                    "none of the prompts that the worker served is among the blocks that it reports, so what it has \
                     cached does not count: check that its block size is the router's, that it adds no hash seed or \
                     cache salt of its own, and that it gets the prompts as the router tokenizes them (chat template, \
                     adapter)"
                );
            }
        }
    }

    /// Workers that report blocks among which nothing that they served is ever found.
    pub(crate) fn unfound_workers(&self) -> usize {
        self.unfound.count()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use dynamo_engine_api::{ExternalBlockHash, KvCacheEventData, StorageTier, StoredBlock};
    use dynamo_tokens::{BlockSize, HashSeed, local_block_hashes};

    use super::*;
    use crate::router::{
        RouterConfig, RouterMode,
        tests::{WORKER, request, route, router_for_tests},
    };

    const FOUR: BlockSize = BlockSize::new(4).unwrap();

    fn router() -> Arc<Router> {
        let router = router_for_tests(RouterConfig::of(RouterMode::Kv), FOUR);
        assert!(router.set_worker(&WORKER));
        router
    }

    fn prompt(number: u32) -> Vec<u32> {
        (number * 100..number * 100 + 10).collect()
    }

    /// The worker serves a prompt and reports its blocks, hashed with a seed; and it is looked for.
    fn serve(router: &Arc<Router>, epoch: u64, number: u32, seed: HashSeed, tier: StorageTier) {
        let tokens = prompt(number);
        let mut booking = route(router, &request(&tokens, &[])).unwrap();
        booking.on_progress(1, Instant::now());
        drop(booking);
        let mut locals = Vec::new();
        local_block_hashes(&tokens, FOUR, seed, &mut locals);
        let block = |(place, &tokens_hash)| StoredBlock {
            block_hash: ExternalBlockHash(u64::from(number) << 8 | place),
            tokens_hash,
        };
        let blocks = (0..).zip(&locals).map(block).collect();
        let rank = WorkerRank { worker_id: WORKER.worker_id, dp_rank: 0 };
        let stored = KvCacheEventData::Stored { parent_hash: None, blocks };
        router.index.apply(rank, epoch, tier, stored).unwrap();
        router.index.flush(Duration::from_secs(20)).unwrap();
        router.look_for_served(Instant::now() + SETTLED);
    }

    #[test]
    fn a_worker_that_hashes_otherwise_is_told_of_once_and_not_before_it_is_clear() {
        let router = router();
        let salted = HashSeed::new(None, Some("salt"));
        for number in 1..MISSES {
            serve(&router, 1, number, salted, StorageTier::Device);
        }
        assert_eq!(router.unfound_workers(), 0);
        serve(&router, 1, MISSES, salted, StorageTier::Device);
        assert_eq!(router.unfound_workers(), 1);
        assert!(!router.unfound.looked(WorkerRank { worker_id: 7, dp_rank: 0 }, false), "it was told");
        // Its next incarnation may do better.
        assert!(router.set_worker(&super::super::RoutedWorker { epoch: 2, ..WORKER }));
        assert_eq!(router.unfound_workers(), 0);
        serve(&router, 2, 99, HashSeed::PLAIN, StorageTier::HostPinned);
        assert_eq!(router.unfound.open.load(Ordering::Relaxed), 0, "it was found, be it on its host");
        router.remove_worker(7);
        assert!(router.unfound.workers.lock().is_empty());
    }

    #[test]
    fn a_worker_that_reports_nothing_is_another_matter() {
        let router = router();
        for number in 0..2 * MISSES {
            let tokens = prompt(number);
            let mut booking = route(&router, &request(&tokens, &[])).unwrap();
            booking.on_progress(1, Instant::now());
            drop(booking);
            router.look_for_served(Instant::now() + SETTLED);
        }
        assert_eq!(router.unfound_workers(), 0);
        // Nor is one that gave no answer.
        drop(route(&router, &request(&prompt(1), &[])).unwrap());
        assert!(router.unfound.due(Instant::now() + SETTLED).is_empty());
    }

    #[test]
    fn what_waits_to_be_looked_for_is_bounded() {
        let (unfound, now) = (Unfound::default(), Instant::now());
        unfound.added(7, 1);
        let rank = WorkerRank { worker_id: 7, dp_rank: 0 };
        for hash in 0..100 {
            unfound.served(rank, LocalBlockHash(hash), now);
        }
        assert!(unfound.due(now).is_empty(), "its events may be on their way");
        assert_eq!(unfound.due(now + SETTLED).len(), SAMPLES);
    }
}
