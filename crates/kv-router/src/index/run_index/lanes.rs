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
    #[cfg(test)]
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

impl Line {
    /// The entry of the first bit.
    #[inline(always)]
    pub(super) fn at(&self, bits: u32) -> u32 {
        self.0[bits.trailing_zeros() as usize % LANES]
    }

    #[inline(always)]
    pub(super) fn at_mut(&mut self, bits: u32) -> &mut u32 {
        &mut self.0[bits.trailing_zeros() as usize % LANES]
    }

    /// A bit for each entry that is 0; and for each other one that equals `value` where `mask` has bits.
    #[inline(always)]
    pub(super) fn free_and_equal<L: Level>(&self, mask: u32, value: u32) -> (u32, u32) {
        L::free_and_equal(self, mask, value)
    }

    /// Deals the entries that are not negative out to two empty lines, by a bit, with the `kept` of their bits.
    #[inline(always)]
    pub(super) fn split<L: Level>(&self, bit: u32, kept: u32, two: &mut [Self; 2]) {
        L::split(self, bit, kept, two);
    }
}

/// What the processor can do with a line.
pub(super) trait Level {
    fn free_and_equal(line: &Line, mask: u32, value: u32) -> (u32, u32);
    fn split(line: &Line, bit: u32, kept: u32, two: &mut [Line; 2]);
}

/// What every processor can.
pub(super) struct Plainly;

impl Level for Plainly {
    #[inline(always)]
    fn free_and_equal(line: &Line, mask: u32, value: u32) -> (u32, u32) {
        let free = line.equal(u32::MAX, 0);
        (free, line.equal(mask, value) & !free)
    }

    fn split(line: &Line, bit: u32, kept: u32, two: &mut [Line; 2]) {
        let mut filled = [0; 2];
        for entry in line.0 {
            if entry as i32 > 0 {
                let half = usize::from(entry & bit != 0);
                two[half].0[filled[half] % LANES] = entry & kept;
                filled[half] += 1;
            }
        }
    }
}

/// Lines in one register.
#[cfg(all(target_arch = "x86_64", not(miri)))]
struct Wide;

#[cfg(all(target_arch = "x86_64", not(miri)))]
impl Level for Wide {
    #[inline(always)]
    fn free_and_equal(line: &Line, mask: u32, value: u32) -> (u32, u32) {
        use std::arch::x86_64::*;
        // SAFETY: work is done at this level only where the processor has AVX-512 (`at_best_level`); a line is 64 bytes,
        // aligned to them.
        unsafe {
            let entries = _mm512_load_si512(line.0.as_ptr().cast());
            let used = _mm512_test_epi32_mask(entries, entries);
            let masked = _mm512_and_si512(entries, _mm512_set1_epi32(mask as i32));
            let same = _mm512_mask_cmpeq_epi32_mask(used, masked, _mm512_set1_epi32(value as i32));
            (u32::from(!used), u32::from(same))
        }
    }

    #[inline(always)]
    fn split(line: &Line, bit: u32, kept: u32, two: &mut [Line; 2]) {
        use std::arch::x86_64::*;
        // SAFETY: as above.
        unsafe {
            let entries = _mm512_load_si512(line.0.as_ptr().cast());
            let ours = _mm512_cmpgt_epi32_mask(entries, _mm512_setzero_si512());
            let upper = _mm512_mask_test_epi32_mask(ours, entries, _mm512_set1_epi32(bit as i32));
            let entries = _mm512_and_si512(entries, _mm512_set1_epi32(kept as i32));
            let lower = _mm512_maskz_compress_epi32(ours & !upper, entries);
            _mm512_store_si512(two[0].0.as_mut_ptr().cast(), lower);
            _mm512_store_si512(two[1].0.as_mut_ptr().cast(), _mm512_maskz_compress_epi32(upper, entries));
        }
    }
}

/// Work that is compiled for each level; all of it has to be inlined.
pub(super) trait Work {
    type Output;
    fn run<L: Level>(self) -> Self::Output;
}

/// Does work as this processor does it best.
#[inline]
pub(super) fn at_best_level<W: Work>(work: W) -> W::Output {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    {
        #[target_feature(enable = "avx512f")]
        fn wide<W: Work>(work: W) -> W::Output {
            work.run::<Wide>()
        }
        if std::arch::is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has it.
            return unsafe { wide(work) };
        }
    }
    work.run::<Plainly>()
}

/// Blocks compared between two branches: two lines of each side.
const AT_ONCE: usize = 16;
/// Blocks asked for ahead: further than the processor looks by itself at the start of a stretch.
const AHEAD: usize = 64;

/// How many of `stored` and `query` agree, from the first on.
#[inline]
pub(super) fn common_prefix(stored: &[u64], query: &[LocalBlockHash]) -> usize {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has it.
        return unsafe { common_prefix_avx2(stored, query) };
    }
    compare(stored, query, |stored, query| {
        stored.iter().zip(query).fold(0, |differ, (stored, query)| differ | (stored ^ query.0)) == 0
    })
}

#[cfg(all(target_arch = "x86_64", not(miri)))]
#[target_feature(enable = "avx2")]
fn common_prefix_avx2(stored: &[u64], query: &[LocalBlockHash]) -> usize {
    use std::arch::x86_64::*;
    const { assert!(size_of::<LocalBlockHash>() == size_of::<u64>()) };
    compare(stored, query, |stored, query| {
        let (stored, query) = (stored.as_ptr().cast::<__m256i>(), query.as_ptr().cast::<__m256i>());
        let differ = |at| {
            // SAFETY: both arrays have 16 words, four of these vectors; the loads need no alignment.
            unsafe { _mm256_xor_si256(_mm256_loadu_si256(stored.add(at)), _mm256_loadu_si256(query.add(at))) }
        };
        let differ =
            _mm256_or_si256(_mm256_or_si256(differ(0), differ(1)), _mm256_or_si256(differ(2), differ(3)));
        _mm256_testz_si256(differ, differ) == 1
    })
}

#[inline(always)]
fn compare(
    stored: &[u64],
    query: &[LocalBlockHash],
    are_equal: impl Fn(&[u64; AT_ONCE], &[LocalBlockHash; AT_ONCE]) -> bool,
) -> usize {
    let len = stored.len().min(query.len());
    let (stored, query) = (&stored[..len], &query[..len]);
    let mut at = 8;
    while at < len.min(AHEAD) {
        prefetch(&stored[at]);
        prefetch(&query[at]);
        at += 8;
    }
    let (stored_lines, stored_rest) = stored.as_chunks::<AT_ONCE>();
    let (query_lines, query_rest) = query.as_chunks::<AT_ONCE>();
    for (number, (left, right)) in stored_lines.iter().zip(query_lines).enumerate() {
        let ahead = number * AT_ONCE + AHEAD + 8;
        if ahead < len {
            prefetch(&stored[ahead - 8]);
            prefetch(&stored[ahead]);
            prefetch(&query[ahead - 8]);
            prefetch(&query[ahead]);
        }
        if !are_equal(left, right) {
            return number * AT_ONCE + equal(left, right);
        }
    }
    let mut at = stored_lines.len() * AT_ONCE;
    let (mut stored, mut query) = (stored_rest, query_rest);
    if let (Some((left, stored_rest)), Some((right, query_rest))) =
        (stored.split_first_chunk::<8>(), query.split_first_chunk::<8>())
    {
        let first = equal(left, right);
        if first < 8 {
            return at + first;
        }
        at += 8;
        (stored, query) = (stored_rest, query_rest);
    }
    at + equal(stored, query)
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
    fn levels_agree() {
        struct Both<'a>(&'a Line, u32, u32, u32);
        impl Work for Both<'_> {
            type Output = ((u32, u32), [[u32; LANES]; 2]);
            #[inline(always)]
            fn run<L: Level>(self) -> Self::Output {
                let Self(line, mask, value, bit) = self;
                let mut two = [Line::EMPTY; 2];
                line.split::<L>(bit, !0xF000, &mut two);
                (line.free_and_equal::<L>(mask, value), two.map(|line| line.0))
            }
        }
        let mut random = 1u64;
        for _ in 0..1000 {
            let mut line = Line::EMPTY;
            for entry in &mut line.0 {
                random = random.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(7);
                *entry = (random >> 32) as u32
                    & [0, u32::MAX, 0x7FFF_FFFF, 0x8000_0000][(random >> 20) as usize % 4];
            }
            let (mask, value) = ((random >> 8) as u32 & 3, (random >> 4) as u32 & 3);
            let best = at_best_level(Both(&line, mask, value, 1 << 18));
            assert_eq!(best, Both(&line, mask, value, 1 << 18).run::<Plainly>());
        }
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
