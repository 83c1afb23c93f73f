//! The state, and what changes it from outside of steps.

use std::collections::VecDeque;
use std::time::Duration;

use dynamo_tokens::TokenId;
use rustc_hash::FxHashMap;

use crate::held::{HeldBlocks, Hold};
use crate::request::{Request, State};
use crate::{
    BlockPool, BlockTable, ConfigError, End, Ended, HoldId, RequestId, SchedulerConfig, Step, Usage, Work,
};

/// Readers that may hold the blocks of one request: one per receiver of a hand-over, and some to spare.
const MAX_HOLDS_PER_REQUEST: usize = 8;

/// How much there is of what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SchedulerStats {
    /// Requests that wait to be admitted.
    pub waiting: usize,
    /// Requests that wait for cached contents.
    pub loading: usize,
    /// Requests that are being computed.
    pub running: usize,
    /// Blocks that no request owns, but that a step in flight or a reader still touches; all groups.
    pub held_blocks: usize,
    /// Tokens still to be prefilled, over all requests; what is on its way to a request is not.
    pub prefill_tokens: usize,
    /// Times that a request was preempted, since the start.
    pub preemptions: u64,
}

/// Requests, their block tables, and what to compute next. `T` is what the executor keeps with each request.
pub struct Scheduler<P, T> {
    pub(crate) config: SchedulerConfig,
    pub(crate) pool: P,
    /// Per group: blocks that admission leaves free.
    pub(crate) watermark_blocks: Vec<usize>,
    pub(crate) slots: Vec<Option<Request<T>>>,
    pub(crate) free_slots: Vec<u32>,
    pub(crate) by_id: FxHashMap<RequestId, u32>,
    /// In the order of arrival.
    pub(crate) waiting: VecDeque<u32>,
    pub(crate) loading: Vec<u32>,
    /// In the order of admission.
    pub(crate) running: Vec<u32>,
    pub(crate) held: HeldBlocks,
    pub(crate) ended: Vec<Ended<T>>,
    /// The first in the queue that did not fit, and the blocks that were available then, over all groups.
    pub(crate) blocked: Option<(RequestId, usize)>,
    pub(crate) arrivals: u64,
    pub(crate) residences: u64,
    pub(crate) hold_ids: u64,
    pub(crate) planned_step: u64,
    pub(crate) committed_step: u64,
    pub(crate) prefill_tokens: usize,
    pub(crate) preemptions: u64,
    /// No deadline of a request or hold is before this.
    pub(crate) next_deadline: Option<Duration>,
    pub(crate) spare_steps: Vec<Step>,
}

impl<P: BlockPool, T> Scheduler<P, T> {
    /// An idle scheduler over a pool that nobody else takes blocks from.
    pub fn new(config: SchedulerConfig, pool: P) -> Result<Self, ConfigError> {
        config.validate()?;
        let share = |group| (config.watermark * pool.capacity(group) as f64).floor() as usize;
        let watermark_blocks = (0..pool.groups()).map(share).collect();
        Ok(Self {
            config,
            pool,
            watermark_blocks,
            slots: Vec::new(),
            free_slots: Vec::new(),
            by_id: FxHashMap::default(),
            waiting: VecDeque::new(),
            loading: Vec::new(),
            running: Vec::new(),
            held: HeldBlocks::default(),
            ended: Vec::new(),
            blocked: None,
            arrivals: 0,
            residences: 0,
            hold_ids: 0,
            planned_step: 0,
            committed_step: 0,
            prefill_tokens: 0,
            preemptions: 0,
            next_deadline: None,
            spare_steps: Vec::new(),
        })
    }

    /// Takes a request back, whatever its state. Its blocks are free once no step in flight and no reader touches
    /// them. `None` if there is no such request.
    pub fn abort(&mut self, id: RequestId) -> Option<T> {
        let slot = *self.by_id.get(&id)?;
        self.unlist(slot);
        Some(self.remove(slot).payload)
    }

    /// Keeps the blocks that an admitted request has now or gets later for a reader, also after the request ended or
    /// was preempted, until [`let_go`](Self::let_go) or the deadline. `None` if the request has no blocks or too many
    /// readers.
    pub fn hold(&mut self, id: RequestId, deadline: Duration) -> Option<HoldId> {
        let slot = *self.by_id.get(&id)?;
        let request = self.slots[slot as usize].as_mut()?;
        if !matches!(request.state, State::Running) || request.holds.len() >= MAX_HOLDS_PER_REQUEST {
            return None;
        }
        self.hold_ids += 1;
        let hold = HoldId(self.hold_ids);
        request.holds.push(Hold { id: hold, deadline });
        self.note_deadline(Some(deadline));
        Some(hold)
    }

    /// A reader is done.
    pub fn let_go(&mut self, hold: HoldId) {
        for request in self.slots.iter_mut().flatten() {
            request.holds.retain(|other| other.id != hold);
        }
        self.held.let_go(hold);
        self.held.release(self.committed_step, &mut self.pool);
    }

    /// Requests that ended in a plan or a commit since the last call, in the order in which they ended.
    pub fn drain_ended(&mut self) -> std::vec::Drain<'_, Ended<T>> {
        self.ended.drain(..)
    }

    /// When [`plan`](Self::plan) has something to do though no request and no result came: the next deadline.
    pub fn next_deadline(&self) -> Option<Duration> {
        self.next_deadline
    }

    /// How much there is of what.
    pub fn stats(&self) -> SchedulerStats {
        SchedulerStats {
            waiting: self.waiting.len(),
            loading: self.loading.len(),
            running: self.running.len(),
            held_blocks: self.held.len(),
            prefill_tokens: self.prefill_tokens,
            preemptions: self.preemptions,
        }
    }

    /// Steps that were planned and not committed.
    pub fn steps_in_flight(&self) -> u64 {
        self.planned_step - self.committed_step
    }

    /// The pool.
    pub fn pool(&self) -> &P {
        &self.pool
    }

    /// The pool, for what the scheduler does not do itself: taking its changes, clearing its cache.
    pub fn pool_mut(&mut self) -> &mut P {
        &mut self.pool
    }

    /// What the executor kept with a request; `None` once that ended.
    pub fn payload_mut(&mut self, work: &Work) -> Option<&mut T> {
        self.slots[work.slot as usize].as_mut().filter(|r| r.id == work.request).map(|r| &mut r.payload)
    }

    /// The tokens to compute: all but the last one if the work is [`ahead`](Work::ahead). `None` if the work is void
    /// by now.
    pub fn tokens(&self, work: &Work) -> Option<&[TokenId]> {
        let tokens = self.of_work(work)?.sequence.tokens();
        tokens.get(work.start..tokens.len().min(work.start + work.len))
    }

    /// A request's blocks in one group. `None` if the work is void by now.
    pub fn table(&self, work: &Work, group: usize) -> Option<&BlockTable> {
        self.of_work(work)?.tables.get(group)
    }

    /// How far a request is. `None` if the work is void by now.
    pub fn usage(&self, work: &Work) -> Option<Usage> {
        Some(self.of_work(work)?.usage())
    }

    pub(crate) fn of_work(&self, work: &Work) -> Option<&Request<T>> {
        let request = self.slots[work.slot as usize].as_ref()?;
        (request.residence == work.residence && request.course == work.course).then_some(request)
    }

    pub(crate) fn request(&self, slot: u32) -> &Request<T> {
        self.slots[slot as usize].as_ref().expect("listed slots are filled")
    }

    pub(crate) fn request_mut(&mut self, slot: u32) -> &mut Request<T> {
        self.slots[slot as usize].as_mut().expect("listed slots are filled")
    }

    pub(crate) fn note_deadline(&mut self, deadline: Option<Duration>) {
        self.next_deadline = match (self.next_deadline, deadline) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
    }

    /// Takes a request from the list it is in, and gives up a load.
    pub(crate) fn unlist(&mut self, slot: u32) {
        match self.request(slot).state {
            State::Waiting => self.waiting.retain(|&other| other != slot),
            State::Running => self.running.retain(|&other| other != slot),
            State::Loading(load) => {
                self.pool.cancel_load(load.ticket);
                self.loading.retain(|&other| other != slot);
            }
        }
    }

    /// Takes an unlisted request out of its slot and gives its blocks up.
    pub(crate) fn remove(&mut self, slot: u32) -> Request<T> {
        self.give_up_tables(slot);
        let request = self.slots[slot as usize].take().expect("listed slots are filled");
        self.prefill_tokens -= request.prefill_counted;
        self.by_id.remove(&request.id);
        self.free_slots.push(slot);
        request
    }

    pub(crate) fn end(&mut self, slot: u32, end: End) {
        let request = self.remove(slot);
        let usage = request.usage();
        self.ended.push(Ended { id: request.id, payload: request.payload, end, usage });
    }

    /// Releases a request's blocks, or keeps them for whoever still touches them.
    pub(crate) fn give_up_tables(&mut self, slot: u32) {
        let request = self.slots[slot as usize].as_mut().expect("listed slots are filled");
        // A work that was planned in this very step and taken out again is not in flight.
        let until_step = request.last_step.min(self.planned_step);
        let touched = until_step > self.committed_step || !request.holds.is_empty();
        for (group, table) in request.tables.iter_mut().enumerate() {
            if table.blocks().is_empty() {
                table.take();
            } else if touched {
                self.held.keep(group, table.take(), until_step, &request.holds);
            } else {
                let blocks = table.take();
                self.pool.release(group, &blocks);
            }
        }
        request.holds.clear();
        self.residences += 1;
        request.residence = self.residences;
        request.course = 0;
        (request.computed, request.planned, request.expected, request.registered) = (0, 0, 0, 0);
        request.last_step = 0;
    }

    /// Extends all tables to `blocks` blocks, or none.
    pub(crate) fn grow(&mut self, slot: u32, blocks: usize) -> bool {
        let request = self.slots[slot as usize].as_mut().expect("listed slots are filled");
        for group in 0..request.tables.len() {
            let table = &mut request.tables[group];
            let before = table.end();
            let missing = blocks.saturating_sub(before);
            if missing > 0 && !self.pool.allocate(group, missing, table.blocks_mut()) {
                // All tables end at the same block, so the earlier groups grew from `before` too.
                for (group, table) in request.tables[..group].iter_mut().enumerate() {
                    let grown = table.cut(before);
                    self.pool.release(group, &grown);
                }
                return false;
            }
        }
        true
    }

    /// Brings the sum of tokens to prefill up to date after a request's `computed`, `prefill_end` or load changed.
    pub(crate) fn recount_prefill(&mut self, slot: u32) {
        let size = self.pool.block_size().get();
        let request = self.slots[slot as usize].as_mut().expect("listed slots are filled");
        let arriving = match request.state {
            State::Loading(load) => load.pending * size,
            State::Waiting | State::Running => 0,
        };
        let left = request.prefill_end.saturating_sub(request.computed + arriving);
        self.prefill_tokens = self.prefill_tokens - request.prefill_counted + left;
        request.prefill_counted = left;
    }

    /// Puts an unlisted request back into the queue, before all that came after it. What it has becomes prefill.
    pub(crate) fn requeue(&mut self, slot: u32) {
        self.give_up_tables(slot);
        let request = self.request_mut(slot);
        request.state = State::Waiting;
        request.prefill_end = request.len();
        let arrival = request.arrival;
        self.recount_prefill(slot);
        let at = self.waiting.partition_point(|&other| self.request(other).arrival < arrival);
        self.waiting.insert(at, slot);
        self.blocked = None;
    }
}
