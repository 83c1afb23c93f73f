//! What to compute next: first what runs, then whom to admit.

use std::time::Duration;

use crate::request::State;
use crate::{BlockPool, End, PreemptionMode, Scheduler, Step, Work};

/// One step that is being computed and one planned meanwhile.
const MAX_STEPS_IN_FLIGHT: u64 = 2;

impl<P: BlockPool, T> Scheduler<P, T> {
    /// The next step, and whoever's deadline passed into [`drain_ended`](Self::drain_ended). Empty if there is
    /// nothing to compute, or if two steps are in flight already.
    pub fn plan(&mut self, now: Duration) -> Step {
        let mut step = self.spare_steps.pop().unwrap_or_default();
        step.works.clear();
        self.expire(now);
        if self.steps_in_flight() >= MAX_STEPS_IN_FLIGHT {
            return step;
        }
        self.poll_loads(now);
        let mut budget = self.config.max_num_batched_tokens;
        let squeezed = self.plan_running(&mut step, &mut budget);
        if !squeezed {
            self.admit(&mut step, &mut budget, now);
        }
        if !step.works.is_empty() {
            self.planned_step += 1;
            step.id = self.planned_step;
        }
        step
    }

    /// Takes an empty step's or a committed step's memory back.
    pub fn recycle(&mut self, step: Step) {
        if self.spare_steps.len() < MAX_STEPS_IN_FLIGHT as usize {
            self.spare_steps.push(step);
        }
    }

    /// Places the running requests; true if blocks ran out.
    fn plan_running(&mut self, step: &mut Step, budget: &mut usize) -> bool {
        let mut squeezed = false;
        let mut at = 0;
        while at < self.running.len() && *budget > 0 {
            let slot = self.running[at];
            let before = self.running.len();
            self.place(slot, step, budget, &mut squeezed);
            if self.running.len() == before {
                at += 1;
            } else {
                // Preemption may have taken out this one, or others before it.
                at = self.running.iter().position(|&other| other == slot).map_or(at, |place| place + 1);
            }
        }
        squeezed
    }

    /// Puts a running request into the step, unless there is nothing to compute, or it has to wait for blocks that
    /// come back with the step in flight, or has to give way itself.
    fn place(&mut self, slot: u32, step: &mut Step, budget: &mut usize, squeezed: &mut bool) {
        let request = self.request(slot);
        let foreseen = request.len() + request.expected;
        if foreseen >= request.max_len || foreseen == request.planned {
            return;
        }
        let len = (foreseen - request.planned).min(*budget);
        let end = request.planned + len;
        let room = if end == foreseen { self.config.max_advance - 1 } else { 0 };
        let blocks = self.pool.block_size().blocks_for((end + room).min(request.max_len));
        if blocks > request.tables[0].end() {
            if *squeezed && self.steps_in_flight() > 0 {
                return;
            }
            while !self.grow(slot, blocks) {
                *squeezed = true;
                if self.blocks_return_for(slot, blocks) {
                    return;
                }
                let victim = match self.config.preemption {
                    PreemptionMode::Lifo => self.running.last(),
                    PreemptionMode::Fifo => self.running.first(),
                };
                let victim = *victim.expect("the request itself is running");
                self.preempt(victim, step, budget);
                if victim == slot {
                    return;
                }
            }
        }
        // A victim that was placed before this one gave its tokens back, so `len` still fits.
        self.add_work(slot, len, step, budget);
    }

    /// Whether what only the step in flight keeps is enough for a request to grow.
    fn blocks_return_for(&self, slot: u32, blocks: usize) -> bool {
        let tables = &self.request(slot).tables;
        self.steps_in_flight() > 0
            && tables.iter().enumerate().all(|(group, table)| {
                let missing = blocks.saturating_sub(table.end());
                self.pool.available(group) + self.held.returning(group) >= missing
            })
    }

    fn preempt(&mut self, victim: u32, step: &mut Step, budget: &mut usize) {
        if let Some(at) = step.works.iter().position(|work| work.slot == victim) {
            *budget += step.works.remove(at).len;
        }
        self.running.retain(|&other| other != victim);
        self.preemptions += 1;
        self.requeue(victim);
    }

    /// Puts the next `len` tokens of a request, for which it has blocks, into the step.
    pub(crate) fn add_work(&mut self, slot: u32, len: usize, step: &mut Step, budget: &mut usize) {
        let id = self.planned_step + 1;
        let request = self.request_mut(slot);
        let start = request.planned;
        let end = start + len;
        let samples = end == request.len() + request.expected;
        step.works.push(Work {
            request: request.id,
            start,
            len,
            samples,
            prefill: start < request.prefill_end,
            ahead: end > request.len(),
            slot,
            residence: request.residence,
            course: request.course,
        });
        request.planned = end;
        request.expected += usize::from(samples);
        request.last_step = id;
        *budget = budget.saturating_sub(len);
    }

    /// Ends requests and holds whose deadlines passed.
    fn expire(&mut self, now: Duration) {
        if self.next_deadline.is_none_or(|deadline| deadline > now) {
            return;
        }
        self.held.expire(now);
        self.held.release(self.committed_step, &mut self.pool);
        for slot in 0..self.slots.len() as u32 {
            let Some(request) = self.slots[slot as usize].as_mut() else { continue };
            request.holds.retain(|hold| hold.deadline > now);
            if request.deadline.is_some_and(|deadline| deadline <= now) {
                self.unlist(slot);
                self.end(slot, End::DeadlineExceeded);
            }
        }
        self.next_deadline = self.held.next_deadline();
        for slot in 0..self.slots.len() {
            let Some(request) = &self.slots[slot] else { continue };
            let load = match request.state {
                State::Loading(load) => Some(load.deadline),
                State::Waiting | State::Running => None,
            };
            let hold = request.holds.iter().map(|hold| hold.deadline).min();
            for deadline in [request.deadline, load, hold] {
                self.note_deadline(deadline);
            }
        }
    }
}
