//! The simulator's blocks.

use std::collections::BTreeSet;

use dynamo_scheduler::{
    BlockChange, BlockId, BlockPool, BlockTable, FullBlock, PrefixMatch, PrefixQuery, RequestId,
};
use dynamo_tokens::{BlockSize, LocalBlockHash, SequenceHash, TokenId};

use crate::{EvictionOrder, LeastRecentlyUsed, SimPool};

pub(super) fn contents(hash: u64) -> FullBlock {
    let parent = (!hash.is_multiple_of(10)).then(|| SequenceHash(hash - 1));
    FullBlock { sequence_hash: SequenceHash(hash), local_hash: LocalBlockHash(hash), parent, index: 0 }
}

/// Three blocks with the contents `first`, `first + 1`, `first + 2`.
fn sequence<O: EvictionOrder>(pool: &mut SimPool<O>, first: u64) -> Vec<BlockId> {
    let mut blocks = Vec::new();
    assert!(pool.allocate(0, 3, &mut blocks));
    for (block, hash) in blocks.iter().zip(first..) {
        assert_eq!(pool.register(0, *block, contents(hash)), *block);
    }
    blocks
}

pub(super) fn removed<O: EvictionOrder>(pool: &mut SimPool<O>) -> Vec<u64> {
    let mut changes = Vec::new();
    pool.take_changes(&mut changes);
    let hash = |change| match change {
        BlockChange::Removed(hash) => Some(hash.0),
        BlockChange::Stored(_) => None,
    };
    changes.into_iter().filter_map(hash).collect()
}

/// What a request is given of the blocks with these contents, whose tokens are their number.
pub(super) fn ask(
    pool: &mut SimPool,
    request: u64,
    hashes: std::ops::Range<u64>,
    may_load: bool,
) -> (PrefixMatch, Vec<BlockId>) {
    let numbers: Vec<u64> = hashes.collect();
    let hashes: Vec<SequenceHash> = numbers.iter().copied().map(SequenceHash).collect();
    let local_hashes: Vec<LocalBlockHash> = numbers.iter().copied().map(LocalBlockHash).collect();
    let tokens: Vec<TokenId> = numbers.iter().flat_map(|&number| [number as u32; 4]).collect();
    let mut table = [BlockTable::default()];
    let query = PrefixQuery {
        request: RequestId(request),
        hashes: &hashes,
        local_hashes: &local_hashes,
        tokens: &tokens,
        may_load,
    };
    let found = pool.match_prefix(query, &mut table);
    let pending = found.pending.map_or(0, |load| load.blocks);
    assert_eq!(found.ready + pending, table[0].blocks().len());
    (found, table[0].blocks().to_vec())
}

fn found(pool: &mut SimPool, hashes: std::ops::Range<u64>) -> Vec<BlockId> {
    let (found, blocks) = ask(pool, 0, hashes, true);
    assert_eq!(found.pending, None, "nothing is promised");
    blocks
}

pub(super) const SIZE: BlockSize = BlockSize::new(4).unwrap();

#[test]
fn least_recently_used_goes_first_and_of_a_sequence_the_deepest() {
    let mut pool = SimPool::new(SIZE, 6, true);
    let (a, b) = (sequence(&mut pool, 10), sequence(&mut pool, 20));
    pool.release(0, &a);
    pool.release(0, &b);
    let again = found(&mut pool, 10..12);
    assert_eq!(again, a[..2]);
    pool.release(0, &again);
    assert_eq!((pool.available(0), pool.active_blocks(), pool.cached_blocks()), (6, 0, 6));
    let mut blocks = Vec::new();
    assert!(pool.allocate(0, 5, &mut blocks));
    assert_eq!(removed(&mut pool), [12, 22, 21, 20, 11]);
    assert!(!pool.allocate(0, 2, &mut blocks) && blocks.len() == 5, "all or none");
    assert_eq!(found(&mut pool, 10..13), a[..1]);
    assert!(!pool.allocate(0, 1, &mut blocks), "it is in use");
}

#[test]
fn equal_contents_become_one_block() {
    let mut pool = SimPool::new(SIZE, 4, true);
    let a = sequence(&mut pool, 10);
    let mut own = Vec::new();
    assert!(pool.allocate(0, 1, &mut own));
    let shared = pool.register(0, own[0], contents(10));
    assert_eq!(shared, a[0]);
    pool.release(0, &own);
    assert_eq!(pool.active_blocks(), 3);
    pool.release(0, &a);
    assert_eq!(pool.active_blocks(), 1, "the second reference is left");
    pool.release(0, &[shared]);
    assert_eq!((pool.active_blocks(), pool.cached_blocks()), (0, 3));
}

#[test]
fn without_caching_nothing_is_found_or_reported() {
    let mut pool = SimPool::new(SIZE, 4, false);
    let a = sequence(&mut pool, 10);
    assert!(found(&mut pool, 10..13).is_empty());
    pool.release(0, &a);
    assert!(!pool.has_changes());
    assert_eq!((pool.used_blocks(), pool.available(0)), (0, 4));
}

#[test]
fn clearing_forgets_what_nobody_uses() {
    let mut pool = SimPool::new(SIZE, 6, true);
    let (a, _b) = (sequence(&mut pool, 10), sequence(&mut pool, 20));
    pool.release(0, &a);
    removed(&mut pool);
    pool.clear_idle();
    let gone: BTreeSet<u64> = removed(&mut pool).into_iter().collect();
    assert_eq!(gone, BTreeSet::from([10, 11, 12]));
    assert_eq!(pool.contents().map(|hash| hash.0).collect::<BTreeSet<_>>(), BTreeSet::from([20, 21, 22]));
}

#[test]
fn another_order_may_be_plugged_in() {
    #[derive(Default)]
    struct NewestFirst(Vec<BlockId>);
    impl EvictionOrder for NewestFirst {
        fn insert(&mut self, block: BlockId) {
            self.0.push(block);
        }
        fn remove(&mut self, block: BlockId) {
            self.0.retain(|other| *other != block);
        }
        fn pop(&mut self) -> Option<BlockId> {
            self.0.pop()
        }
        fn len(&self) -> usize {
            self.0.len()
        }
    }
    let mut pool = SimPool::with_order(SIZE, 6, true, NewestFirst::default());
    let (a, b) = (sequence(&mut pool, 10), sequence(&mut pool, 20));
    pool.release(0, &a);
    pool.release(0, &b);
    assert!(pool.allocate(0, 2, &mut Vec::new()));
    assert_eq!(removed(&mut pool), [20, 21]);
}

#[test]
fn the_linked_order_agrees_with_a_list() {
    let mut order = LeastRecentlyUsed::new(8);
    let mut list: Vec<u32> = Vec::new();
    let mut dice = 12345u64;
    for _ in 0..10_000 {
        dice = dice.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        let block = (dice >> 40) as u32 % 8;
        if dice >> 62 == 0 {
            let expected = (!list.is_empty()).then(|| BlockId(list.remove(0)));
            assert_eq!(order.pop(), expected);
        } else if let Some(at) = list.iter().position(|&other| other == block) {
            list.remove(at);
            order.remove(BlockId(block));
        } else {
            list.push(block);
            order.insert(BlockId(block));
        }
        assert_eq!((order.len(), order.is_empty()), (list.len(), list.is_empty()));
    }
}
