use super::*;
use crate::index::reference_model;

fn slot(index: u32) -> Slot {
    Slot::new(index, 0)
}

fn stored(parent: Option<u64>, hashes: impl IntoIterator<Item = u64>) -> KvCacheEventData {
    let block = |hash| StoredBlock { block_hash: ExternalBlockHash(hash), tokens_hash: LocalBlockHash(hash) };
    KvCacheEventData::Stored {
        parent_hash: parent.map(ExternalBlockHash),
        blocks: hashes.into_iter().map(block).collect(),
    }
}

fn removed(hashes: impl IntoIterator<Item = u64>) -> KvCacheEventData {
    KvCacheEventData::Removed { block_hashes: hashes.into_iter().map(ExternalBlockHash).collect() }
}

fn run(tree: &ConcurrentRadixTree, query: impl IntoIterator<Item = u64>, slot: Slot) -> u32 {
    let query: Vec<_> = query.into_iter().map(LocalBlockHash).collect();
    let mut out = MatchBuffer::default();
    SharedIndex::find_matches(tree, &query, &mut out);
    out.device_blocks(slot)
}

fn counts(tree: &ConcurrentRadixTree) -> IndexCounts {
    PrefixIndex::counts(tree)
}

/// Looks at every node, while nobody writes.
pub(in crate::index) fn check(tree: &ConcurrentRadixTree) {
    let shared = &*tree.shared;
    let ids = shared.nodes.live_ids();
    let mut children = std::collections::HashMap::new();
    let (mut aside, mut held, mut sets) = (0, 0, std::collections::HashSet::new());
    for &id in &ids {
        let cell = shared.nodes.read(id);
        let (chunk, at) = (cell.chunk().unwrap(), place_of(id));
        assert!(!chunk.is_useless(at), "a node without use");
        let (parent, local) = (chunk.parent[at], chunk.local[at]);
        *children.entry(parent).or_insert(0) += 1;
        held += members(&chunk.sets[at]).len();
        sets.extend(chunk.sets[at].as_ref().map(Arc::as_ptr));
        let generation = chunk.parent_generation[at];
        drop(cell);
        if parent != ROOT {
            assert_eq!(shared.generation(parent), generation);
        }
        let listed = shared.child_aside((parent, generation), local).map(|(id, _)| id);
        assert_eq!(listed, (!is_behind(parent, id)).then_some(id));
        aside += usize::from(listed.is_some());
    }
    for &id in &ids {
        let count = shared.nodes.read(id).chunk().unwrap().children[place_of(id)];
        assert_eq!(children.get(&id).copied().unwrap_or(0), count);
    }
    assert_eq!(shared.children.iter().map(|table| table.read().len()).sum::<usize>(), aside);
    assert_eq!(shared.sets.live(), sets.len());
    assert_eq!(counts(tree).blocks, held);
}

#[test]
fn random_histories_equal_the_reference_model() {
    reference_model::assert_equal_to_model(ConcurrentRadixTree::new, check);
}

#[test]
fn a_long_chain_goes_without_recursion_and_gives_its_memory_back() {
    const LONG: u64 = 300_000;
    let tree = ConcurrentRadixTree::new();
    tree.apply(slot(0), &stored(None, [1])).unwrap();
    tree.clear(slot(0));
    let empty = counts(&tree).bytes;
    for block in 0..LONG {
        tree.apply(slot(0), &stored(block.checked_sub(1), [block])).unwrap();
    }
    for index in 1..4 {
        tree.apply(slot(index), &stored(None, 0..LONG)).unwrap();
    }
    let full = counts(&tree);
    assert_eq!((full.nodes, full.blocks), (LONG as usize, 4 * LONG as usize));
    let bytes = (full.bytes - empty) / full.blocks;
    assert!(bytes < 40, "{bytes} bytes a pair");
    assert_eq!(run(&tree, 0..LONG + 5, slot(2)), LONG as u32);
    tree.clear(slot(0));
    tree.apply(slot(1), &removed((0..LONG).rev())).unwrap();
    tree.apply(slot(2), &removed(0..LONG)).unwrap();
    tree.apply(slot(3), &removed(0..LONG)).unwrap();
    check(&tree);
    assert_eq!(counts(&tree).nodes, 0);
    let left = counts(&tree).bytes - empty;
    assert!(left < 64 * 1024, "{left} bytes left");
}

#[test]
fn cycles_of_filling_and_draining_do_not_grow() {
    let tree = ConcurrentRadixTree::new();
    let mut peaks = Vec::new();
    for cycle in 0..6u64 {
        for chain in 0..2000u64 {
            let base = (cycle * 10_000 + chain) << 16;
            tree.apply(slot((chain % 7) as u32), &stored(None, base..base + 40 + chain % 100)).unwrap();
        }
        peaks.push(counts(&tree).bytes);
        for chain in (0..2000u64).filter(|chain| chain % 10 != 0 || cycle > 0) {
            let base = (cycle * 10_000 + chain) << 16;
            tree.apply(slot((chain % 7) as u32), &removed((base..base + 40 + chain % 100).rev())).unwrap();
        }
    }
    check(&tree);
    assert!(peaks[5] < peaks[0] * 3 / 2, "{peaks:?}");
}

#[test]
fn a_slot_in_a_new_generation_starts_empty() {
    let tree = ConcurrentRadixTree::new();
    tree.apply(slot(2), &stored(None, 0..3)).unwrap();
    let next = Slot::new(2, 1);
    tree.clear(next);
    assert_eq!(run(&tree, 0..3, slot(2)), 3, "another generation's slot is not ours to clear");
    tree.apply(next, &stored(None, 0..1)).unwrap();
    assert_eq!((run(&tree, 0..3, slot(2)), run(&tree, 0..3, next)), (0, 1));
}
