//! Answers, from any thread, while the writer writes.

use std::sync::{
    Arc,
    atomic::{
        AtomicU64,
        Ordering::{Acquire, Relaxed},
    },
};

use dynamo_tokens::LocalBlockHash;

use super::{
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
const QUERY_AHEAD: usize = 8;

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
        shared.all_slot_blocks(&mut out.held_blocks);
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
    out.query = out.query.wrapping_add(1);
    if out.query == 0 {
        (out.query, out.positions) = (1, Vec::new());
    }
    let (mut parent, mut offset, mut depth) = (ROOT, 0, 0);
    while let Some(first) = local.get(depth) {
        let Some(run) = shared.child(parent, offset, first.0) else { break };
        let matched = common_prefix(shared.blocks(&run), &local[depth..]);
        let found = match shared.holder_list(run.header) {
            None => credit::<BY_MARK>(&run.header[HOLDERS..], false, depth, matched, out),
            Some(list) => credit::<BY_MARK>(list, true, depth, matched, out),
        };
        if !found {
            // No slot has all blocks up to here, so none has more.
            break;
        }
        (parent, offset) = (run.id, matched as u32);
        depth += matched;
    }
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
    let stamp = u64::from(out.query) << 32;
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
        let index = slot.index();
        if index >= out.positions.len() {
            out.positions.resize(index + 1, 0);
        }
        // The number of the query, and the slot's position in its list.
        let position = out.positions[index];
        if position >> 32 << 32 == stamp {
            let earlier = &mut out.matches[position as u32 as usize];
            if !BY_MARK && earlier.device_blocks != depth {
                continue;
            }
            *earlier = Match { slot, device_blocks };
        } else if BY_MARK || depth == 0 {
            out.positions[index] = stamp | out.matches.len() as u64;
            out.matches.push(Match { slot, device_blocks });
        } else {
            continue;
        }
        found = true;
    }
    found
}
