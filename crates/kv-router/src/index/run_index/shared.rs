//! What readers and the writer share.
#![allow(unsafe_code, reason = "a run's blocks are read as plain words")]

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use super::{
    atomics::{AtomicU64, AtomicUsize},
    columns::Locals,
    epochs::Epochs,
    header::{ChildEntry, EXTENT, HEADER, LIST, ORIGIN, ROOT, RunId, halves, pair},
    memory::{Place, Words},
    regions::Memory,
};
use crate::Slot;

/// 2,048 headers of 64 bytes in a chunk, 16 million runs at most.
pub(super) type Headers = Words<{ small(14, 9) }, { small(1 << 13, 2) as usize }>;
/// Lists of holders and tables of children, up to 2^16 words each.
pub(super) type Lists = Words<{ small(16, 9) }, { small(1 << 14, 2) as usize }>;
/// A word for each slot there can be.
type Slots = Words<SLOT_BITS, { small(1 << 10, 2) as usize }>;
const SLOT_BITS: u32 = small(10, 4);
const SLOTS_PER_CHUNK: usize = 1 << SLOT_BITS;

/// Parts of the table of children, each of which is rebuilt alone. With a million runs that is 2,000 entries at once.
pub(super) const CHILD_PARTS: usize = 1 << CHILD_PART_BITS;
const CHILD_PART_BITS: u32 = small(9, 1);

/// A size, and a smaller one for loom, which makes everything anew for each order that it tries.
pub(super) const fn small(size: u32, in_loom: u32) -> u32 {
    if cfg!(loom) { in_loom } else { size }
}

/// The state of an index that readers see.
pub(super) struct Shared {
    pub(super) locals: Locals,
    pub(super) headers: Headers,
    pub(super) lists: Lists,
    /// Where each part of the table of children lies, and the logarithm of its length; 0 if it is empty.
    pub(super) children: Box<[AtomicU64]>,
    /// By slot index: the slot and how many blocks it holds.
    slots: Slots,
    /// The blocks once more, of two slots in a word, since every answer has them all.
    held: Slots,
    pub(super) slot_limit: AtomicUsize,
    pub(super) epochs: Epochs,
    /// Odd while the writer changes several words of a slot that have to change at once; counts such changes.
    pub(super) turn: AtomicU64,
    pub(super) blocks: AtomicUsize,
    pub(super) nodes: AtomicUsize,
    pub(super) bytes: AtomicUsize,
    pub(super) memory: Memory,
}

/// A run as it was found: its header, and its blocks at that moment.
#[derive(Clone, Copy)]
pub(super) struct Run<'a> {
    pub(super) id: RunId,
    pub(super) header: &'a [AtomicU64; HEADER],
    pub(super) place: Place,
    pub(super) len: u32,
}

/// A look-up of a child that is under way.
pub(super) struct Seek<'a> {
    hash: u64,
    entries: &'a [AtomicU64],
    /// The entry to look at next, or more by a multiple of their number.
    at: usize,
    /// One that may be it, or 0.
    entry: ChildEntry,
    origin: u64,
    local: u64,
}

impl<'a> Seek<'a> {
    /// Goes on to the next entry that may be it.
    #[inline]
    fn next(&mut self, shared: &Shared) {
        let mask = self.entries.len() - 1;
        loop {
            self.entry = ChildEntry(self.entries[self.at & mask].load(Acquire));
            self.at += 1;
            if self.entry == ChildEntry::NONE {
                return;
            }
            if self.entry.may_be(self.hash) && self.entry.run() != ROOT {
                shared.headers.prefetch_line(self.entry.run() * HEADER as u32);
                shared.locals.prefetch(self.entry.place());
                return;
            }
        }
    }

    /// Ends the look-up.
    // Else code elsewhere decides whether it is inlined, which is 7 % of a query's instructions.
    #[inline(always)]
    pub(super) fn find(mut self, shared: &'a Shared) -> Option<Run<'a>> {
        while self.entry != ChildEntry::NONE {
            let run = shared.run(self.entry.run());
            if run.header[ORIGIN].load(Relaxed) == self.origin
                && run.len > 0
                && shared.locals.slice(run.place, 1)[0].load(Relaxed) == self.local
            {
                return Some(run);
            }
            self.next(shared);
        }
        None
    }
}

/// The hash of a child's place in the tree: its upper bits choose the part, the next ones the entry, and the lower half
/// is in the entry.
#[inline]
pub(super) fn child_hash(parent: RunId, offset: u32, local: u64) -> u64 {
    let key = local ^ pair(parent, offset).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    let product = u128::from(key) * 0x9E37_79B9_7F4A_7C15_u128;
    (product >> 64) as u64 ^ product as u64
}

pub(super) fn child_part(hash: u64) -> usize {
    (hash >> (u64::BITS - CHILD_PART_BITS)) as usize
}

impl Shared {
    pub(super) fn new() -> Self {
        let memory = Memory::new();
        Self {
            locals: Words::new(&memory),
            headers: Words::new(&memory),
            lists: Words::new(&memory),
            children: (0..CHILD_PARTS).map(|_| AtomicU64::new(0)).collect(),
            slots: Words::new(&memory),
            held: Words::new(&memory),
            slot_limit: AtomicUsize::new(0),
            epochs: Epochs::new(),
            turn: AtomicU64::new(0),
            blocks: AtomicUsize::new(0),
            nodes: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            memory,
        }
    }

    #[inline]
    pub(super) fn header(&self, run: RunId) -> &[AtomicU64; HEADER] {
        self.headers.array(run * HEADER as u32)
    }

    #[inline]
    pub(super) fn run(&self, id: RunId) -> Run<'_> {
        let header = self.header(id);
        let (place, len) = halves(header[EXTENT].load(Acquire));
        Run { id, header, place, len }
    }

    /// The blocks of a run that the writer, or a reader that is pinned, has found.
    #[inline]
    pub(super) fn blocks(&self, run: &Run<'_>) -> &[u64] {
        // SAFETY: the blocks were written before the extent was published, and what a reader may look at is not
        // written again: room behind a shortened run, and that of runs which are gone, waits for the epoch, and runs
        // are lengthened behind their end only. The writer does not write while it reads.
        unsafe { self.locals.frozen(run.place, run.len as usize) }
    }

    /// The run that begins with `local` behind the first `offset` blocks of `parent`.
    #[inline]
    pub(super) fn child(&self, parent: RunId, offset: u32, local: u64) -> Option<Run<'_>> {
        self.seek(parent, offset, local).find(self)
    }

    /// Asks for the entry of a child that may be wanted.
    #[inline]
    pub(super) fn prefetch_child(&self, parent: RunId, offset: u32, local: u64) {
        if cfg!(loom) {
            return;
        }
        let hash = child_hash(parent, offset, local);
        let (place, bits) = halves(self.children[child_part(hash)].load(Relaxed));
        let mask = (1 << bits) - 1;
        self.lists.prefetch(place + ((hash >> 32) as u32 & mask));
    }

    /// Begins to look for a child: finds its entry, and asks for what that points to.
    // As `Seek::find`.
    #[inline(always)]
    pub(super) fn seek(&self, parent: RunId, offset: u32, local: u64) -> Seek<'_> {
        let hash = child_hash(parent, offset, local);
        let table = self.children[child_part(hash)].load(Acquire);
        let mut seek =
            Seek { hash, entries: &[], at: 0, entry: ChildEntry::NONE, origin: pair(parent, offset), local };
        if table != 0 {
            let (place, bits) = halves(table);
            seek.entries = self.lists.slice(place, 1 << bits);
            seek.at = (hash >> 32) as usize;
            seek.next(self);
        }
        seek
    }

    /// The list of a run's holders, if they are not in the header.
    #[inline]
    pub(super) fn holder_list(&self, header: &[AtomicU64; HEADER]) -> Option<&[AtomicU64]> {
        match header[LIST].load(Acquire) {
            0 => None,
            list => {
                let (place, bits) = halves(list);
                Some(self.lists.slice(place, 1 << bits))
            }
        }
    }

    /// Blocks that a slot holds.
    pub(super) fn slot_blocks(&self, slot: Slot) -> u32 {
        if slot.index() >= self.slot_limit.load(Acquire) {
            return 0;
        }
        let (owner, blocks) = halves(self.slots.slice(slot.index() as Place, 1)[0].load(Relaxed));
        if owner == slot.to_bits() { blocks } else { 0 }
    }

    /// Says how many blocks a slot holds. Only the writer calls it.
    pub(super) fn set_slot_blocks(&self, slot: Slot, blocks: u32) {
        let index = slot.index() as Place;
        self.slots.slice(index, 1)[0].store(pair(slot.to_bits(), blocks), Relaxed);
        let word = &self.held.slice(index / 2, 1)[0];
        let (odd, even) = halves(word.load(Relaxed));
        let new = if index.is_multiple_of(2) { pair(odd, blocks) } else { pair(blocks, even) };
        word.store(new, Relaxed);
    }

    /// The blocks of all slots, by slot index.
    #[inline]
    pub(super) fn all_slot_blocks(&self, held: &mut Vec<u32>) {
        let limit = self.slot_limit.load(Acquire);
        let words = limit.div_ceil(2);
        held.resize(words * 2, 0);
        for (chunk, held) in held.chunks_mut(2 * SLOTS_PER_CHUNK).enumerate() {
            let words = self.held.slice((chunk * SLOTS_PER_CHUNK) as Place, held.len() / 2);
            for (word, held) in words.iter().zip(held.chunks_exact_mut(2)) {
                let (odd, even) = halves(word.load(Relaxed));
                (held[0], held[1]) = (even, odd);
            }
        }
    }

    /// Makes words for the slots below `limit`. Only the writer calls it.
    pub(super) fn add_slots(&self, limit: usize) {
        let before = self.slot_limit.load(Relaxed);
        for chunk in before.div_ceil(SLOTS_PER_CHUNK)..limit.div_ceil(SLOTS_PER_CHUNK) {
            self.slots.add_chunk(chunk);
        }
        for chunk in before.div_ceil(2 * SLOTS_PER_CHUNK)..limit.div_ceil(2 * SLOTS_PER_CHUNK) {
            self.held.add_chunk(chunk);
        }
        for index in before..limit {
            self.set_slot_blocks(Slot::new(index as u32, 0), 0);
        }
        self.slot_limit.store(limit, Release);
    }

    pub(super) fn own_bytes(&self) -> usize {
        let limit = self.slot_limit.load(Relaxed);
        size_of::<Self>()
            + size_of_val(&*self.children)
            + self.epochs.bytes()
            + self.memory.bytes()
            + 2 * Slots::directory_bytes(limit.div_ceil(SLOTS_PER_CHUNK))
    }
}
