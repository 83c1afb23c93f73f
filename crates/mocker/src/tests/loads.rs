//! Blocks that come from other engines.

use std::time::Duration;

use dynamo_scheduler::{BlockChange, BlockId, BlockPool, LoadState, LoadTicket, RequestId};
use dynamo_tokens::SequenceHash;

use super::pool::{SIZE, ask, contents, removed};
use crate::{SimPool, TransferTime};

const REQUEST: RequestId = RequestId(1);

fn seconds(value: u64) -> Duration {
    Duration::from_secs(value)
}

/// A block takes a second.
fn pool(prefix_caching: bool) -> SimPool {
    let mut pool = SimPool::new(SIZE, 16, prefix_caching);
    pool.set_transfer_time(TransferTime::new(1_000_000_000, 1.0, 1.0));
    pool
}

/// Starts to load three blocks, of the contents from 10 on.
fn load(pool: &mut SimPool, request: u64) -> (LoadTicket, Vec<BlockId>) {
    pool.promise(RequestId(request), 3);
    let (found, blocks) = ask(pool, request, 10..13, true);
    let pending = found.pending.unwrap();
    assert_eq!((found.ready, pending.blocks), (0, 3));
    (pending.ticket, blocks)
}

#[test]
fn what_is_promised_arrives_in_its_time_and_is_told_of() {
    let mut pool = pool(true);
    pool.keep_tokens();
    pool.set_now(seconds(100));
    let (ticket, blocks) = load(&mut pool, 1);
    assert_eq!(pool.next_load_due(), Some(seconds(103)));
    pool.set_now(seconds(102));
    assert_eq!(pool.poll_load(ticket), LoadState::Pending);
    assert!(!pool.has_changes(), "nobody may find what is not there");
    pool.set_now(seconds(103));
    assert_eq!(pool.poll_load(ticket), LoadState::Done { arrived: 3 });
    assert_eq!(pool.next_load_due(), None);
    let (mut changes, mut tokens) = (Vec::new(), Vec::new());
    pool.take_changes(&mut changes);
    pool.take_tokens(&mut tokens);
    let stored: Vec<_> = (0..3).map(|at| contents_at(10 + at as u64, at)).map(BlockChange::Stored).collect();
    assert_eq!(changes, stored);
    assert_eq!(tokens, [10, 10, 10, 10, 11, 11, 11, 11, 12, 12, 12, 12]);
    let (again, shared) = ask(&mut pool, 2, 10..13, false);
    assert_eq!((again.ready, &shared), (3, &blocks));
}

fn contents_at(hash: u64, index: usize) -> dynamo_scheduler::FullBlock {
    dynamo_scheduler::FullBlock { index, ..contents(hash) }
}

#[test]
fn only_what_is_not_cached_is_loaded_and_only_once() {
    let mut pool = pool(true);
    let mut own = Vec::new();
    assert!(pool.allocate(0, 1, &mut own));
    pool.register(0, own[0], contents(10));
    pool.promise(REQUEST, 2);
    let (without_room, blocks) = ask(&mut pool, 1, 10..14, false);
    assert_eq!(without_room.pending, None);
    pool.release(0, &blocks);
    let (found, _) = ask(&mut pool, 1, 10..14, true);
    assert_eq!((found.ready, found.pending.unwrap().blocks), (1, 1));
    assert_eq!(ask(&mut pool, 1, 10..14, true).0.pending, None, "what was promised was given");
    pool.promise(REQUEST, 2);
    pool.withdraw(REQUEST);
    assert_eq!(ask(&mut pool, 1, 10..14, true).0.pending, None);
}

#[test]
fn equal_loads_at_once_leak_nothing_and_what_follows_keeps_its_beginning() {
    let mut pool = pool(true);
    let loads: Vec<_> = (1..4).map(|request| load(&mut pool, request)).collect();
    pool.set_now(seconds(3));
    for (ticket, _) in &loads {
        assert_eq!(pool.poll_load(*ticket), LoadState::Done { arrived: 3 });
    }
    assert_eq!((pool.active_blocks(), pool.cached_blocks()), (9, 3));
    // The last one goes on, and is the only one to stay.
    let mut next = Vec::new();
    assert!(pool.allocate(0, 1, &mut next));
    assert_eq!(pool.register(0, next[0], contents(13)), next[0]);
    pool.release(0, &loads[0].1);
    pool.release(0, &loads[1].1);
    assert_eq!(pool.active_blocks(), 7, "its own four, and three with the contents");
    removed(&mut pool);
    let mut all = Vec::new();
    let room = pool.available(0);
    assert!(pool.allocate(0, room, &mut all));
    assert_eq!(removed(&mut pool), [0; 0], "a block would be found whose beginning is gone");
    pool.release(0, &all);
    let mut table = loads[2].1.clone();
    table.extend(next);
    pool.release(0, &table);
    assert_eq!((pool.active_blocks(), pool.available(0), pool.cached_blocks()), (0, 16, 4));
    assert!(pool.allocate(0, 16, &mut all));
    let mut gone = removed(&mut pool);
    assert_eq!(gone.remove(0), 13, "the deepest first");
    gone.sort();
    assert_eq!(gone, [10, 11, 12]);
}

#[test]
fn a_load_that_is_given_up_leaves_blocks_without_contents() {
    let mut pool = pool(true);
    let (ticket, blocks) = load(&mut pool, 1);
    assert_eq!(pool.cancel_load(ticket), 0);
    assert_eq!(pool.next_load_due(), None);
    pool.release(0, &blocks);
    assert_eq!((pool.used_blocks(), pool.available(0)), (0, 16));
    assert!(!pool.has_changes());
}

#[test]
fn without_caching_blocks_are_loaded_all_the_same() {
    let mut pool = pool(false);
    let (ticket, blocks) = load(&mut pool, 1);
    pool.set_now(seconds(3));
    assert_eq!(pool.poll_load(ticket), LoadState::Done { arrived: 3 });
    assert!(!pool.has_changes());
    pool.release(0, &blocks);
    assert_eq!(pool.used_blocks(), 0);
}

#[test]
fn what_has_no_room_is_not_loaded() {
    let mut pool = pool(true);
    assert!(pool.allocate(0, 14, &mut Vec::new()));
    pool.promise(REQUEST, 3);
    assert_eq!(ask(&mut pool, 1, 10..13, true), (Default::default(), Vec::new()));
    assert_eq!(pool.contents().collect::<Vec<SequenceHash>>(), []);
}

#[test]
fn a_transfer_takes_its_bytes_over_its_bandwidth() {
    let time = |bytes, bandwidth, speedup, blocks| TransferTime::new(bytes, bandwidth, speedup).of(blocks);
    assert_eq!(time(64_000_000, 64.0, 1.0, 9), Duration::from_millis(9));
    assert_eq!(time(64_000_000, 64.0, 10.0, 10), Duration::from_millis(1));
    assert_eq!(time(64_000_000, 64.0, 1.0, 0), Duration::ZERO);
    for (bytes, bandwidth, speedup) in [(0, 64.0, 1.0), (1, 0.0, 1.0), (1, 64.0, 0.0)] {
        assert_eq!(time(bytes, bandwidth, speedup, 1000), Duration::ZERO);
    }
    assert_eq!(time(u64::MAX, f64::MIN_POSITIVE, 1.0, usize::MAX), Duration::from_secs(24 * 3600));
}
