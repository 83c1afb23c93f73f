//! Stored events.

use std::sync::atomic::Ordering::{Relaxed, Release};

use dynamo_engine_api::{ExternalBlockHash, StoredBlock};
use dynamo_tokens::LocalBlockHash;

use super::{
    ApplyError, At, RunIndex,
    blocks::Blocks,
    columns::{MAX_RUN, UNIT},
    header::{EXTENT, HEADER, Holding, ORIGIN, ROOT, RunId, pair},
    holders::word_of,
    holes::Bits,
    limbo::Retired,
    names::{AHEAD, hash},
    shared::child_hash,
};
use crate::Slot;

/// A run of up to this many blocks moves to larger room when it is appended to; a longer one is continued by another.
const MAX_MOVED: u32 = 256;
/// This many blocks and more are a run of their own, rather than that a shorter run moves for them.
const WORTH_A_RUN: u32 = 64;
/// Blocks whose lines in the table of names are asked for at the beginning.
const SOON: usize = 4;

impl RunIndex {
    pub(super) fn store(
        &mut self,
        slot: Slot,
        parent: Option<ExternalBlockHash>,
        blocks: &[StoredBlock],
    ) -> Result<(), ApplyError> {
        let mut before = parent;
        for block in blocks {
            if before.replace(block.block_hash) == Some(block.block_hash) {
                return Err(ApplyError::InvalidBlock);
            }
        }
        // Most stores are of new blocks: their lines of the table come while the parent is looked up.
        for block in blocks.iter().take(SOON) {
            self.names.prefetch(hash(block.block_hash.0));
        }
        if let (Some(parent), [block]) = (parent, blocks)
            && self.store_next(slot, parent.0, block)?
        {
            return Ok(());
        }
        let (mut run, mut offset) = match parent {
            Some(parent) => {
                let at = self.named(slot, parent.0).ok_or(ApplyError::ParentBlockNotFound)?;
                (at.run, at.offset + 1)
            }
            None => (ROOT, 0),
        };
        let mut rest = blocks;
        while let Some(first) = rest.first() {
            let known = if run == ROOT { 0 } else { self.known(run, offset, rest) };
            let taken = if known > 0 {
                self.hold_known(slot, At { run, offset }, &rest[..known])?
            } else if self.has_children(run)
                && let Some(child) = self.shared.child(run, offset, first.tokens_hash.0)
            {
                (run, offset) = (child.id, 0);
                continue;
            } else {
                let at = self.create(run, offset, rest)?;
                let taken = self.fill(slot, at, rest)?;
                (run, offset) = (at.run, at.offset);
                taken
            };
            offset += taken as u32;
            rest = &rest[taken..];
        }
        Ok(())
    }

    /// Stores a block behind the last one of a run that nothing follows yet and that the slot holds as a whole, where there
    /// is room: what most events of an engine that decodes are. Says whether it was so; otherwise nothing has changed.
    fn store_next(&mut self, slot: Slot, parent: u64, block: &StoredBlock) -> Result<bool, ApplyError> {
        let Self { shared, columns, names, recent, suspects, .. } = self;
        let Some(last) = recent.find(hash(parent)) else { return Ok(false) };
        if columns.name_if_there(last) != Some(parent) {
            return Ok(false);
        }
        let id = columns.run(last);
        if !shared.headers.is_there(id * HEADER as u32) {
            return Ok(false);
        }
        let run = shared.run(id);
        let (start, len) = (last + 1, run.len);
        let cold = &self.cold[id];
        let is_open = cold.children == 0 && cold.epoch == 0 && u32::from(cold.units) * UNIT > len;
        let is_plain = self.doubled_names == 0 && self.aliases.is_empty() && self.holes.is_empty();
        if run.place + len != start || !is_open || !is_plain || self.slots[slot.index()].cut_off > 0 {
            return Ok(false);
        }
        let Some(word) = word_of(shared, run.header, slot) else { return Ok(false) };
        if Holding::of(word.load(Relaxed)).blocks != len {
            return Ok(false);
        }
        shared.locals.slice(start, 1)[0].store(block.tokens_hash.0, Relaxed);
        columns.set_name(start, block.block_hash.0);
        run.header[EXTENT].store(pair(run.place, len + 1), Release);
        self.nodes += 1;
        recent.note(hash(block.block_hash.0), start);
        let listed = names.insert_few(start..start + 1, columns, |unit, at| suspects.push((unit, at)));
        if listed > start && suspects.is_empty() {
            word.store(Holding { blocks: len + 1, is_cut_off: false }.word(slot), Release);
            self.count(slot, 1, 0);
        } else {
            self.list_rest(start..start + 1, listed);
            self.hold_new(slot, At { run: id, offset: len }, std::slice::from_ref(block))?;
        }
        Ok(true)
    }

    /// How many of `blocks` lie in the run from `offset` on.
    fn known(&self, run: RunId, offset: u32, blocks: &[StoredBlock]) -> usize {
        let run = self.shared.run(run);
        let stored = &self.shared.blocks(&run)[offset as usize..];
        stored.iter().zip(blocks).take_while(|(stored, block)| **stored == block.tokens_hash.0).count()
    }

    /// Lets a slot hold blocks that are there. Returns how many: a name that moves may take others with it.
    fn hold_known(&mut self, slot: Slot, at: At, blocks: &[StoredBlock]) -> Result<usize, ApplyError> {
        if self.are_names_plain() {
            let names = self.columns.names(self.place(at), blocks.len());
            if names.iter().zip(blocks).all(|(name, block)| *name == block.block_hash.0) {
                self.hold(slot, at.run, at.offset, blocks.len() as u32)?;
                if let Some(last) = blocks.last() {
                    self.recent.note(hash(last.block_hash.0), self.place(at) + blocks.len() as u32 - 1);
                }
                return Ok(blocks.len());
            }
        }
        for (number, block) in blocks.iter().enumerate() {
            let at = At { offset: at.offset + number as u32, ..at };
            if at.offset >= self.len(at.run) {
                return Ok(number);
            }
            self.hold_as(slot, at, block.block_hash.0)?;
        }
        Ok(blocks.len())
    }

    /// Lets a slot hold `count` blocks of a run.
    pub(super) fn hold(&mut self, slot: Slot, run: RunId, offset: u32, count: u32) -> Result<(), ApplyError> {
        if self.hold_next(slot, run, offset, offset + count) {
            return Ok(());
        }
        self.room_for_holder(run, slot)?;
        let before = self.holding(run, slot);
        let end = offset + count;
        let mut after = before;
        let added;
        if let Some(mut bits) = self.holes.take(run, slot) {
            added = bits.put(offset, end, true);
            after.blocks = bits.stretch(0);
            if after.blocks < bits.end() {
                self.holes.put(run, slot, bits);
            }
        } else if offset <= before.blocks {
            after.blocks = before.blocks.max(end);
            added = after.blocks - before.blocks;
        } else {
            let mut bits = Bits::leading(before.blocks);
            added = bits.put(offset, end, true);
            self.holes.put(run, slot, bits);
        }
        if before.blocks == 0 && after.blocks > 0 {
            after.is_cut_off = !self.is_reached(run, slot);
        }
        if after != before {
            let mut turned = false;
            if !after.is_cut_off && self.slots[slot.index()].cut_off > 0 {
                turned = self.pass_on(slot, run, before.blocks, after.blocks, false);
            }
            self.put_holding(run, slot, after);
            self.end_turn(turned);
        }
        self.count(slot, added, 0);
        Ok(())
    }

    /// Lets a slot that holds the blocks of a run before `begin` hold those up to `end`, too, if that changes nothing
    /// else, as when an engine decodes.
    fn hold_next(&mut self, slot: Slot, run: RunId, begin: u32, end: u32) -> bool {
        if !self.holes.is_empty() || self.slots[slot.index()].cut_off > 0 {
            return false;
        }
        let Some(word) = self.word(run, slot) else { return false };
        let before = Holding::of(word.load(Relaxed)).blocks;
        if before == 0 || begin > before || end <= before {
            return false;
        }
        word.store(Holding { blocks: end, is_cut_off: false }.word(slot), Release);
        self.count(slot, end - before, 0);
        true
    }

    /// A slot's run of blocks from the root is about to reach, or not to reach any more, the blocks of a run behind
    /// the first `after` up to `upto`: marks what hangs there, before the run's own word changes. Says whether there
    /// was anything; then a turn has begun, which ends when that word has changed.
    pub(super) fn pass_on(
        &mut self,
        slot: Slot,
        run: RunId,
        after: u32,
        upto: u32,
        is_cut_off: bool,
    ) -> bool {
        let mut visit = std::mem::take(&mut self.visit);
        self.children_between(run, after, upto, &mut visit);
        let mut turned = false;
        while let Some(child) = visit.pop() {
            let holding = self.holding(child, slot);
            if holding.blocks > 0 && holding.is_cut_off != is_cut_off {
                if !turned {
                    turned = true;
                    let turn = self.shared.turn.load(Relaxed);
                    self.shared.turn.store(turn + 1, Relaxed);
                }
                // Released with this, so that who sees the mark sees the turn.
                self.put_holding(child, slot, Holding { is_cut_off, ..holding });
                self.children_between(child, 0, holding.blocks, &mut visit);
            }
        }
        self.visit = visit;
        turned
    }

    /// Ends a turn that `pass_on` began.
    pub(super) fn end_turn(&mut self, turned: bool) {
        if turned {
            let turn = self.shared.turn.load(Relaxed);
            self.shared.turn.store(turn + 1, Release);
        }
    }

    /// Finds or makes room behind the first `offset` blocks of `run` for some of `blocks`, none of which is there.
    /// Returns where the first goes.
    fn create(&mut self, run: RunId, offset: u32, blocks: &[StoredBlock]) -> Result<At, ApplyError> {
        let wanted = u32::try_from(blocks.len()).unwrap_or(u32::MAX).min(MAX_RUN);
        if run != ROOT && offset == self.len(run) && self.make_room_behind(run, wanted) {
            return Ok(At { run, offset });
        }
        let first = blocks[0].tokens_hash.0;
        self.room_for_child(child_hash(run, offset, first))?;
        let id = self.new_run().ok_or(ApplyError::Full)?;
        let units = wanted.div_ceil(UNIT);
        let Some(place) = self.columns.take(units, id, &self.shared.locals) else {
            self.retire(Retired::Run(id));
            return Err(ApplyError::Full);
        };
        self.cold[id].units = units as u16;
        let header = self.shared.header(id);
        header[ORIGIN].store(pair(run, offset), Relaxed);
        header[EXTENT].store(pair(place, 0), Relaxed);
        Ok(At { run: id, offset: 0 })
    }

    /// Makes room for at least one block behind the end of a run, without changing what readers see.
    fn make_room_behind(&mut self, run: RunId, wanted: u32) -> bool {
        let found = self.shared.run(run);
        let (place, len) = (found.place, found.len);
        let cold = self.cold[run];
        // A reader that sees the run longer must not take the new blocks for the old ones.
        if !self.has_passed_or_none(cold.epoch) {
            return false;
        }
        let units = u32::from(cold.units);
        let needed = len.saturating_add(wanted).min(MAX_RUN).div_ceil(UNIT);
        if needed > units && self.columns.extend(place + units * UNIT, needed - units, run) {
            self.cold[run].units = needed as u16;
            return true;
        }
        if len < units * UNIT {
            return true;
        }
        if needed <= units || len > MAX_MOVED || wanted >= WORTH_A_RUN {
            return false;
        }
        // Room for as many again as it has, at least a quarter: so a block moves about three times in a long decode.
        let roomy = (needed + needed / 4).max(units + 1);
        let Some(new) = self.columns.take(roomy, run, &self.shared.locals) else { return false };
        self.columns.copy(place, new, len as usize, &self.shared.locals);
        self.shared.header(run)[EXTENT].store(pair(new, len), Release);
        let moved = self.columns.names(new, len as usize);
        let mut blocks = Blocks::new(&self.columns, &self.shared, new..new + len);
        blocks.moving = place..place + len;
        moved.iter().take(AHEAD).for_each(|&name| self.names.prefetch(hash(name)));
        for (number, &name) in (0..len).zip(moved) {
            if let Some(&later) = moved.get(number as usize + AHEAD) {
                self.names.prefetch(hash(later));
            }
            blocks.unlisted.start = new + number;
            blocks.moving.start = place + number + 1;
            self.names.replace(hash(name), place + number, new + number, &blocks);
        }
        self.relist_child(run);
        self.cold[run].units = roomy as u16;
        self.retire(Retired::Blocks { place, units });
        true
    }

    fn has_passed_or_none(&mut self, epoch: u64) -> bool {
        epoch == 0 || self.has_passed(epoch)
    }

    /// Writes blocks into the room behind the end of a run and lets a slot hold them. Returns how many.
    fn fill(&mut self, slot: Slot, at: At, blocks: &[StoredBlock]) -> Result<usize, ApplyError> {
        let (place, len) = {
            let found = self.shared.run(at.run);
            (found.place, found.len)
        };
        let room = u32::from(self.cold[at.run].units) * UNIT - len;
        let count = blocks.len().min(room as usize);
        let blocks = &blocks[..count];
        let start = place + len;
        let words = self.shared.locals.slice(start, count).iter();
        let names = self.columns.names_mut(start, count).iter_mut();
        for ((word, name), block) in words.zip(names).zip(blocks) {
            let LocalBlockHash(local) = block.tokens_hash;
            word.store(local, Relaxed);
            *name = block.block_hash.0;
        }
        self.shared.header(at.run)[EXTENT].store(pair(place, len + count as u32), Release);
        self.nodes += count;
        self.list_names(start, count as u32);
        if let Some(last) = blocks.last() {
            self.recent.note(hash(last.block_hash.0), start + count as u32 - 1);
        }
        if len == 0 {
            self.list_child(at.run);
            self.adopt(at.run);
        }
        self.hold_new(slot, at, blocks)?;
        Ok(count)
    }

    /// Lets a slot hold blocks at the end of a run that are there for it.
    fn hold_new(&mut self, slot: Slot, at: At, blocks: &[StoredBlock]) -> Result<(), ApplyError> {
        let count = blocks.len() as u32;
        let result = if self.namesakes.is_empty() && self.aliases.is_empty() {
            self.hold(slot, at.run, at.offset, count)
        } else {
            self.pinned = Some(At { offset: at.offset + count - 1, ..at });
            let result = self.take_names(slot, at, blocks);
            self.namesakes.clear();
            self.pinned = None;
            result
        };
        if result.is_err() {
            self.trim(at.run);
        }
        result
    }

    /// Lets a slot hold new blocks, the first of which is `at`, some of whose names may stand for others: it loses
    /// those, each before it holds the block that the name stands for now.
    fn take_names(&mut self, slot: Slot, at: At, blocks: &[StoredBlock]) -> Result<(), ApplyError> {
        let index = slot.index() as u32;
        let place = self.place(at);
        let mut namesakes = std::mem::take(&mut self.namesakes);
        let mut moved = namesakes.drain(..).peekable();
        let (mut held, count) = (0, blocks.len() as u32);
        for (number, block) in (0..count).zip(blocks) {
            let name = block.block_hash.0;
            while let Some((other, _)) = moved.next_if(|&(_, new)| new == place + number) {
                let old = self.at(other);
                // Those among the new ones are held first, if they come before.
                if old.run == at.run && old.offset >= at.offset {
                    self.hold(slot, at.run, at.offset + held, number - held)?;
                    held = number;
                }
                if self.holds(slot, old) && self.aliases.uses_own(old.key(), index) {
                    self.unname(slot, old, name);
                }
            }
            if !self.aliases.is_empty()
                && let Some(old) = self.aliases.node(index, name)
            {
                self.unname(slot, At::of(old), name);
            }
        }
        drop(moved);
        self.namesakes = namesakes;
        if held < count { self.hold(slot, at.run, at.offset + held, count - held) } else { Ok(()) }
    }
}
