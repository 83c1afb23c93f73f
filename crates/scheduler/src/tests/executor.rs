//! An executor that keeps in every position of every block the hash of all tokens up to it, and draws the next token
//! from that: whoever reads a wrong, stale or early block gets other tokens.

use std::collections::BTreeMap;

use dynamo_tokens::{HashSeed, LocalBlockHash, SequenceHash, TokenId, TokenSequence};

use super::fake_pool::{Dice, FakePool, POISON};
use crate::{BlockPool, BlockTable, FullBlock, Scheduler, Step, StepResults, Work};

const START: u64 = 7;
/// Multiples of it end a request.
const END_TOKEN: TokenId = 61;

pub(super) fn mix(hash: u64, token: TokenId) -> u64 {
    let mixed = (hash ^ u64::from(token)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed ^ (mixed >> 29)
}

fn draw(hash: u64) -> TokenId {
    (hash >> 20) as TokenId % 1000
}

/// What a request must generate, whatever happens to it.
pub(super) fn reference(prompt: &[TokenId], max_new: usize) -> Vec<TokenId> {
    let mut hash = prompt.iter().fold(START, |hash, &token| mix(hash, token));
    let mut tokens = Vec::new();
    while tokens.len() < max_new {
        let token = draw(hash);
        tokens.push(token);
        hash = mix(hash, token);
        if token.is_multiple_of(END_TOKEN) {
            break;
        }
    }
    tokens
}

/// The blocks of a prompt, as a remote store has them.
pub(super) fn blocks_of(
    prompt: &[TokenId],
    pool: &FakePool,
) -> BTreeMap<SequenceHash, (FullBlock, Vec<u64>)> {
    let sequence = TokenSequence::new(prompt.to_vec(), pool.block_size(), HashSeed::PLAIN);
    let mut hash = START;
    let values: Vec<u64> = prompt
        .iter()
        .map(|&token| {
            hash = mix(hash, token);
            hash
        })
        .collect();
    let size = pool.block_size().get();
    let block = |index: usize| {
        let hashes: &[SequenceHash] = sequence.sequence_hashes();
        let local: LocalBlockHash = sequence.local_hashes()[index];
        let parent = index.checked_sub(1).map(|parent| hashes[parent]);
        let full = FullBlock { sequence_hash: hashes[index], local_hash: local, parent, index };
        (hashes[index], (full, values[index * size..(index + 1) * size].to_vec()))
    };
    (0..sequence.sequence_hashes().len()).map(block).collect()
}

/// A step as it was handed to the device: tables and tokens as they were when it was planned.
pub(super) struct Launched {
    pub(super) step: Step,
    inputs: Vec<(Vec<BlockTable>, Vec<TokenId>)>,
}

pub(super) fn launch<T>(scheduler: &Scheduler<FakePool, T>, step: Step) -> Launched {
    let input = |work: &Work| {
        let groups = scheduler.pool().groups.len();
        let tables = (0..groups).map(|group| scheduler.table(work, group).unwrap().clone()).collect();
        (tables, scheduler.tokens(work).unwrap().to_vec())
    };
    let inputs = step.works().iter().map(input).collect();
    Launched { step, inputs }
}

fn ends(tokens: &[TokenId]) -> bool {
    tokens.last().is_some_and(|token| token.is_multiple_of(END_TOKEN))
}

fn slot(table: &BlockTable, position: usize, size: usize) -> usize {
    table.get(position / size).expect("the table covers the work").0 as usize * size + position % size
}

/// Runs a launched step on the memory.
pub(super) fn run<T>(
    scheduler: &mut Scheduler<FakePool, T>,
    launched: &Launched,
    dice: &mut Dice,
    max_advance: usize,
    results: &mut StepResults,
) {
    results.clear();
    let size = scheduler.pool().block_size().get();
    for (work, (tables, tokens)) in launched.step.works().iter().zip(&launched.inputs) {
        assert_eq!(tokens.len() + usize::from(work.ahead), work.len);
        let valid = scheduler.table(work, 0).is_some();
        if valid {
            check_past(scheduler, work, tables, size);
        }
        let before = work.start.checked_sub(1).map_or(START, |p| read(scheduler, tables, p, size));
        let mut hash = before;
        let mut position = work.start;
        let mut feed = |scheduler: &mut Scheduler<FakePool, T>, token: TokenId, hash: &mut u64| {
            *hash = if *hash == POISON { POISON } else { mix(*hash, token) };
            for (group, table) in tables.iter().enumerate() {
                let at = slot(table, position, size);
                scheduler.pool_mut().groups[group].kv[at] = *hash;
            }
            position += 1;
        };
        for &token in tokens {
            feed(scheduler, token, &mut hash);
        }
        if work.ahead {
            let token = draw(hash);
            feed(scheduler, token, &mut hash);
        }
        let mut new = Vec::new();
        let mut computed = work.len;
        let wanted = match dice.below(10) {
            0 => 0,
            1 | 2 => 1 + dice.below(4) as usize,
            _ => 1,
        };
        if dice.percent(3) {
            // The device computed only a part.
            computed = dice.below(work.len as u64) as usize;
        } else if work.samples && wanted > 0 {
            new.push(draw(hash));
            // Drafts that are accepted: their KV is there too, as far as there is room for it.
            let has_room = |computed| tables.iter().all(|table| (work.start + computed) / size < table.end());
            while new.len() < wanted.min(max_advance) && !ends(&new) && has_room(computed) {
                feed(scheduler, new[new.len() - 1], &mut hash);
                computed += 1;
                new.push(draw(hash));
            }
        }
        let stopped = ends(&new);
        results.push(computed, &new, stopped);
    }
}

fn read<T>(scheduler: &Scheduler<FakePool, T>, tables: &[BlockTable], position: usize, size: usize) -> u64 {
    scheduler.pool().groups[0].kv[slot(&tables[0], position, size)]
}

/// Every position that the work looks back on is what its request's tokens make it.
fn check_past<T>(scheduler: &Scheduler<FakePool, T>, work: &Work, tables: &[BlockTable], size: usize) {
    let request = scheduler.by_id[&work.request];
    let tokens = scheduler.request(request).sequence.tokens();
    for (group, table) in tables.iter().enumerate() {
        let state = &scheduler.pool().groups[group];
        let from = state.window.map_or(0, |window| (work.start + 1).saturating_sub(window));
        let mut hash = START;
        for (position, &token) in tokens[..work.start].iter().enumerate() {
            hash = mix(hash, token);
            if position >= from {
                assert_eq!(state.kv[slot(table, position, size)], hash, "group {group}, position {position}");
            }
        }
    }
}
