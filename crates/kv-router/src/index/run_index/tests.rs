use std::collections::{HashMap, HashSet};

use dynamo_engine_api::{ExternalBlockHash, StoredBlock};

use super::*;
use crate::index::{
    long_histories::{self, Shape},
    reference_model,
};

/// All that has to agree between the parts of an index at rest.
fn check(index: &RunIndex) {
    let mut by_slot: HashMap<Slot, (u32, u32)> = HashMap::new();
    let mut names = HashSet::new();
    let (mut nodes, mut children) = (0, HashMap::new());
    let live: Vec<RunId> = index.run_ids().filter(|&run| index.len(run) > 0).collect();
    for &run in &live {
        let found = index.shared.run(run);
        nodes += found.len as usize;
        assert!(found.len <= u32::from(index.cold[run].units) * UNIT);
        assert!(index.holders(run).all(|holding| holding.blocks <= found.len));
        let (parent, offset) = header::halves(found.header[header::ORIGIN].load(Relaxed));
        let first = index.shared.blocks(&found)[0];
        let child = index.shared.child(parent, offset, first).map(|child| child.id);
        assert_eq!(child, Some(run), "a run is found from where it hangs");
        if parent != ROOT {
            assert!(offset > 0 && offset <= index.len(parent));
            *children.entry(parent).or_insert(0) += 1;
            if offset < index.len(parent) {
                let parent = index.shared.run(parent);
                assert_ne!(index.shared.blocks(&parent)[offset as usize], first, "one place for one path");
            }
        }
        for at in 0..found.len {
            let place = found.place + at;
            let name = index.columns.name(place);
            names.insert(name);
            assert!(
                index.names.find(names::hash(name), |unit| (unit == place / UNIT).then_some(place)).is_some()
            );
            assert_eq!(index.at(place), At { run, offset: at });
        }
        let slots: Vec<Slot> = index.slots.iter().map(|state| state.slot).collect();
        let mut used = index.last_offset(run);
        for slot in slots {
            let holding = index.holding(run, slot);
            let bits = index.holes.get(run, slot);
            let counts = by_slot.entry(slot).or_default();
            counts.0 += bits.map_or(holding.blocks, |bits| bits.count());
            counts.1 += u32::from(holding.is_cut_off);
            used = used.max(holding.blocks).max(bits.map_or(0, |bits| bits.end()));
            if let Some(bits) = bits {
                assert_eq!(bits.stretch(0), holding.blocks);
                assert!(bits.end() > holding.blocks, "holes are kept for holes only");
            }
            if holding.blocks > 0 {
                let is_whole = parent == ROOT || index.holding(parent, slot).whole() >= offset;
                assert_eq!(holding.is_cut_off, !is_whole, "run {run}, {slot:?}");
            }
        }
        assert_eq!(used, found.len, "the end of a run is of use");
    }
    for &run in &live {
        assert_eq!(index.cold[run].children, children.get(&run).copied().unwrap_or(0));
    }
    for state in &index.slots {
        let counts = by_slot.get(&state.slot).copied().unwrap_or_default();
        assert_eq!((state.blocks, state.cut_off), counts, "{:?}", state.slot);
    }
    if live.is_empty() && index.limbo.len() == 0 {
        assert_eq!((index.runs.present(), index.lists.present()), (0, 0), "all memory is given back");
    }
    assert_eq!((index.nodes, index.names.len()), (nodes, nodes));
    assert_eq!(index.doubled_names, nodes - names.len());
    assert_eq!(index.held, by_slot.values().map(|counts| counts.0 as usize).sum::<usize>());
}

#[test]
fn random_histories_equal_the_reference_model() {
    reference_model::assert_equal_to_model(RunIndex::new, check);
}

#[test]
fn also_where_names_have_hashes_in_common() {
    names::HASH_BITS.set(0xF << 60 | 0x1F << 45);
    reference_model::assert_equal_to_model(RunIndex::new, check);
    long_histories::assert_equal(ENGINES, 0..4, RunIndex::new, check);
    long_histories::assert_equal(
        Shape { odd_names: 20, interior: 30, ..ENGINES },
        0..4,
        RunIndex::new,
        check,
    );
}

const ENGINES: Shape = Shape {
    slots: 6,
    steps: 1500,
    blocks: 40,
    branches: 3,
    odd_names: 0,
    own_names: false,
    interior: 5,
    decoded: 40,
};

#[test]
fn long_histories_of_engines_equal_a_model() {
    long_histories::assert_equal(ENGINES, 0..8, RunIndex::new, check);
}

#[test]
fn long_histories_with_holes_equal_a_model() {
    let shape = Shape { interior: 80, ..ENGINES };
    long_histories::assert_equal(shape, 0..8, RunIndex::new, check);
    long_histories::assert_equal(Shape { blocks: 3, ..shape }, 0..8, RunIndex::new, check);
}

#[test]
fn long_histories_with_odd_names_equal_a_model() {
    let shape = Shape { odd_names: 10, interior: 30, ..ENGINES };
    long_histories::assert_equal(shape, 0..8, RunIndex::new, check);
    long_histories::assert_equal(Shape { own_names: true, ..shape }, 0..8, RunIndex::new, check);
}

#[test]
fn long_histories_of_many_slots_equal_a_model() {
    let shape = Shape { slots: 60, branches: 2, blocks: 12, ..ENGINES };
    long_histories::assert_equal(shape, 0..6, RunIndex::new, check);
    long_histories::assert_equal(
        Shape { branches: 200, blocks: 4, slots: 9, ..shape },
        0..6,
        RunIndex::new,
        check,
    );
}

/// Hours of it find what minutes do not: `HISTORIES=5000 cargo test ... -- --ignored deep`.
#[test]
#[ignore = "takes as long as it is told to"]
fn deep_histories_equal_a_model() {
    let seeds = std::env::var("HISTORIES").ok().and_then(|count| count.parse().ok()).unwrap_or(20);
    for (interior, odd_names, own_names) in
        [(5, 0, false), (80, 0, false), (30, 10, false), (30, 20, true), (60, 0, true)]
    {
        for (slots, blocks, branches) in [(3, 40, 3), (6, 200, 2), (60, 12, 2), (9, 4, 200), (20, 700, 3)] {
            let shape =
                Shape { slots, steps: 2000, blocks, branches, odd_names, own_names, interior, decoded: 40 };
            long_histories::assert_equal(shape, 1000..1000 + seeds, RunIndex::new, check);
        }
    }
}

fn slot(index: u32) -> Slot {
    Slot::new(index, 0)
}

fn stored(parent: Option<u64>, names: impl IntoIterator<Item = u64>) -> KvCacheEventData {
    let block = |name| StoredBlock { block_hash: ExternalBlockHash(name), tokens_hash: LocalBlockHash(name) };
    KvCacheEventData::Stored {
        parent_hash: parent.map(ExternalBlockHash),
        blocks: names.into_iter().map(block).collect(),
    }
}

fn removed(names: impl IntoIterator<Item = u64>) -> KvCacheEventData {
    KvCacheEventData::Removed { block_hashes: names.into_iter().map(ExternalBlockHash).collect() }
}

fn run(index: &RunIndex, query: impl IntoIterator<Item = u64>, slot: Slot) -> u32 {
    let query: Vec<_> = query.into_iter().map(LocalBlockHash).collect();
    let mut out = MatchBuffer::default();
    index.find_matches(&query, &mut out);
    out.device_blocks(slot)
}

/// Applies a store of one block behind another.
fn stored_behind(index: &mut RunIndex, slot: Slot, parent: u64, name: u64) -> Result<(), ApplyError> {
    index.apply(slot, &stored(Some(parent), [name]))
}

#[test]
fn a_block_behind_a_run_needs_its_parent_from_whoever_stores_it() {
    let mut index = RunIndex::new();
    index.apply(slot(0), &stored(None, 1..5)).unwrap();
    index.apply(slot(1), &stored(None, 1..4)).unwrap();
    assert_eq!(stored_behind(&mut index, slot(0), 4, 5), Ok(()));
    for parent in [4, 5] {
        assert_eq!(stored_behind(&mut index, slot(1), parent, 6), Err(ApplyError::ParentBlockNotFound));
    }
    assert_eq!((run(&index, 1..7, slot(0)), run(&index, 1..7, slot(1))), (5, 3));
    check(&index);
}

#[test]
fn what_was_stored_lately_is_not_found_where_it_was() {
    let mut index = RunIndex::new();
    index.apply(slot(0), &stored(None, [1])).unwrap();
    index.apply(slot(0), &stored(None, 100..140)).unwrap();
    // The run of 1 moves several times, and the blocks behind it go and come.
    for name in 2..40 {
        assert_eq!(stored_behind(&mut index, slot(0), name - 1, name), Ok(()));
    }
    for _ in 0..3 {
        index.apply(slot(0), &removed((5..40).rev())).unwrap();
        assert_eq!(stored_behind(&mut index, slot(0), 39, 40), Err(ApplyError::ParentBlockNotFound));
        for name in 5..40 {
            assert_eq!(stored_behind(&mut index, slot(0), name - 1, name), Ok(()));
        }
        check(&index);
    }
    assert_eq!(run(&index, 1..60, slot(0)), 39);
    index.apply(slot(0), &removed((1..40).rev().chain(100..140))).unwrap();
    assert_eq!(stored_behind(&mut index, slot(0), 39, 40), Err(ApplyError::ParentBlockNotFound));
    assert_eq!((index.counts().nodes, index.recent.bytes()), (0, 0));
}

#[test]
fn a_million_blocks_deep_goes_without_recursion_and_gives_its_memory_back() {
    const DEEP: u64 = 1_000_000;
    let mut index = RunIndex::new();
    let empty = index.counts().bytes;
    for block in 0..DEEP {
        index.apply(slot(0), &stored(block.checked_sub(1), [block])).unwrap();
    }
    for number in 1..8 {
        index.apply(slot(number), &stored(None, 0..DEEP)).unwrap();
    }
    let full = index.counts();
    assert_eq!((full.nodes, full.blocks), (DEEP as usize, 8 * DEEP as usize));
    assert!(full.bytes < DEEP as usize * 26, "{} bytes for {DEEP} blocks", full.bytes);
    assert_eq!(run(&index, 0..DEEP + 10, slot(2)), DEEP as u32);
    // A hole at the start, and all below counts no more; mended, all of it counts again.
    index.apply(slot(3), &removed([5])).unwrap();
    assert_eq!(run(&index, 0..DEEP, slot(3)), 5);
    index.apply(slot(3), &stored(Some(4), [5])).unwrap();
    assert_eq!(run(&index, 0..DEEP, slot(3)), DEEP as u32);
    index.clear(slot(0));
    for number in 1..7 {
        index.apply(slot(number), &removed((0..DEEP).rev())).unwrap();
    }
    index.apply(slot(7), &removed(0..DEEP)).unwrap();
    assert_eq!(index.counts().nodes, 0);
    assert!(index.counts().bytes < empty + 64 * 1024, "{} bytes left of {empty}", index.counts().bytes);
}

#[test]
fn thousands_of_slots_share_a_prefix_and_leave_it() {
    const SLOTS: u32 = 4096;
    let mut index = RunIndex::new();
    for number in 0..SLOTS {
        let own = u64::from(number + 1) << 32;
        index.apply(slot(number), &stored(None, 0..20)).unwrap();
        index.apply(slot(number), &stored(Some(19), own..own + 10)).unwrap();
    }
    let mut out = MatchBuffer::default();
    let query: Vec<_> = (0..20).map(LocalBlockHash).collect();
    index.reader().find_matches(&query, &mut out);
    index.note_held_blocks(&mut out);
    assert_eq!(out.matches().len(), SLOTS as usize);
    assert_eq!(out.held_blocks(slot(SLOTS - 1)), 30);
    for number in (0..SLOTS).filter(|number| number % 64 != 0) {
        let own = u64::from(number + 1) << 32;
        index.apply(slot(number), &removed((0..20).rev())).unwrap();
        assert_eq!(run(&index, (0..20).chain(own..own + 10), slot(number)), 0);
    }
    index.find_matches(&query, &mut out);
    assert_eq!(out.matches().len(), SLOTS as usize / 64);
    check(&index);
    for number in 0..SLOTS {
        index.clear(slot(number));
    }
    assert_eq!((index.counts().blocks, index.counts().nodes), (0, 0));
}

#[test]
fn a_full_index_says_so_and_keeps_what_fits() {
    const CHUNK: u64 = 1 << 14;
    let mut index = RunIndex::with_max_blocks(CHUNK as usize);
    assert_eq!(index.apply(slot(0), &stored(None, 0..2 * CHUNK)), Err(ApplyError::Full));
    let kept = index.held_blocks(slot(0));
    assert_eq!(run(&index, 0..CHUNK, slot(0)), kept);
    assert!(kept > 0);
    check(&index);
    index.clear(slot(0));
    assert_eq!(index.apply(slot(1), &stored(None, 0..CHUNK / 2)), Ok(()), "there is room again");
}

#[test]
fn cycles_of_filling_and_draining_do_not_grow() {
    let mut index = RunIndex::new();
    let mut peaks = Vec::new();
    for cycle in 0..6u64 {
        for chain in 0..400u64 {
            let base = (cycle * 1000 + chain) << 16;
            index.apply(slot((chain % 7) as u32), &stored(None, base..base + 40 + chain)).unwrap();
        }
        peaks.push(index.counts().bytes);
        for chain in (0..400u64).filter(|chain| chain % 10 != 0 || cycle > 0) {
            let base = (cycle * 1000 + chain) << 16;
            index.apply(slot((chain % 7) as u32), &removed((base..base + 40 + chain).rev())).unwrap();
        }
    }
    check(&index);
    assert!(peaks[5] < peaks[0] * 5 / 4, "{peaks:?}");
}

#[test]
fn a_reader_that_is_under_way_holds_up_the_return_of_memory_and_nothing_else() {
    let mut index = RunIndex::new();
    let shared = index.shared.clone();
    let pin = shared.epochs.pin(shared.epochs.give_seat());
    index.apply(slot(0), &stored(None, 0..100)).unwrap();
    index.apply(slot(0), &removed((50..100).rev())).unwrap();
    index.apply(slot(0), &stored(Some(49), 200..220)).unwrap();
    assert_eq!(run(&index, (0..50).chain(200..220), slot(0)), 70);
    assert_eq!(
        index.shared.child(ROOT, 0, 0).unwrap().len,
        50,
        "not lengthened: the reader may see the old end"
    );
    assert!(index.limbo.len() > 0);
    drop(pin);
    index.apply(slot(0), &removed((200..220).rev())).unwrap();
    index.reclaim();
    index.apply(slot(0), &stored(Some(49), 300..310)).unwrap();
    assert_eq!(index.shared.child(ROOT, 0, 0).unwrap().len, 60, "nobody sees the old end any more");
    check(&index);
}

#[test]
fn a_slot_in_a_new_generation_starts_empty() {
    let mut index = RunIndex::new();
    index.apply(slot(2), &stored(None, 0..3)).unwrap();
    let next = Slot::new(2, 1);
    index.clear(next);
    assert_eq!(run(&index, 0..3, slot(2)), 3, "another generation's slot is not ours to clear");
    index.apply(next, &stored(None, 0..1)).unwrap();
    assert_eq!((run(&index, 0..3, slot(2)), run(&index, 0..3, next)), (0, 1));
    let reader = index.reader();
    assert_eq!((reader.held_blocks(slot(2)), reader.held_blocks(next)), (0, 1));
}

/// Parts of the table of names grow in the middle of an event, and with them the lines of names that wait for theirs:
/// names that share a few parts make that happen all the time.
#[test]
fn many_names_are_all_found_while_their_table_grows_and_shrinks() {
    const CHAINS: u64 = 60;
    const BLOCKS: usize = 1500;
    let slot = |chain: u64| Slot::new((chain % 7) as u32, 0);
    // With few bits, too: then many entries are the same and stand for different blocks.
    for (parts, bits) in [
        (2, u64::MAX),
        (1 << 10, u64::MAX),
        (1 << 10, !(0x3FFF_FFFF << 18)),
        (1 << 10, 0xF << 60 | 0x3FFF << 40),
    ] {
        names::HASH_BITS.set(bits);
        let is_here = |name: &u64| names::hash(*name) >> 54 < parts;
        let names = |chain: u64| (chain << 32 | 1..).filter(is_here).take(BLOCKS);
        let mut index = RunIndex::new();
        for chain in 0..CHAINS {
            index.apply(slot(chain), &stored(None, names(chain))).unwrap();
            if chain % 8 == 0 {
                check(&index);
            }
        }
        assert!(parts > 2 || index.names.has_split(), "a part of so many names becomes several");
        // From the end, as engines do, in pieces.
        for piece in (0..10).rev() {
            for chain in (0..CHAINS).filter(|chain| chain % 10 != 3) {
                let gone: Vec<u64> = names(chain).skip(piece * BLOCKS / 10).take(BLOCKS / 10).collect();
                index.apply(slot(chain), &removed(gone.into_iter().rev())).unwrap();
            }
            if piece % 3 == 0 {
                check(&index);
            }
        }
        assert_eq!(index.counts().blocks as u64, CHAINS / 10 * BLOCKS as u64);
        index.apply(slot(1), &stored(None, names(CHAINS))).unwrap();
        check(&index);
    }
}
