//! External storage, from which every worker loads what any worker put there.
//!
//! One stand-in holds what any slot says to have there. It has a name of its own for each block of each slot, and holds
//! a place while one of them stands for it: so a query finds the storage as it finds a slot, exactly, also while several
//! lanes write, and what a slot alone told of goes with it.

use dynamo_engine_api::{ExternalBlockHash, KvCacheEventData, StoredBlock};

use super::any_slot;
use crate::{
    Slot,
    index::{ApplyError, ConcurrentRadixTree, Match, holders::mix},
};

/// The stand-in for the storage.
const STORAGE: Slot = Slot::new(0, 0);

/// Names that are taken away in one go, within which other lanes wait, and whoever reads what changes: some 100 µs.
const NAMES_AT_ONCE: usize = 512;

/// What the storage calls a slot's block of this alias: different for all blocks of a slot, and no more likely the same
/// for those of two slots than two blocks' hashes are.
fn name(slot: Slot, alias: u64) -> u64 {
    mix(alias ^ mix(u64::from(slot.to_bits())))
}

/// Stores blocks of a slot, known by their aliases, below what the slot has under `parent`.
pub(super) fn store(
    tree: &ConcurrentRadixTree,
    slot: Slot,
    parent: Option<u64>,
    blocks: &[StoredBlock],
) -> Result<(), ApplyError> {
    let named = |block: &StoredBlock| StoredBlock {
        block_hash: ExternalBlockHash(name(slot, block.block_hash.0)),
        tokens_hash: block.tokens_hash,
    };
    let blocks: Vec<_> = blocks.iter().map(named).collect();
    tree.store_below(STORAGE, any_slot(slot), parent, &blocks)
}

/// Takes away what a slot told of blocks, known by their aliases. What it never told of is nothing to take away.
pub(super) fn remove(tree: &ConcurrentRadixTree, slot: Slot, aliases: impl Iterator<Item = u64>) {
    let mut names = aliases.map(|alias| ExternalBlockHash(name(slot, alias)));
    loop {
        let block_hashes: Vec<_> = names.by_ref().take(NAMES_AT_ONCE).collect();
        if block_hashes.is_empty() {
            return;
        }
        let _ = tree.apply(STORAGE, &KvCacheEventData::Removed { block_hashes });
    }
}

/// Takes the storage's run out of an answer.
pub(super) fn take(found: &mut Vec<Match>) -> u32 {
    let at = found.iter().position(|stand_in| stand_in.slot == STORAGE);
    at.map_or(0, |at| found.swap_remove(at).device_blocks)
}

#[cfg(test)]
mod tests;
