use std::{collections::BTreeMap, num::NonZeroUsize};

use dynamo_tokens::SequenceHash;
use proptest::prelude::*;

use super::*;
use crate::index::IndexerKind;

const TIERS: [StorageTier; 4] =
    [StorageTier::Device, StorageTier::HostPinned, StorageTier::Disk, StorageTier::External];

/// What names stand for, said as plainly as possible.
#[derive(Clone, Default)]
struct Model(BTreeMap<(usize, StorageTier, u64), Vec<u64>>);

impl Model {
    fn apply(&mut self, slot: usize, tier: StorageTier, event: &KvCacheEventData) -> Result<(), ApplyError> {
        match event {
            KvCacheEventData::Stored { parent_hash, blocks } => {
                let mut before = *parent_hash;
                for block in blocks {
                    if before.replace(block.block_hash) == Some(block.block_hash) {
                        return Err(ApplyError::InvalidBlock);
                    }
                }
                // The device's events must have their parents there; others take what there is.
                let others = if tier == StorageTier::Device { &TIERS[..1] } else { &TIERS };
                let of = |parent: &ExternalBlockHash| {
                    let mut tiers = [tier].into_iter().chain(others.iter().copied());
                    tiers.find_map(|tier| self.0.get(&(slot, tier, parent.0)).cloned())
                };
                let mut path = match parent_hash {
                    Some(parent) => of(parent).ok_or(ApplyError::ParentBlockNotFound)?,
                    None => Vec::new(),
                };
                for block in blocks {
                    path.push(block.tokens_hash.0);
                    self.0.insert((slot, tier, block.block_hash.0), path.clone());
                }
                Ok(())
            }
            KvCacheEventData::Removed { block_hashes } => {
                let mut result = Ok(());
                for hash in block_hashes {
                    if self.0.remove(&(slot, tier, hash.0)).is_none() {
                        result = Err(ApplyError::BlockNotFound);
                    }
                }
                result
            }
            KvCacheEventData::Cleared => {
                let device = tier == StorageTier::Device;
                self.0.retain(|&(of, on, _), _| of != slot || (on != tier && !device));
                Ok(())
            }
        }
    }

    /// The leading run on `tiers`.
    fn run(&self, slot: usize, tiers: &[StorageTier], query: &[u64]) -> u32 {
        let holds = |path: &[u64]| {
            self.0.iter().any(|(&(of, tier, _), held)| of == slot && tiers.contains(&tier) && held == path)
        };
        (1..=query.len()).take_while(|&len| holds(&query[..len])).count() as u32
    }

    /// The leading run in external storage, whoever put it there.
    fn shared_run(&self, query: &[u64]) -> u32 {
        let is_there = |path: &[u64]| {
            self.0.iter().any(|(&(_, tier, _), held)| tier == StorageTier::External && held == path)
        };
        (1..=query.len()).take_while(|&len| is_there(&query[..len])).count() as u32
    }
}

type Event = (usize, StorageTier, KvCacheEventData);

fn block(name: u64, local: u64) -> StoredBlock {
    StoredBlock { block_hash: ExternalBlockHash(name), tokens_hash: LocalBlockHash(local) }
}

fn chained(locals: &[u64]) -> u64 {
    let chain = |before, &local| Some(SequenceHash::chain(before, LocalBlockHash(local)));
    locals.iter().fold(None, chain).map_or(0, |name: SequenceHash| name.0)
}

fn events(any_names: bool) -> impl Strategy<Value = Vec<Event>> {
    let place = || (0..2usize, (0..4usize).prop_map(|tier| TIERS[tier]));
    let loose =
        (place(), prop::option::weighted(0.7, 0..16u64), prop::collection::vec((0..16u64, 0..2u64), 1..4));
    let chain = (place(), prop::collection::vec(0..2u64, 1..7), 0..6usize);
    let removed = (place(), prop::collection::vec(0..2u64, 1..6));
    let loosely_removed = (place(), prop::collection::vec(0..16u64, 1..3));
    let event = prop_oneof![
        3 * u32::from(any_names) => loose.prop_map(|((slot, tier), parent, blocks)| {
            let blocks = blocks.into_iter().map(|(name, local)| block(name, local)).collect();
            (slot, tier, KvCacheEventData::Stored { parent_hash: parent.map(ExternalBlockHash), blocks })
        }),
        2 * u32::from(any_names) => loosely_removed.prop_map(|((slot, tier), names)| {
            let block_hashes = names.into_iter().map(ExternalBlockHash).collect();
            (slot, tier, KvCacheEventData::Removed { block_hashes })
        }),
        6 => chain.prop_map(|((slot, tier), locals, skip)| {
            let skip = skip.min(locals.len() - 1);
            let parent_hash = (skip > 0).then(|| ExternalBlockHash(chained(&locals[..skip])));
            let blocks = (skip..locals.len()).map(|i| block(chained(&locals[..=i]), locals[i])).collect();
            (slot, tier, KvCacheEventData::Stored { parent_hash, blocks })
        }),
        5 => removed.prop_map(|((slot, tier), locals)| {
            let block_hashes = vec![ExternalBlockHash(chained(&locals))];
            (slot, tier, KvCacheEventData::Removed { block_hashes })
        }),
        1 => place().prop_map(|(slot, tier)| (slot, tier, KvCacheEventData::Cleared)),
    ];
    prop::collection::vec(event, 1..80)
}

fn queries() -> impl Iterator<Item = Vec<u64>> {
    (1..=6usize).flat_map(|len| (0..1u64 << len).map(move |bits| (0..len).map(|at| bits >> at & 1).collect()))
}

fn assert_answers(
    index: &TieredIndex,
    slots: [Slot; 2],
    model: &Model,
    query: &[u64],
    out: &mut MatchBuffer,
) -> Result<(), TestCaseError> {
    let local: Vec<_> = query.iter().map(|&local| LocalBlockHash(local)).collect();
    index.find_matches(&local, out);
    prop_assert_eq!(out.shared_blocks(), model.shared_run(query));
    for (number, slot) in slots.into_iter().enumerate() {
        let expected = [1, 2, 4].map(|tiers| model.run(number, &TIERS[..tiers], query));
        let tiers = out.tiers(slot);
        prop_assert_eq!([out.device_blocks(slot), tiers.host_blocks, tiers.any_blocks], expected);
    }
    Ok(())
}

fn build(kind: IndexerKind) -> (TieredIndex, TieredWriter) {
    let (index, mut writers) = with_tiers(kind.build(NonZeroUsize::MIN));
    (index, writers.pop().unwrap())
}

fn assert_equal_to_model(kind: IndexerKind, any_names: bool) {
    proptest!(|(events in events(any_names))| {
        let (index, mut writer) = build(kind);
        let mut model = Model::default();
        let slots = [Slot::new(0, 3), Slot::new(5, 0)];
        let mut out = MatchBuffer::default();
        for (slot, tier, event) in &events {
            let expected = model.apply(*slot, *tier, event);
            prop_assert_eq!(writer.apply(slots[*slot], *tier, event), expected);
            assert_answers(&index, slots, &model, &[0, 1, 0], &mut out)?;
        }
        let (copy, mut copy_writer) = build(kind);
        // Where one name stands for several places, only its tier says which, and an event's parent has no tier.
        if !any_names {
            for slot in slots {
                for (tier, event) in writer.dump(slot) {
                    prop_assert_eq!(copy_writer.apply(slot, tier, &event), Ok(()));
                }
            }
        }
        for query in queries() {
            assert_answers(&index, slots, &model, &query, &mut out)?;
            if !any_names {
                assert_answers(&copy, slots, &model, &query, &mut out)?;
            }
        }
        for slot in slots {
            writer.clear(slot);
            copy_writer.clear(slot);
        }
        for index in [index, copy] {
            prop_assert_eq!((index.counts().nodes, index.lower_counts().nodes), (0, 0));
        }
    });
}

#[test]
fn tiers_equal_the_reference_model() {
    assert_equal_to_model(IndexerKind::Radix, true);
    assert_equal_to_model(IndexerKind::ConcurrentRadix, true);
}

#[test]
fn tiers_of_chained_names_equal_the_reference_model_and_so_do_their_dumps() {
    assert_equal_to_model(IndexerKind::Radix, false);
    assert_equal_to_model(IndexerKind::Positional, false);
}

#[test]
fn a_slot_pays_for_lower_tiers_only_while_it_has_them() {
    let (index, mut writer) = build(IndexerKind::ConcurrentRadix);
    let slot = Slot::new(0, 0);
    let stored = |range: std::ops::Range<u64>| KvCacheEventData::Stored {
        parent_hash: range.start.checked_sub(1).map(ExternalBlockHash),
        blocks: range.map(|hash| block(hash, hash)).collect(),
    };
    writer.apply(slot, StorageTier::Device, &stored(0..50)).unwrap();
    assert_eq!(index.lower_counts(), IndexCounts::default());
    writer.apply(slot, StorageTier::HostPinned, &stored(50..60)).unwrap();
    assert_eq!((index.counts().blocks, index.lower_counts().blocks), (50, 120));
    writer.apply(slot, StorageTier::HostPinned, &KvCacheEventData::Cleared).unwrap();
    assert_eq!((index.counts().blocks, index.lower_counts().blocks), (50, 0));
}

#[test]
fn each_of_many_slots_is_found_with_its_own_tiers() {
    const SLOTS: usize = 61;
    let (index, mut writer) = build(IndexerKind::Run);
    let blocks: Vec<StoredBlock> = (1..=5).map(|number| block(number, number)).collect();
    // In an order that is not that of their numbers, and of several generations.
    for number in (0..SLOTS).map(|number| number * 37 % SLOTS) {
        let slot = Slot::new(number as u32, number as u32 % 3);
        let stored =
            |len: usize| KvCacheEventData::Stored { parent_hash: None, blocks: blocks[..len].to_vec() };
        if number % 4 > 0 {
            writer.apply(slot, StorageTier::Device, &stored(number % 4)).unwrap();
        }
        if number % 3 == 0 {
            writer.apply(slot, StorageTier::HostPinned, &stored(4)).unwrap();
        }
    }
    let mut out = MatchBuffer::default();
    let query: Vec<LocalBlockHash> = blocks.iter().map(|block| block.tokens_hash).collect();
    index.find_matches(&query, &mut out);
    let mut seen = 0;
    for number in 0..SLOTS {
        let slot = Slot::new(number as u32, number as u32 % 3);
        let device_blocks = (number % 4) as u32;
        let host_blocks = if number % 3 == 0 { 4 } else { device_blocks };
        let expected = TierMatch { slot, device_blocks, host_blocks, any_blocks: host_blocks };
        assert_eq!(out.tiers(slot), expected);
        if let Some(found) = out.matches().iter().find(|found| found.slot == slot) {
            assert_eq!(out.tiers_of(found), expected);
            seen += 1;
        }
        assert_eq!(out.lower_tiers().contains(&expected), number % 3 == 0);
    }
    assert_eq!(seen, out.matches().len());
    let another = Slot::new(0, 9);
    assert_eq!(out.tiers(another).any_blocks, 0, "another owner of the index");
}
