//! The orders that waiting requests are kept in: by lane and rank, by ticket, by deadline.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

use rustc_hash::FxHashMap;

use super::Waiting;

/// The place of a request; the least is first.
#[derive(Clone, Copy, Debug)]
pub(super) struct Order {
    strict_priority: u32,
    score: f64,
    /// Whoever came first is first among equals.
    ticket: u64,
}

impl Order {
    pub(super) fn new(strict_priority: u32, score: f64, ticket: u64) -> Self {
        Self { strict_priority, score, ticket }
    }
}

impl Ord for Order {
    fn cmp(&self, other: &Self) -> Ordering {
        let higher = other.strict_priority.cmp(&self.strict_priority);
        higher.then(other.score.total_cmp(&self.score)).then(self.ticket.cmp(&other.ticket))
    }
}

impl PartialOrd for Order {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Order {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Order {}

struct Entry<T> {
    waiting: Waiting,
    order: Order,
    value: T,
}

/// All that waits. Empty lanes are not kept.
pub(super) struct Lanes<T> {
    entries: FxHashMap<u64, Entry<T>>,
    lanes: BTreeMap<u64, BTreeSet<Order>>,
    /// The first of each lane.
    heads: BTreeSet<(Order, u64)>,
    deadlines: BTreeSet<(Instant, u64)>,
}

impl<T> Default for Lanes<T> {
    fn default() -> Self {
        Self {
            entries: FxHashMap::default(),
            lanes: BTreeMap::new(),
            heads: BTreeSet::new(),
            deadlines: BTreeSet::new(),
        }
    }
}

impl<T> Lanes<T> {
    pub(super) fn insert(&mut self, waiting: Waiting, order: Order, value: T) {
        let lane = self.lanes.entry(waiting.lane).or_default();
        let head = lane.first().copied();
        lane.insert(order);
        if head.is_none_or(|head| order < head) {
            if let Some(head) = head {
                self.heads.remove(&(head, waiting.lane));
            }
            self.heads.insert((order, waiting.lane));
        }
        if let Some(deadline) = waiting.deadline {
            self.deadlines.insert((deadline, order.ticket));
        }
        self.entries.insert(order.ticket, Entry { waiting, order, value });
    }

    /// The first request that `admits` lets pass; asks once per lane, the foremost first.
    pub(super) fn first(&self, mut admits: impl FnMut(&T) -> bool) -> Option<(u64, &Waiting)> {
        self.heads.iter().find_map(|(order, _)| {
            let entry = self.entries.get(&order.ticket)?;
            admits(&entry.value).then_some((order.ticket, &entry.waiting))
        })
    }

    pub(super) fn remove(&mut self, ticket: u64) -> Option<(Waiting, T)> {
        let Entry { waiting, order, value } = self.entries.remove(&ticket)?;
        if let Some(lane) = self.lanes.get_mut(&waiting.lane) {
            let was_head = lane.first() == Some(&order);
            lane.remove(&order);
            if was_head {
                self.heads.remove(&(order, waiting.lane));
                match lane.first() {
                    Some(&head) => _ = self.heads.insert((head, waiting.lane)),
                    None => _ = self.lanes.remove(&waiting.lane),
                }
            }
        }
        if let Some(deadline) = waiting.deadline {
            self.deadlines.remove(&(deadline, ticket));
        }
        if self.entries.is_empty() {
            // A burst is over: its memory goes back.
            self.entries = FxHashMap::default();
        }
        Some((waiting, value))
    }

    pub(super) fn first_deadline(&self) -> Option<(Instant, u64)> {
        self.deadlines.first().copied()
    }

    #[cfg(test)]
    pub(super) fn is_spotless(&self) -> bool {
        self.entries.is_empty() && self.lanes.is_empty() && self.heads.is_empty() && self.deadlines.is_empty()
    }
}
