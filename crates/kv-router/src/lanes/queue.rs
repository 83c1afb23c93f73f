//! The queue in front of a lane: many put in, one takes all there is.

use std::{collections::VecDeque, sync::PoisonError, time::Instant};

#[cfg(not(loom))]
use std::sync::{Condvar, Mutex, MutexGuard};

#[cfg(loom)]
use loom::sync::{Condvar, Mutex, MutexGuard};

/// Orders that carry no blocks (of workers that come and go, flushes, dumps) and wait in one lane at most. They go
/// past the limits of events, so that a worker may leave while its lane is behind.
const MAX_WAITING_ORDERS: usize = 1 << 16;

/// How much may wait in a queue; as much again may be in the lane's hands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) events: usize,
    /// An event with more blocks than that waits until it is alone.
    pub(super) blocks: usize,
}

/// What a task counts for; an order counts for nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Weight {
    Event { blocks: usize },
    Order,
}

/// Why a task was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    Full,
    Closed,
}

struct State<T> {
    tasks: VecDeque<T>,
    events: usize,
    blocks: usize,
    orders: usize,
    /// When the oldest task came.
    since: Option<Instant>,
    is_taker_asleep: bool,
    sleeping_putters: usize,
    is_closed: bool,
}

impl<T> State<T> {
    fn has_room(&self, weight: Weight, limits: Limits) -> bool {
        match weight {
            Weight::Order => self.orders < MAX_WAITING_ORDERS,
            Weight::Event { blocks } => {
                self.events == 0
                    || (self.events < limits.events && self.blocks.saturating_add(blocks) <= limits.blocks)
            }
        }
    }
}

pub(super) struct LaneQueue<T> {
    state: Mutex<State<T>>,
    filled: Condvar,
    emptied: Condvar,
    limits: Limits,
}

/// What was taken.
pub(super) struct Batch {
    pub(super) events: usize,
    pub(super) blocks: usize,
    /// When its oldest task came.
    pub(super) since: Option<Instant>,
}

impl<T> LaneQueue<T> {
    pub(super) fn new(limits: Limits) -> Self {
        let state = State {
            tasks: VecDeque::new(),
            events: 0,
            blocks: 0,
            orders: 0,
            since: None,
            is_taker_asleep: false,
            sleeping_putters: 0,
            is_closed: false,
        };
        Self { state: Mutex::new(state), filled: Condvar::new(), emptied: Condvar::new(), limits }
    }

    /// Nothing panics while it holds the lock.
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a task in if there is room; gives it back otherwise. `now` is asked for the first task of a batch.
    pub(super) fn try_put(
        &self,
        task: T,
        weight: Weight,
        now: impl FnOnce() -> Instant,
    ) -> Result<(), (T, Refused)> {
        let state = self.lock();
        if state.is_closed {
            return Err((task, Refused::Closed));
        }
        if !state.has_room(weight, self.limits) {
            return Err((task, Refused::Full));
        }
        self.put_into(state, task, weight, now);
        Ok(())
    }

    /// Puts a task in, and waits for room before. Says whether it had to; gives the task back once closed.
    pub(super) fn put(&self, task: T, weight: Weight, now: impl FnOnce() -> Instant) -> Result<bool, T> {
        let mut state = self.lock();
        let mut has_waited = false;
        while !state.is_closed && !state.has_room(weight, self.limits) {
            has_waited = true;
            state.sleeping_putters += 1;
            state = self.emptied.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.sleeping_putters -= 1;
        }
        if state.is_closed {
            return Err(task);
        }
        self.put_into(state, task, weight, now);
        Ok(has_waited)
    }

    fn put_into(
        &self,
        mut state: MutexGuard<'_, State<T>>,
        task: T,
        weight: Weight,
        now: impl FnOnce() -> Instant,
    ) {
        match weight {
            Weight::Order => state.orders += 1,
            Weight::Event { blocks } => {
                state.events += 1;
                state.blocks = state.blocks.saturating_add(blocks);
            }
        }
        if state.tasks.is_empty() {
            state.since = Some(now());
        }
        state.tasks.push_back(task);
        let wake = std::mem::take(&mut state.is_taker_asleep);
        drop(state);
        if wake {
            self.filled.notify_one();
        }
    }

    /// Swaps all tasks into `into`, which is empty; waits until there is one. `None` once closed.
    pub(super) fn take(&self, into: &mut VecDeque<T>) -> Option<Batch> {
        let mut state = self.lock();
        while state.tasks.is_empty() && !state.is_closed {
            state.is_taker_asleep = true;
            state = self.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.is_closed {
            return None;
        }
        std::mem::swap(&mut state.tasks, into);
        let batch = Batch { events: state.events, blocks: state.blocks, since: state.since.take() };
        (state.events, state.blocks, state.orders) = (0, 0, 0);
        let wake = state.sleeping_putters > 0;
        drop(state);
        if wake {
            self.emptied.notify_all();
        }
        Some(batch)
    }

    /// Refuses what comes, and wakes all. Returns what was in it.
    pub(super) fn close(&self) -> VecDeque<T> {
        let mut state = self.lock();
        state.is_closed = true;
        let tasks = std::mem::take(&mut state.tasks);
        drop(state);
        self.filled.notify_all();
        self.emptied.notify_all();
        tasks
    }

    pub(super) fn is_closed(&self) -> bool {
        self.lock().is_closed
    }

    /// Events and blocks that wait, and since when the oldest task does.
    pub(super) fn waiting(&self) -> (usize, usize, Option<Instant>) {
        let state = self.lock();
        (state.events, state.blocks, state.since)
    }
}

#[cfg(all(test, loom))]
mod loom_tests;
#[cfg(test)]
#[cfg(not(loom))]
mod tests;
