//! Which parts of chunked memory are in use: a bit a unit. Free neighbours are one free stretch by themselves, and a
//! chunk without a unit in use is found at once, to be given back.

/// A stretch of units that was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Taken {
    /// Its first unit.
    pub(super) unit: u32,
    /// The chunk that has to be made first.
    pub(super) new_chunk: Option<usize>,
}

struct Chunk {
    used: Box<[u64]>,
    in_use: u32,
}

/// Units in chunks. Unit 0 is never given out, so that 0 can mean none.
pub(super) struct Space {
    chunks: Vec<Option<Chunk>>,
    /// By chunk: no free stretch is longer; of chunks that are not there, the whole.
    longest: Vec<u32>,
    units_per_chunk: u32,
    max_chunks: usize,
    present: usize,
}

impl Space {
    pub(super) fn new(units_per_chunk: u32, max_chunks: usize) -> Self {
        debug_assert!(units_per_chunk.is_multiple_of(64));
        Self { chunks: Vec::new(), longest: Vec::new(), units_per_chunk, max_chunks, present: 0 }
    }

    /// Takes `units` in one chunk, at the lowest place that fits, so that the chunks at the end become empty. `None`
    /// when full.
    pub(super) fn take(&mut self, units: u32) -> Option<Taken> {
        debug_assert!(units > 0 && units < self.units_per_chunk);
        let mut from = 0;
        while let Some(step) = self.longest[from..].iter().position(|&longest| longest >= units) {
            let index = from + step;
            from = index + 1;
            let new_chunk = self.chunks[index].is_none().then(|| self.add(index));
            let Some(chunk) = &mut self.chunks[index] else { continue };
            match chunk.find(units) {
                Ok(at) => {
                    chunk.set(at, units, true);
                    let unit = index as u32 * self.units_per_chunk + at;
                    return Some(Taken { unit, new_chunk });
                }
                Err(longest) => self.longest[index] = longest,
            }
        }
        if self.chunks.len() == self.max_chunks {
            return None;
        }
        self.chunks.push(None);
        self.longest.push(self.units_per_chunk);
        self.take(units)
    }

    fn add(&mut self, index: usize) -> usize {
        let mut chunk =
            Chunk { used: vec![0; self.units_per_chunk as usize / 64].into_boxed_slice(), in_use: 0 };
        if index == 0 {
            chunk.used[0] = 1;
        }
        self.chunks[index] = Some(chunk);
        self.present += 1;
        index
    }

    /// Takes the `units` that follow directly on `end`, if they are free and in the chunk of the unit before.
    pub(super) fn extend(&mut self, end: u32, units: u32) -> bool {
        let at = end % self.units_per_chunk;
        if at == 0 || at + units > self.units_per_chunk {
            return false;
        }
        let Some(chunk) = &mut self.chunks[(end / self.units_per_chunk) as usize] else { return false };
        let is_free = chunk.next(at, true) >= at + units;
        if is_free {
            chunk.set(at, units, true);
        }
        is_free
    }

    /// Whether nothing in a stretch of a chunk is in use.
    pub(super) fn is_free(&self, unit: u32, units: u32) -> bool {
        let at = unit % self.units_per_chunk;
        let chunk = self.chunks.get((unit / self.units_per_chunk) as usize).and_then(Option::as_ref);
        chunk.is_none_or(|chunk| chunk.next(at, true) >= at + units)
    }

    /// Gives units back. Returns the chunk if nothing in it is in use any more.
    pub(super) fn give(&mut self, unit: u32, units: u32) -> Option<usize> {
        let (index, at) = ((unit / self.units_per_chunk) as usize, unit % self.units_per_chunk);
        let chunk = self.chunks[index].as_mut()?;
        chunk.set(at, units, false);
        // An upper bound is enough: `take` finds out, and remembers.
        self.longest[index] = self.units_per_chunk;
        if chunk.in_use > 0 {
            return None;
        }
        self.chunks[index] = None;
        self.present -= 1;
        while self.chunks.last().is_some_and(Option::is_none) {
            self.chunks.pop();
            self.longest.pop();
        }
        if self.chunks.is_empty() {
            (self.chunks, self.longest) = (Vec::new(), Vec::new());
        }
        Some(index)
    }

    /// Units in use at or after `from`, ascending.
    pub(super) fn used_from(&self, from: u32) -> Option<u32> {
        let (first, at) = ((from / self.units_per_chunk) as usize, from % self.units_per_chunk);
        for (index, chunk) in self.chunks.iter().enumerate().skip(first) {
            let Some(chunk) = chunk else { continue };
            let mut word = if index == first { at as usize / 64 } else { 0 };
            let mut mask = if index == first { u64::MAX << (at % 64) } else { u64::MAX };
            if index == 0 && word == 0 {
                mask &= !1;
            }
            while word < chunk.used.len() {
                let bits = chunk.used[word] & mask;
                if bits != 0 {
                    let at = word as u32 * 64 + bits.trailing_zeros();
                    return Some(index as u32 * self.units_per_chunk + at);
                }
                (word, mask) = (word + 1, u64::MAX);
            }
        }
        None
    }

    /// Chunks there are.
    pub(super) fn present(&self) -> usize {
        self.present
    }

    /// One past the highest chunk there is.
    pub(super) fn limit(&self) -> usize {
        self.chunks.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.present * self.units_per_chunk as usize / 8
            + self.chunks.capacity() * size_of::<Option<Chunk>>()
            + self.longest.capacity() * size_of::<u32>()
    }
}

impl Chunk {
    fn set(&mut self, at: u32, units: u32, used: bool) {
        let (mut at, end) = (at, at + units);
        while at < end {
            let count = (64 - at % 64).min(end - at);
            let mask = (u64::MAX >> (64 - count)) << (at % 64);
            let word = &mut self.used[at as usize / 64];
            debug_assert_eq!(*word & mask, if used { 0 } else { mask });
            *word ^= mask;
            at += count;
        }
        if used {
            self.in_use += units;
        } else {
            self.in_use -= units;
        }
    }

    /// The first free stretch of `units`, or the length of the longest there is.
    fn find(&self, units: u32) -> Result<u32, u32> {
        let len = self.used.len() as u32 * 64;
        let (mut at, mut longest) = (0, 0);
        while at < len {
            let begin = self.next(at, false);
            if begin == len {
                break;
            }
            let end = self.next(begin, true);
            if end - begin >= units {
                return Ok(begin);
            }
            longest = longest.max(end - begin);
            at = end;
        }
        Err(longest)
    }

    /// The first unit from `at` on that is used, or is not; the end if there is none.
    fn next(&self, at: u32, used: bool) -> u32 {
        let mut word = at as usize / 64;
        let mut mask = u64::MAX << (at % 64);
        while let Some(&bits) = self.used.get(word) {
            let bits = if used { bits } else { !bits } & mask;
            if bits != 0 {
                return word as u32 * 64 + bits.trailing_zeros();
            }
            (word, mask) = (word + 1, u64::MAX);
        }
        self.used.len() as u32 * 64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_neighbours_are_one_stretch_and_empty_chunks_go() {
        let mut space = Space::new(64, 2);
        assert_eq!(space.take(20), Some(Taken { unit: 1, new_chunk: Some(0) }));
        let units: Vec<_> = (0..2).map(|_| space.take(20).unwrap().unit).collect();
        assert_eq!(units, [21, 41]);
        assert!(space.extend(61, 3) && !space.extend(64, 1));
        assert_eq!(space.take(40), Some(Taken { unit: 64, new_chunk: Some(1) }));
        assert_eq!(space.take(30), None, "full");
        assert_eq!((space.give(1, 20), space.give(41, 20)), (None, None));
        assert_eq!(space.take(21), Some(Taken { unit: 104, new_chunk: None }), "no two are neighbours");
        assert_eq!(space.give(21, 20), None);
        assert_eq!(space.take(55), Some(Taken { unit: 1, new_chunk: None }));
        assert_eq!(space.used_from(56), Some(61));
        assert_eq!(space.give(64, 40), None);
        assert_eq!((space.give(104, 21), space.limit()), (Some(1), 1));
        assert_eq!((space.give(1, 55), space.give(61, 3)), (None, Some(0)));
        assert_eq!((space.present(), space.bytes()), (0, 0));
    }
}
