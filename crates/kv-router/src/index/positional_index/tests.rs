use std::collections::HashMap;

use super::*;
use crate::index::reference_model;

fn slot(index: u32) -> Slot {
    Slot::new(index, 0)
}

fn names(locals: &[u64]) -> Vec<u64> {
    let locals: Vec<_> = locals.iter().map(|&local| LocalBlockHash(local)).collect();
    let mut names = Vec::new();
    dynamo_tokens::sequence_hashes(&locals, &mut names);
    names.into_iter().map(|name| name.0).collect()
}

/// The blocks of a sequence from number `from` on.
fn stored(locals: &[u64], from: usize) -> KvCacheEventData {
    let names = names(locals);
    let block = |at| StoredBlock {
        block_hash: ExternalBlockHash(names[at]),
        tokens_hash: LocalBlockHash(locals[at]),
    };
    KvCacheEventData::Stored {
        parent_hash: from.checked_sub(1).map(|at| ExternalBlockHash(names[at])),
        blocks: (from..locals.len()).map(block).collect(),
    }
}

fn removed(names: impl IntoIterator<Item = u64>) -> KvCacheEventData {
    KvCacheEventData::Removed { block_hashes: names.into_iter().map(ExternalBlockHash).collect() }
}

fn run(index: &PositionalIndexer, locals: &[u64], slot: Slot) -> u32 {
    let query: Vec<_> = locals.iter().map(|&local| LocalBlockHash(local)).collect();
    let mut out = MatchBuffer::default();
    SharedIndex::find_matches(index, &query, &mut out);
    out.device_blocks(slot)
}

/// Looks at everything, while nobody writes.
pub(in crate::index) fn check(index: &PositionalIndexer) {
    let shared = &*index.shared;
    let mut held: HashMap<u32, Vec<u64>> = HashMap::new();
    for shard in &shared.shards {
        for entry in shard.read().iter() {
            assert!(entry.holders.is_some(), "an entry without holders");
            for &slot in members(&entry.holders) {
                held.entry(slot).or_default().push(entry.name);
            }
        }
    }
    for (slot, counters) in (0..).zip(shared.slots.counters()) {
        let records = shared.slots.peek(slot as usize).unwrap().1.lock();
        let mut names: Vec<_> = records.names().collect();
        let mut listed = held.remove(&slot).unwrap_or_default();
        names.sort_unstable();
        listed.sort_unstable();
        assert_eq!(names, listed);
        assert_eq!(counters.blocks() as usize, names.len());
        assert_eq!(counters.has_holes(), records.holes() > 0);
    }
    assert!(held.is_empty());
}

#[test]
fn random_histories_equal_the_reference_model_at_any_stride() {
    for make in [
        || PositionalIndexer::new(NonZeroUsize::new(1).unwrap()),
        || PositionalIndexer::new(NonZeroUsize::new(3).unwrap()),
        PositionalIndexer::default as fn() -> _,
    ] {
        reference_model::assert_equal_with_names(reference_model::Names::Chained, make, check);
    }
}

#[test]
fn holes_end_runs_and_their_refill_mends_them() {
    let index = PositionalIndexer::default();
    let locals: Vec<u64> = (0..100).collect();
    let names = names(&locals);
    for number in 0..2 {
        index.apply(slot(number), &stored(&locals, 0)).unwrap();
    }
    index.apply(slot(0), &removed([names[40], names[41]])).unwrap();
    assert_eq!((run(&index, &locals, slot(0)), run(&index, &locals, slot(1))), (40, 100));
    index.apply(slot(0), &removed([names[99]])).unwrap();
    assert_eq!(run(&index, &locals, slot(0)), 40);
    index.apply(slot(0), &stored(&locals[..42], 40)).unwrap();
    assert_eq!((run(&index, &locals, slot(0)), run(&index, &locals, slot(1))), (99, 100));
    assert_eq!(index.shared.slots.peek(0).unwrap().1.lock().holes(), 0);
    check(&index);
}

#[test]
fn names_that_are_no_chained_hashes_are_refused() {
    let index = PositionalIndexer::default();
    let KvCacheEventData::Stored { mut blocks, .. } = stored(&[1, 2, 3], 0) else { panic!() };
    blocks[2].block_hash.0 += 1;
    let event = KvCacheEventData::Stored { parent_hash: None, blocks };
    assert_eq!(index.apply(slot(0), &event), Err(ApplyError::UnchainedName));
    assert_eq!(PrefixIndex::counts(&index).blocks, 0);
}

#[test]
fn memory_is_given_back() {
    let index = PositionalIndexer::default();
    index.apply(slot(0), &stored(&[1], 0)).unwrap();
    index.clear(slot(0));
    let empty = PrefixIndex::counts(&index).bytes;
    let locals: Vec<u64> = (1..100_000).collect();
    let names = names(&locals);
    for number in 0..3 {
        index.apply(slot(number), &stored(&locals, 0)).unwrap();
    }
    let full = PrefixIndex::counts(&index);
    assert_eq!((full.nodes, full.blocks), (locals.len(), 3 * locals.len()));
    index.clear(slot(0));
    index.apply(slot(1), &removed(names.iter().copied().rev())).unwrap();
    index.apply(slot(2), &removed(names)).unwrap();
    check(&index);
    let left = PrefixIndex::counts(&index);
    assert_eq!((left.nodes, left.blocks), (0, 0));
    assert!(left.bytes < empty + 4096, "{} bytes left", left.bytes - empty);
}
