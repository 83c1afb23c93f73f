use std::collections::{HashMap, HashSet};

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
        assert!(found.len <= u32::from(index.cold[run as usize].units) * UNIT);
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
            assert!(index.names.find(names::hash(name), |other| other == place).is_some());
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
        assert_eq!(index.cold[run as usize].children, children.get(&run).copied().unwrap_or(0));
    }
    for state in &index.slots {
        let counts = by_slot.get(&state.slot).copied().unwrap_or_default();
        assert_eq!((state.blocks, state.cut_off), counts, "{:?}", state.slot);
    }
    assert_eq!((index.nodes, index.names.len()), (nodes, nodes));
    assert_eq!(index.doubled_names, nodes - names.len());
    assert_eq!(index.held, by_slot.values().map(|counts| counts.0 as usize).sum::<usize>());
}

#[test]
fn random_histories_equal_the_reference_model() {
    reference_model::assert_equal_to_model(RunIndex::new, check);
}

const ENGINES: Shape =
    Shape { slots: 6, steps: 1500, blocks: 40, branches: 3, odd_names: 0, own_names: false, interior: 5 };

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
            let shape = Shape { slots, steps: 2000, blocks, branches, odd_names, own_names, interior };
            long_histories::assert_equal(shape, 1000..1000 + seeds, RunIndex::new, check);
        }
    }
}
