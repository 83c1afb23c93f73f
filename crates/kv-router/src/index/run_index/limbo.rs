//! What was taken out of sight, until no reader can look at it any more.
#![allow(unsafe_code, reason = "this is where the promise is kept that nobody looks")]

use std::collections::VecDeque;

use super::{
    epochs::Epochs,
    header::RunId,
    memory::{Place, Unseen},
};

/// Something that will be used again, or given back.
pub(super) enum Retired {
    /// Room for blocks.
    Blocks { place: Place, units: u32 },
    /// A list of holders or children.
    List { place: Place, words: u32 },
    /// The header and number of a run.
    Run(RunId),
}

/// A queue by epoch. It is as long as what the writer takes out of use while the slowest query runs.
pub(super) struct Limbo {
    items: VecDeque<(u64, Retired)>,
    /// All epochs below have passed.
    passed: u64,
}

impl Limbo {
    pub(super) fn new() -> Self {
        Self { items: VecDeque::new(), passed: 0 }
    }

    pub(super) fn push(&mut self, epoch: u64, what: Retired) {
        self.items.push_back((epoch, what));
    }

    /// Ends the writer's epoch and finds out which have passed.
    pub(super) fn advance(&mut self, epochs: &Epochs) {
        self.passed = self.passed.max(epochs.advance());
    }

    pub(super) fn has_passed(&self, epoch: u64) -> bool {
        epoch < self.passed
    }

    /// The next thing that nobody looks at.
    pub(super) fn pop(&mut self) -> Option<(Retired, Unseen)> {
        let (_, what) = self.items.pop_front_if(|(epoch, _)| *epoch < self.passed)?;
        if self.items.is_empty() {
            self.items.shrink_to(256);
        }
        // SAFETY: it was out of sight before its epoch ended, and all readers under way began later.
        Some((what, unsafe { Unseen::promise() }))
    }

    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.items.capacity() * size_of::<(u64, Retired)>()
    }
}
