//! What a slot holds of a run where that is not just its leading blocks.
//!
//! Engines evict the ends of sequences first, so this is rare: a bit a block, only for runs with holes.

use rustc_hash::FxHashMap;
use smallvec::SmallVec;

use super::header::RunId;
use crate::Slot;

/// Which blocks of a run a slot holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Bits(Vec<u64>);

impl Bits {
    /// The first `blocks`.
    pub(super) fn leading(blocks: u32) -> Self {
        let mut bits = Self::default();
        bits.put(0, blocks, true);
        bits
    }

    pub(super) fn has(&self, at: u32) -> bool {
        self.0.get(at as usize / 64).is_some_and(|word| word >> (at % 64) & 1 == 1)
    }

    /// Sets or clears all from `begin` up to `end`; says how many changed.
    pub(super) fn put(&mut self, begin: u32, end: u32, held: bool) -> u32 {
        if self.0.len() < end.div_ceil(64) as usize {
            self.0.resize(end.div_ceil(64) as usize, 0);
        }
        let (mut at, mut changed) = (begin, 0);
        while at < end {
            let count = (64 - at % 64).min(end - at);
            let mask = (u64::MAX >> (64 - count)) << (at % 64);
            let word = &mut self.0[at as usize / 64];
            let new = if held { *word | mask } else { *word & !mask };
            changed += (*word ^ new).count_ones();
            *word = new;
            at += count;
        }
        changed
    }

    /// How many blocks are held from `begin` on without a gap.
    pub(super) fn stretch(&self, begin: u32) -> u32 {
        let mut at = begin;
        while let Some(&word) = self.0.get(at as usize / 64) {
            let ones = (word >> (at % 64)).trailing_ones();
            at += ones;
            if ones == 0 || !at.is_multiple_of(64) {
                break;
            }
        }
        at - begin
    }

    /// One past the last block that is held.
    pub(super) fn end(&self) -> u32 {
        let last = self.0.iter().rposition(|&word| word != 0);
        last.map_or(0, |at| at as u32 * 64 + 64 - self.0[at].leading_zeros())
    }

    pub(super) fn count(&self) -> u32 {
        self.0.iter().map(|word| word.count_ones()).sum()
    }
}

/// Runs with holes, by run.
#[derive(Default)]
pub(super) struct Holes {
    runs: FxHashMap<RunId, SmallVec<[(Slot, Bits); 1]>>,
    heap_bytes: usize,
}

impl Holes {
    pub(super) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// The holes of a slot in a run.
    pub(super) fn get(&self, run: RunId, slot: Slot) -> Option<&Bits> {
        if self.runs.is_empty() {
            return None;
        }
        self.runs.get(&run)?.iter().find(|(owner, _)| *owner == slot).map(|(_, bits)| bits)
    }

    /// Takes them out, to be changed and put back if there still are any.
    pub(super) fn take(&mut self, run: RunId, slot: Slot) -> Option<Bits> {
        if self.runs.is_empty() {
            return None;
        }
        let owners = self.runs.get_mut(&run)?;
        let at = owners.iter().position(|(owner, _)| *owner == slot)?;
        let (_, bits) = owners.swap_remove(at);
        if owners.is_empty() {
            self.runs.remove(&run);
            if self.runs.len() * 8 < self.runs.capacity() {
                self.runs.shrink_to(self.runs.len() * 2);
            }
        }
        self.heap_bytes -= bits.0.capacity() * size_of::<u64>();
        Some(bits)
    }

    pub(super) fn put(&mut self, run: RunId, slot: Slot, bits: Bits) {
        self.heap_bytes += bits.0.capacity() * size_of::<u64>();
        self.runs.entry(run).or_default().push((slot, bits));
    }

    /// Who has holes in a run.
    pub(super) fn of(&self, run: RunId) -> &[(Slot, Bits)] {
        if self.runs.is_empty() {
            return &[];
        }
        self.runs.get(&run).map_or(&[], |owners| owners)
    }

    pub(super) fn bytes(&self) -> usize {
        self.runs.capacity() * (size_of::<(RunId, SmallVec<[(Slot, Bits); 1]>)>() + 1) + self.heap_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_count_stretches_and_ends() {
        let mut bits = Bits::leading(200);
        assert_eq!((bits.stretch(0), bits.end(), bits.count()), (200, 200, 200));
        assert_eq!(bits.put(64, 130, false), 66);
        assert_eq!(bits.put(60, 70, false), 4);
        assert_eq!((bits.stretch(0), bits.stretch(130), bits.end()), (60, 70, 200));
        assert!(!bits.has(129) && bits.has(130) && !bits.has(5000));
        bits.put(130, 200, false);
        assert_eq!((bits.end(), bits.count()), (60, 60));
        assert_eq!(bits.put(60, 300, true), 240);
        assert_eq!(bits.stretch(0), 300);
    }
}
