//! What only the writer has to know of runs.

use std::ops::{Index, IndexMut};

use super::header::RunId;

#[derive(Clone, Copy, Default)]
pub(super) struct Cold {
    /// The first of the runs that hang at this one; its siblings.
    pub(super) first_child: RunId,
    pub(super) next: RunId,
    pub(super) previous: RunId,
    pub(super) children: u32,
    /// Units of room.
    pub(super) units: u16,
    /// Words in use in the list of holders, those of slots that left included.
    pub(super) listed: u16,
    /// Holders in the list.
    pub(super) holders: u16,
    /// Until this epoch has passed, readers may see the run longer than it is, or its holders in the header although
    /// they are in a list.
    pub(super) epoch: u64,
}

const CHUNK: usize = 512;

/// By run; in chunks, so that no event has to wait until all of a long array is copied to a longer one.
#[derive(Default)]
pub(super) struct ColdRuns(Vec<Box<[Cold; CHUNK]>>);

impl ColdRuns {
    /// Begins a run anew.
    pub(super) fn reset(&mut self, run: RunId) {
        let chunk = run as usize / CHUNK;
        while self.0.len() <= chunk {
            self.0.push(Box::new([Cold::default(); CHUNK]));
        }
        self[run] = Cold::default();
    }

    /// Forgets what is at `limit` runs or beyond, as far as it is whole chunks.
    pub(super) fn truncate(&mut self, limit: usize) {
        let chunks = limit.div_ceil(CHUNK);
        if self.0.len() > chunks {
            self.0.truncate(chunks);
            self.0.shrink_to_fit();
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.0.len() * size_of::<[Cold; CHUNK]>() + self.0.capacity() * size_of::<usize>()
    }
}

impl Index<RunId> for ColdRuns {
    type Output = Cold;

    #[inline]
    fn index(&self, run: RunId) -> &Cold {
        &self.0[run as usize / CHUNK][run as usize % CHUNK]
    }
}

impl IndexMut<RunId> for ColdRuns {
    #[inline]
    fn index_mut(&mut self, run: RunId) -> &mut Cold {
        &mut self.0[run as usize / CHUNK][run as usize % CHUNK]
    }
}
