//! Which index an operator chose.

use std::{fmt, num::NonZeroUsize, str::FromStr, sync::Arc, time::Instant};

use dynamo_tokens::LocalBlockHash;

use super::{
    ConcurrentRadixTree, FrequencyWindow, IndexCounts, LockedRadixTree, MatchBuffer, PositionalIndexer,
    PrefixIndex, RunIndex, RunReader, SharedIndex,
};
use crate::Slot;

/// Lanes at most, whatever the index: more threads than a router has cores to spare help nobody.
pub const MAX_LANES: usize = 64;

/// An index by the name that `--router-indexer` knows it by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IndexerKind {
    /// `run`: [`RunIndex`], which one lane writes.
    #[default]
    Run,
    /// `radix`: [`RadixTree`](crate::RadixTree) under a lock; small, and fast with one lane.
    Radix,
    /// `concurrent`: [`ConcurrentRadixTree`].
    ConcurrentRadix,
    /// `positional`: [`PositionalIndexer`].
    Positional,
}

/// An empty index taken apart.
pub struct IndexParts {
    /// For those who ask.
    pub reader: Arc<dyn SharedIndex>,
    /// One for each lane. All events of a slot go to the same one.
    pub writers: Vec<Box<dyn PrefixIndex>>,
}

impl IndexParts {
    /// An empty radix tree that counts uses of blocks, the first at `now`.
    pub fn counting_uses(window: FrequencyWindow, now: Instant) -> Self {
        parts(LockedRadixTree::with_frequencies(window, now), 1)
    }
}

impl IndexerKind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Run, Self::Radix, Self::ConcurrentRadix, Self::Positional];

    /// How many lanes may write to it at once.
    pub const fn max_lanes(self) -> usize {
        match self {
            Self::Run | Self::Radix => 1,
            Self::ConcurrentRadix | Self::Positional => MAX_LANES,
        }
    }

    /// An empty index with a writer for each of `lanes`, or for as many as it can have.
    pub fn build(self, lanes: NonZeroUsize) -> IndexParts {
        let lanes = lanes.get().min(self.max_lanes());
        match self {
            Self::Run => {
                let index = RunIndex::new();
                IndexParts { reader: Arc::new(index.reader()), writers: vec![Box::new(index)] }
            }
            Self::Radix => parts(LockedRadixTree::default(), lanes),
            Self::ConcurrentRadix => parts(ConcurrentRadixTree::new(), lanes),
            Self::Positional => parts(PositionalIndexer::default(), lanes),
        }
    }
}

/// The parts of an index whose handles may all do everything.
fn parts<I: SharedIndex + PrefixIndex + Clone + 'static>(index: I, lanes: usize) -> IndexParts {
    let writer = |_| -> Box<dyn PrefixIndex> { Box::new(index.clone()) };
    IndexParts { writers: (0..lanes).map(writer).collect(), reader: Arc::new(index) }
}

impl SharedIndex for RunReader {
    fn find_matches(&self, local: &[LocalBlockHash], out: &mut MatchBuffer) {
        Self::find_matches(self, local, out);
    }

    fn held_blocks(&self, slot: Slot) -> u32 {
        Self::held_blocks(self, slot)
    }

    fn note_held_blocks(&self, out: &mut MatchBuffer) {
        Self::note_held_blocks(self, out);
    }

    fn counts(&self) -> IndexCounts {
        Self::counts(self)
    }
}

impl FromStr for IndexerKind {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|kind| kind.to_string() == text);
        found.ok_or_else(|| {
            let names: Vec<_> = Self::ALL.iter().map(ToString::to_string).collect();
            format!("use one of {}", names.join(", "))
        })
    }
}

impl fmt::Display for IndexerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Run => "run",
            Self::Radix => "radix",
            Self::ConcurrentRadix => "concurrent",
            Self::Positional => "positional",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written_and_lanes_are_bounded() {
        for kind in IndexerKind::ALL {
            assert_eq!(kind.to_string().parse(), Ok(kind));
            let parts = kind.build(NonZeroUsize::new(1000).unwrap());
            assert_eq!(parts.writers.len(), kind.max_lanes());
            assert_eq!(parts.reader.counts().blocks, 0);
        }
        assert_eq!(
            "flat".parse::<IndexerKind>(),
            Err("use one of run, radix, concurrent, positional".into())
        );
    }
}
