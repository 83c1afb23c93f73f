//! Comparing many words at once.
#![allow(unsafe_code, reason = "vector loads of whole arrays")]

use dynamo_tokens::LocalBlockHash;

use super::memory::prefetch;

/// Entries in a line of 64 bytes.
pub(super) const LANES: usize = 16;

/// One cache line of the table of names.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(super) struct Line(pub(super) [u32; LANES]);

impl Line {
    pub(super) const EMPTY: Self = Self([0; LANES]);

    /// A bit for each entry that equals `value` where `mask` has bits.
    #[inline]
    pub(super) fn equal(&self, mask: u32, value: u32) -> u32 {
        #[cfg(all(target_arch = "x86_64", not(miri)))]
        {
            use std::arch::x86_64::*;
            let (mask, value) = (mask as i32, value as i32);
            // SAFETY: SSE2 is part of x86-64; the four loads cover the array of 64 bytes, which is aligned to them.
            unsafe {
                let (mask, value) = (_mm_set1_epi32(mask), _mm_set1_epi32(value));
                let from = self.0.as_ptr().cast::<__m128i>();
                let lane = |at| _mm_cmpeq_epi32(_mm_and_si128(_mm_load_si128(from.add(at)), mask), value);
                let low = _mm_packs_epi32(lane(0), lane(1));
                let high = _mm_packs_epi32(lane(2), lane(3));
                _mm_movemask_epi8(_mm_packs_epi16(low, high)) as u32
            }
        }
        #[cfg(not(all(target_arch = "x86_64", not(miri))))]
        {
            self.0.iter().rev().fold(0, |bits, &entry| bits << 1 | u32::from(entry & mask == value))
        }
    }
}

/// How many of `stored` and `query` agree, from the first on.
#[inline]
pub(super) fn common_prefix(stored: &[u64], query: &[LocalBlockHash]) -> usize {
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has it.
        return unsafe { common_prefix_wide(stored, query) };
    }
    compare(stored, query)
}

/// `compare` in vectors of 32 bytes.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn common_prefix_wide(stored: &[u64], query: &[LocalBlockHash]) -> usize {
    compare(stored, query)
}

#[inline(always)]
fn compare(stored: &[u64], query: &[LocalBlockHash]) -> usize {
    /// Compared between two branches: a vector compiler makes a few registers of it, and a long match still is one
    /// branch for two lines.
    const AT_ONCE: usize = 16;
    /// Blocks asked for ahead: further than the processor looks by itself at the start of a stretch.
    const AHEAD: usize = 64;
    let len = stored.len().min(query.len());
    let (stored, query) = (&stored[..len], &query[..len]);
    for at in (8..len.min(AHEAD)).step_by(8) {
        prefetch(&stored[at]);
        prefetch(&query[at]);
    }
    let mut at = 0;
    while at + AT_ONCE <= len {
        if at + AHEAD + 8 < len {
            prefetch(&stored[at + AHEAD]);
            prefetch(&stored[at + AHEAD + 8]);
            prefetch(&query[at + AHEAD]);
            prefetch(&query[at + AHEAD + 8]);
        }
        let (left, right) = (&stored[at..at + AT_ONCE], &query[at..at + AT_ONCE]);
        let differ = left.iter().zip(right).fold(0, |differ, (left, right)| differ | (left ^ right.0));
        if differ != 0 {
            return at + equal(left, right);
        }
        at += AT_ONCE;
    }
    if at + 8 <= len {
        let first = equal(&stored[at..at + 8], &query[at..at + 8]);
        if first < 8 {
            return at + first;
        }
        at += 8;
    }
    at + equal(&stored[at..], &query[at..])
}

/// The same for a few blocks, without a branch for each.
#[inline(always)]
fn equal(stored: &[u64], query: &[LocalBlockHash]) -> usize {
    let pairs = stored.iter().zip(query).enumerate();
    let differ = pairs.fold(0u32, |bits, (at, (stored, query))| bits | u32::from(*stored != query.0) << at);
    (differ.trailing_zeros() as usize).min(stored.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_find_all_equal_entries() {
        let mut line = Line::EMPTY;
        line.0[3] = 0x8000_0005;
        line.0[15] = 0xFFFF_0005;
        assert_eq!(line.equal(u32::MAX, 0x8000_0005), 1 << 3);
        assert_eq!(line.equal(0xFFFF, 5), 1 << 3 | 1 << 15);
        assert_eq!(line.equal(u32::MAX, 0), 0xFFFF & !(1 << 3 | 1 << 15));
    }

    #[test]
    fn prefixes_end_at_the_first_difference() {
        let stored: Vec<u64> = (0..100).collect();
        for len in [0, 1, 15, 16, 17, 99, 100] {
            let mut query: Vec<_> = (0..len).map(LocalBlockHash).collect();
            assert_eq!(common_prefix(&stored, &query), len as usize);
            for at in (0..query.len()).step_by(7) {
                query[at].0 ^= 1 << 40;
                assert_eq!(common_prefix(&stored, &query), at);
                query[at].0 ^= 1 << 40;
            }
        }
    }
}
