//! Which runs hang at which. Most have few children, which are a list; a crowd is kept in order of offset.

use std::{collections::BTreeSet, sync::atomic::Ordering::Relaxed};

use rustc_hash::FxHashMap;

use super::{
    RunIndex,
    cold::Cold,
    header::{ORIGIN, ROOT, RunId, halves},
};

/// More children than this are a crowd: a list of them would be walked whenever the run's end is removed.
const CROWD: u32 = 16;

/// The crowds, by run: offset and child.
#[derive(Default)]
pub(super) struct Families {
    crowds: FxHashMap<RunId, BTreeSet<(u32, RunId)>>,
    members: usize,
}

impl Families {
    /// Nodes of such trees are two thirds full.
    pub(super) fn bytes(&self) -> usize {
        self.crowds.capacity() * (size_of::<(RunId, BTreeSet<(u32, RunId)>)>() + 1)
            + self.members * size_of::<(u32, RunId)>() * 3 / 2
    }
}

impl RunIndex {
    /// The run that a run hangs at, and behind how many of its blocks.
    pub(super) fn hangs_at(&self, run: RunId) -> (RunId, u32) {
        halves(self.shared.header(run)[ORIGIN].load(Relaxed))
    }

    /// Whether anything may hang at `run`.
    pub(super) fn has_children(&self, run: RunId) -> bool {
        run == ROOT || self.cold[run].children > 0
    }

    /// The children of `run` in no order; those of the root are not listed.
    fn children_of(&self, run: RunId) -> impl Iterator<Item = RunId> + '_ {
        let first = self.cold[run].first_child;
        std::iter::successors(Some(first).filter(|&child| child != ROOT), |&child| {
            Some(self.cold[child].next).filter(|&next| next != ROOT)
        })
    }

    /// Takes up a new child.
    pub(super) fn adopt(&mut self, child: RunId) {
        let (parent, offset) = self.hangs_at(child);
        if parent == ROOT {
            return;
        }
        let first = self.cold[parent].first_child;
        if first != ROOT {
            self.cold[first].previous = child;
        }
        self.cold[child].next = first;
        let cold = &mut self.cold[parent];
        cold.first_child = child;
        cold.children += 1;
        let children = cold.children;
        if children > CROWD / 2 {
            if let Some(crowd) = self.families.crowds.get_mut(&parent) {
                crowd.insert((offset, child));
                self.families.members += 1;
            } else if children > CROWD {
                let crowd: BTreeSet<_> =
                    self.children_of(parent).map(|child| (self.hangs_at(child).1, child)).collect();
                self.families.members += crowd.len();
                self.families.crowds.insert(parent, crowd);
            }
        }
    }

    /// Lets go of a child that is no more. Returns its parent.
    pub(super) fn disown(&mut self, child: RunId) -> RunId {
        let (parent, offset) = self.hangs_at(child);
        if parent == ROOT {
            return ROOT;
        }
        let Cold { next, previous, .. } = self.cold[child];
        match previous {
            ROOT => self.cold[parent].first_child = next,
            previous => self.cold[previous].next = next,
        }
        if next != ROOT {
            self.cold[next].previous = previous;
        }
        let cold = &mut self.cold[parent];
        cold.children -= 1;
        let children = cold.children;
        if children + 1 > CROWD / 2
            && let Some(crowd) = self.families.crowds.get_mut(&parent)
        {
            crowd.remove(&(offset, child));
            self.families.members -= 1;
            if children <= CROWD / 2 {
                self.families.members -= crowd.len();
                self.families.crowds.remove(&parent);
                if self.families.crowds.is_empty() {
                    self.families.crowds = FxHashMap::default();
                }
            }
        }
        parent
    }

    /// The number of a run's blocks that lead to children.
    pub(super) fn last_offset(&self, run: RunId) -> u32 {
        if self.cold[run].children == 0 {
            return 0;
        }
        if let Some(crowd) = self.crowd(run) {
            return crowd.last().map_or(0, |&(offset, _)| offset);
        }
        self.children_of(run).map(|child| self.hangs_at(child).1).max().unwrap_or(0)
    }

    fn crowd(&self, run: RunId) -> Option<&BTreeSet<(u32, RunId)>> {
        if self.cold[run].children > CROWD / 2 { self.families.crowds.get(&run) } else { None }
    }

    /// Pushes the children behind more than `after` and at most `upto` blocks of a run.
    pub(super) fn children_between(&self, run: RunId, after: u32, upto: u32, found: &mut Vec<RunId>) {
        if self.cold[run].children == 0 {
            return;
        }
        match self.crowd(run) {
            Some(crowd) => {
                let range = crowd.range((after + 1, 0)..=(upto, RunId::MAX));
                found.extend(range.map(|&(_, child)| child));
            }
            None => found.extend(self.children_of(run).filter(|&child| {
                let offset = self.hangs_at(child).1;
                offset > after && offset <= upto
            })),
        }
    }
}
