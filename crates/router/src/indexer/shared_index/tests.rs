use std::sync::mpsc;

use dynamo_engine_api::{ExternalBlockHash, StoredBlock};
use dynamo_runtime::Runtime;

use super::*;

/// Long enough for a busy machine; no test that passes waits it out.
const PATIENCE: Duration = Duration::from_secs(20);

const RANK: WorkerRank = WorkerRank { worker_id: 7, dp_rank: 0 };

fn started(threads: usize) -> (SharedKvIndex, Runtime) {
    let runtime = Runtime::new(tokio::runtime::Handle::current());
    let choice = IndexChoice::new(threads, None).unwrap();
    let index = SharedKvIndex::start(choice, runtime.scope().child("test")).unwrap();
    index.set_worker(RANK.worker_id, 0..1).unwrap();
    (index, runtime)
}

fn stored(tier: StorageTier, name: u64) -> TierEvent {
    let block = StoredBlock { block_hash: ExternalBlockHash(name), tokens_hash: LocalBlockHash(name) };
    let parent_hash = name.checked_sub(1).map(ExternalBlockHash);
    (tier, KvCacheEventData::Stored { parent_hash, blocks: vec![block] })
}

/// Device, host and any.
fn held(index: &SharedKvIndex, blocks: u64) -> Vec<(u32, u32, u32)> {
    let local: Vec<LocalBlockHash> = (0..blocks).map(LocalBlockHash).collect();
    let found = index.find_matches(&local, Instant::now(), &mut MatchBuffer::default());
    found.iter().map(|held| (held.device, held.host, held.any)).collect()
}

async fn bring_all(index: &SharedKvIndex, events: impl IntoIterator<Item = TierEvent>) {
    let mut events = events.into_iter().collect();
    while index.bring(RANK, &mut events) != Brought::All {
        index.caught_up().await;
    }
    index.caught_up().await;
}

/// Keeps the index's thread from its work until something is sent; says whether that was in time.
fn held_up(index: &SharedKvIndex) -> (mpsc::Sender<()>, mpsc::Receiver<bool>) {
    let (release, released) = mpsc::channel();
    let (tell, told) = mpsc::channel();
    index.lanes().flush_with(move |_| {
        let in_time = released.recv_timeout(PATIENCE).is_ok();
        let _ = tell.send(in_time);
    });
    (release, told)
}

#[tokio::test]
async fn what_has_no_room_is_given_back_in_order_and_fits_later() {
    let (index, _runtime) = started(4);
    let (release, in_time) = held_up(&index);
    let count = 3 * LaneConfig::REFERENCE.queued_events.get() as u64;
    let mut events: VecDeque<TierEvent> = (0..count).map(|name| stored(StorageTier::Device, name)).collect();
    while index.bring(RANK, &mut events) == Brought::Some {}
    let left = events.len() as u64;
    assert!(left >= count / 3, "{left} of {count} are left");
    assert_eq!(events.front(), Some(&stored(StorageTier::Device, count - left)));
    assert_eq!(index.bring(RANK, &mut events), Brought::Full);
    assert_eq!(events.len() as u64, left);
    release.send(()).unwrap();
    bring_all(&index, events).await;
    assert_eq!(in_time.recv(), Ok(true));
    assert_eq!(held(&index, count), [(count as u32, count as u32, count as u32)]);
}

#[tokio::test]
async fn tiers_add_up_whatever_the_index_is_made_of() {
    for threads in [1, 4] {
        let (index, _runtime) = started(threads);
        let device = [0, 1].map(|name| stored(StorageTier::Device, name));
        bring_all(&index, device).await;
        assert_eq!(held(&index, 9), [(2, 2, 2)]);
        let bytes = index.counts().bytes;
        let below = [stored(StorageTier::HostPinned, 2), stored(StorageTier::External, 3)];
        bring_all(&index, below).await;
        assert_eq!(held(&index, 9), [(2, 3, 4)]);
        assert_eq!(index.counts().blocks, 2);
        assert!(index.counts().bytes > bytes);
        // Of what only a lower tier has, nothing counts without the blocks before.
        let removed = KvCacheEventData::Removed { block_hashes: vec![ExternalBlockHash(0)] };
        bring_all(&index, [(StorageTier::Device, removed)]).await;
        assert_eq!(held(&index, 9), []);
        bring_all(&index, [stored(StorageTier::Disk, 0)]).await;
        assert_eq!(held(&index, 9), [(0, 0, 4)]);
        index.clear_rank(RANK);
        assert_eq!(held(&index, 9), []);
        assert!(index.dump_rank(RANK).unwrap().is_empty());
    }
}

#[tokio::test]
async fn uses_leave_the_count_with_the_window_and_lower_tiers_have_none() {
    let runtime = Runtime::new(tokio::runtime::Handle::current());
    let choice = IndexChoice::new(1, Some(Duration::from_secs(80))).unwrap();
    let index = SharedKvIndex::start(choice, runtime.scope().child("test")).unwrap();
    index.set_worker(RANK.worker_id, 0..1).unwrap();
    let device = [0, 1].map(|name| stored(StorageTier::Device, name));
    bring_all(&index, device.into_iter().chain([stored(StorageTier::HostPinned, 2)])).await;
    let (start, mut buffer) = (Instant::now(), MatchBuffer::default());
    let mut ask = |blocks, seconds| {
        let local: Vec<LocalBlockHash> = (0..blocks).map(LocalBlockHash).collect();
        index.find_matches(&local, start + Duration::from_secs(seconds), &mut buffer);
        buffer.frequencies().to_vec()
    };
    assert!(ask(3, 0).is_empty());
    assert_eq!(ask(1, 65), [1]);
    assert_eq!(ask(3, 69), [2, 1]);
    assert_eq!(ask(3, 85), [2, 1]);
    assert!(ask(3, 400).is_empty());
}

#[tokio::test]
async fn its_end_waits_for_its_thread_elsewhere() {
    let (index, runtime) = started(4);
    let (release, in_time) = held_up(&index);
    // This thread is the only one that could release the other.
    drop(index);
    release.send(()).unwrap();
    assert_eq!(in_time.recv(), Ok(true));
    tokio::time::timeout(PATIENCE, async {
        while runtime.scope().tasks() > 0 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn a_broken_index_says_so_and_keeps_nobody_waiting() {
    let (index, _runtime) = started(4);
    assert!(!index.is_broken());
    index.break_down();
    bring_all(&index, (0..1000).map(|name| stored(StorageTier::Device, name))).await;
    assert!(index.is_broken());
    assert!(index.dump_rank(RANK).is_err());
}
