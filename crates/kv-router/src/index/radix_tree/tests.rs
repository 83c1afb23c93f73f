use super::*;
use crate::index::reference_model;

fn slot(index: u32) -> Slot {
    Slot::new(index, 0)
}

fn stored(parent: Option<u64>, hashes: impl IntoIterator<Item = u64>) -> KvCacheEventData {
    KvCacheEventData::Stored {
        parent_hash: parent.map(ExternalBlockHash),
        blocks: hashes
            .into_iter()
            .map(|hash| StoredBlock {
                block_hash: ExternalBlockHash(hash),
                tokens_hash: LocalBlockHash(hash),
            })
            .collect(),
    }
}

fn removed(hashes: impl IntoIterator<Item = u64>) -> KvCacheEventData {
    KvCacheEventData::Removed { block_hashes: hashes.into_iter().map(ExternalBlockHash).collect() }
}

fn run(tree: &RadixTree, query: impl IntoIterator<Item = u64>, slot: Slot) -> u32 {
    let query: Vec<_> = query.into_iter().map(LocalBlockHash).collect();
    let mut out = MatchBuffer::default();
    tree.find_matches(&query, &mut out);
    out.device_blocks(slot)
}

fn check(tree: &RadixTree) {
    let mut children = std::collections::HashMap::new();
    let mut set_refs = std::collections::HashMap::new();
    let (mut live, mut named, mut aside, mut held) = (0, 0, 0, 0);
    for chunk_base in 0..tree.nodes.limit() {
        let Some(id) = tree.nodes.if_live(chunk_base) else { continue };
        live += 1;
        let (parent, set) = (tree.nodes.parent(id), tree.nodes.set(id));
        *children.entry(parent).or_insert(0) += 1;
        *set_refs.entry(set).or_insert(0) += 1;
        held += tree.sets.get(set).len();
        assert!(set != EMPTY || tree.nodes.children(id) > 0, "a node without use");
        assert_eq!(tree.child(parent, tree.nodes.local(id)), Some(id));
        aside += usize::from(!Nodes::is_behind(parent, id));
        let listed = tree.names.find(mix(tree.nodes.ext(id)), |other| other == id).is_some();
        assert_eq!(listed, set != EMPTY);
        named += usize::from(listed);
    }
    for (id, count) in children {
        assert!(id == ROOT || tree.nodes.children(id) == count);
    }
    set_refs.remove(&EMPTY);
    assert_eq!(tree.sets.live(), set_refs.len());
    for (set, count) in set_refs {
        assert_eq!(tree.sets.refs(set), count);
    }
    assert_eq!((tree.nodes.live(), tree.names.len(), tree.children.len()), (live, named, aside));
    assert_eq!(tree.held, held);
    assert_eq!(tree.slots.iter().map(|slot| slot.blocks as usize).sum::<usize>(), held);
}

#[test]
fn random_histories_equal_the_reference_model() {
    reference_model::assert_equal_to_model(RadixTree::new, check);
}

#[test]
fn a_hole_ends_the_run_and_a_refill_mends_it() {
    let mut tree = RadixTree::new();
    tree.apply(slot(0), &stored(None, 0..10)).unwrap();
    tree.apply(slot(1), &stored(None, 0..10)).unwrap();
    tree.apply(slot(0), &removed([4])).unwrap();
    assert_eq!((run(&tree, 0..10, slot(0)), run(&tree, 0..10, slot(1))), (4, 10));
    tree.apply(slot(1), &removed([4])).unwrap();
    assert_eq!(run(&tree, 0..10, slot(1)), 4);
    tree.apply(slot(0), &stored(Some(3), [4])).unwrap();
    assert_eq!((run(&tree, 0..10, slot(0)), run(&tree, 0..10, slot(1))), (10, 4));
    check(&tree);
}

#[test]
fn engines_with_names_of_their_own_share_blocks() {
    let mut tree = RadixTree::new();
    for index in 0..3u64 {
        let blocks = (0..5u64).map(|local| StoredBlock {
            block_hash: ExternalBlockHash(1000 * index + local),
            tokens_hash: LocalBlockHash(local),
        });
        let event = KvCacheEventData::Stored { parent_hash: None, blocks: blocks.collect() };
        tree.apply(slot(index as u32), &event).unwrap();
    }
    assert_eq!(tree.counts().nodes, 5);
    tree.apply(slot(1), &removed([1004])).unwrap();
    assert_eq!(tree.apply(slot(2), &removed([1003])), Err(ApplyError::BlockNotFound));
    assert_eq!((0..3).map(|index| run(&tree, 0..5, slot(index))).collect::<Vec<_>>(), [5, 4, 5]);
    check(&tree);
}

#[test]
fn a_long_chain_goes_without_recursion_and_gives_its_memory_back() {
    let mut tree = RadixTree::new();
    let empty = tree.counts().bytes;
    for block in 0..300_000u64 {
        let parent = block.checked_sub(1);
        tree.apply(slot(0), &stored(parent, [block])).unwrap();
    }
    for index in 1..4 {
        tree.apply(slot(index), &stored(None, 0..300_000)).unwrap();
    }
    let full = tree.counts();
    assert_eq!((full.nodes, full.blocks), (300_000, 1_200_000));
    assert!(full.bytes < 300_000 * 52, "{} bytes a node", full.bytes / full.nodes);
    assert_eq!(run(&tree, 0..400_000, slot(2)), 300_000);
    tree.clear(slot(0));
    for index in 1..3 {
        tree.apply(slot(index), &removed((0..300_000).rev())).unwrap();
    }
    tree.apply(slot(3), &removed(0..300_000)).unwrap();
    assert_eq!(tree.counts().nodes, 0);
    assert!(tree.counts().bytes < empty + 64 * 1024, "{} bytes left", tree.counts().bytes);
}

#[test]
fn cycles_of_filling_and_draining_do_not_grow() {
    let mut tree = RadixTree::new();
    let mut peaks = Vec::new();
    for cycle in 0..6u64 {
        for chain in 0..200u64 {
            let base = (cycle * 1000 + chain) << 16;
            tree.apply(slot((chain % 7) as u32), &stored(None, base..base + 40 + chain)).unwrap();
        }
        peaks.push(tree.counts().bytes);
        for chain in (0..200u64).filter(|chain| chain % 10 != 0 || cycle > 0) {
            let base = (cycle * 1000 + chain) << 16;
            tree.apply(slot((chain % 7) as u32), &removed((base..base + 40 + chain).rev())).unwrap();
        }
    }
    check(&tree);
    assert!(peaks[5] < peaks[0] * 3 / 2, "{peaks:?}");
}

#[test]
fn a_slot_in_a_new_generation_starts_empty() {
    let mut tree = RadixTree::new();
    tree.apply(slot(2), &stored(None, 0..3)).unwrap();
    let next = Slot::new(2, 1);
    tree.clear(next);
    assert_eq!(run(&tree, 0..3, slot(2)), 3, "another generation's slot is not ours to clear");
    tree.apply(next, &stored(None, 0..1)).unwrap();
    assert_eq!((run(&tree, 0..3, slot(2)), run(&tree, 0..3, next)), (0, 1));
}
