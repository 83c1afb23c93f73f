//! Answers, from any thread, while the writer writes.

use std::sync::{
    Arc,
    atomic::Ordering::{Acquire, Relaxed},
};

use dynamo_tokens::LocalBlockHash;

use super::{
    atomics::AtomicU64,
    header::{HOLDERS, Holding, ROOT, counting, slot_of},
    lanes::common_prefix,
    memory::prefetch,
    shared::Shared,
};
use crate::{
    Slot,
    index::{IndexCounts, Match, MatchBuffer},
};

/// Cache lines of a query asked for before anything else: what a short one has.
const QUERY_AHEAD: usize = 12;

/// Walks at most, until one is not disturbed by a slot that loses or regains a block in front of others. One more
/// counts as it is: each of its answers lies between what was true before and after.
const TURNS: usize = 64;

/// A handle that reads a [`RunIndex`](super::RunIndex), beside its writer and other readers, and waits for none.
///
/// For every slot, an answer is between the least and the most that was true while the query ran.
pub struct RunReader {
    pub(super) shared: Arc<Shared>,
    seat: usize,
}

impl Clone for RunReader {
    fn clone(&self) -> Self {
        Self::new(self.shared.clone())
    }
}

impl RunReader {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        let seat = shared.epochs.give_seat();
        Self { shared, seat }
    }

    /// Replaces `out` by the slots that hold the first block of `local`, each with the length of its leading run.
    ///
    /// Threads may share a handle; with one each they do not disturb one another.
    pub fn find_matches(&self, local: &[LocalBlockHash], out: &mut MatchBuffer) {
        // The query may not be in this core's cache yet; it comes while the seat is taken.
        local.iter().step_by(8).take(QUERY_AHEAD).for_each(prefetch);
        let shared = &*self.shared;
        let _pin = shared.epochs.pin(self.seat);
        out.held_blocks.clear();
        out.frequencies.clear();
        for _ in 0..TURNS {
            let turn = shared.turn.load(Acquire);
            // In the middle of a turn the marks may have changed and the word that they follow from has not: without a
            // look at them, the answer is that of before.
            if turn.is_multiple_of(2) {
                walk::<true>(shared, local, out);
            } else {
                walk::<false>(shared, local, out);
            }
            // What was written in a later turn was read with `Acquire`, and then that turn is seen here.
            if shared.turn.load(Relaxed) == turn {
                return;
            }
        }
        walk::<true>(shared, local, out);
    }

    /// Blocks that a slot holds.
    pub fn held_blocks(&self, slot: Slot) -> u32 {
        self.shared.slot_blocks(slot)
    }

    /// Replaces what `out` says of how many blocks each slot holds.
    pub fn note_held_blocks(&self, out: &mut MatchBuffer) {
        self.shared.all_slot_blocks(&mut out.held_blocks);
    }

    /// How large the index was after the last event; bytes after one of the last 64.
    pub fn counts(&self) -> IndexCounts {
        IndexCounts {
            blocks: self.shared.blocks.load(Relaxed),
            nodes: self.shared.nodes.load(Relaxed),
            bytes: self.shared.bytes.load(Relaxed),
        }
    }
}

/// Walks down the path of a query and collects what every slot has of it. `BY_MARK`: from each word that is not marked
/// as cut off, whatever was read above; or else from words that join one another.
fn walk<const BY_MARK: bool>(shared: &Shared, local: &[LocalBlockHash], out: &mut MatchBuffer) {
    out.matches.clear();
    let Some(first) = local.first() else { return };
    let mut depth = 0;
    let mut next = shared.seek(ROOT, 0, first.0).find(shared);
    while let Some(run) = next {
        // Most often a run matches as a whole, and what hangs at its end is wanted next.
        if let Some(behind) = local.get(depth + run.len as usize) {
            shared.prefetch_child(run.id, run.len, behind.0);
        }
        let matched = common_prefix(shared.blocks(&run), &local[depth..]);
        // The next run comes while the holders of this one are looked at. That it was there before their words are read
        // does no harm: who holds it and is not credited with it had no more when it was not there yet.
        let seek = local.get(depth + matched).map(|behind| shared.seek(run.id, matched as u32, behind.0));
        let found = match shared.holder_list(run.header) {
            Some(list) if depth == 0 => credit_first(list, matched, out),
            Some(list) => credit::<BY_MARK>(list, true, depth, matched, out),
            None => credit::<BY_MARK>(&run.header[HOLDERS..], false, depth, matched, out),
        };
        if !found {
            // No slot has all blocks up to here, so none has more.
            break;
        }
        depth += matched;
        next = seek.and_then(|seek| seek.find(shared));
    }
}

/// Gives each holder in the list of a first run, where nobody lacks anything above, what it has of the `matched` first
/// blocks. Says whether there are any.
#[inline]
fn credit_first(list: &[AtomicU64], matched: usize, out: &mut MatchBuffer) -> bool {
    for word in list {
        let word = word.load(Acquire);
        if word == 0 {
            break;
        }
        let blocks = counting(word);
        if blocks > 0 {
            let found = Match { slot: slot_of(word), device_blocks: (blocks as u32).min(matched as u32) };
            out.note_position(found.slot);
            out.matches.push(found);
        }
    }
    !out.matches.is_empty()
}

/// Gives each holder that lacks nothing above what it has of a run's `matched` first blocks. Says whether there are
/// any. A holder's earlier match, in a run above, is shorter. A list ends with its first unused word.
#[inline]
fn credit<const BY_MARK: bool>(
    words: &[AtomicU64],
    is_list: bool,
    depth: usize,
    matched: usize,
    out: &mut MatchBuffer,
) -> bool {
    let (mut found, depth, matched) = (false, depth as u32, matched as u32);
    for word in words {
        let word = word.load(Acquire);
        if word == 0 && is_list {
            break;
        }
        let blocks = if BY_MARK { counting(word) } else { Holding::of(word).blocks as i32 };
        if blocks <= 0 {
            continue;
        }
        let slot = slot_of(word);
        let device_blocks = depth + (blocks as u32).min(matched);
        if let Some(earlier) = out.noted(slot) {
            if !BY_MARK && earlier.device_blocks != depth {
                continue;
            }
            earlier.device_blocks = device_blocks;
        } else if BY_MARK || depth == 0 {
            out.note_position(slot);
            out.matches.push(Match { slot, device_blocks });
        } else {
            continue;
        }
        found = true;
    }
    found
}
