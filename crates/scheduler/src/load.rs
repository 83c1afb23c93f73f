//! Requests whose cached contents are on the way.

use std::time::Duration;

use crate::request::{Loading, State};
use crate::{BlockPool, LoadState, Scheduler};

impl<P: BlockPool, T> Scheduler<P, T> {
    /// Lets those go on whose contents arrived, or did not arrive in time.
    pub(crate) fn poll_loads(&mut self, now: Duration) {
        let mut at = 0;
        while at < self.loading.len() {
            let slot = self.loading[at];
            let State::Loading(load) = self.request(slot).state else {
                unreachable!("the list holds requests in this state")
            };
            match self.pool.poll_load(load.ticket) {
                LoadState::Done { arrived } => {
                    self.loading.remove(at);
                    self.start_after_load(slot, load, arrived);
                }
                LoadState::Pending if now < load.deadline => at += 1,
                LoadState::Pending => {
                    self.loading.remove(at);
                    let arrived = self.pool.cancel_load(load.ticket);
                    self.replace_missing(slot, load, arrived);
                }
            }
        }
    }

    fn start_after_load(&mut self, slot: u32, load: Loading, arrived: usize) {
        let blocks = load.ready + arrived.min(load.pending);
        let size = self.pool.block_size().get();
        let request = self.request_mut(slot);
        request.state = State::Running;
        // Another attempt at what did not arrive would keep the request waiting for ever.
        request.may_load &= arrived >= load.pending;
        (request.computed, request.planned, request.registered) = (blocks * size, blocks * size, blocks);
        request.cached_tokens.get_or_insert(blocks * size);
        self.recount_prefill(slot);
        self.running.push(slot);
    }

    /// The transfer may write on into what it was promised, so the request takes other blocks.
    fn replace_missing(&mut self, slot: u32, load: Loading, arrived: usize) {
        let keep = load.ready + arrived.min(load.pending);
        let request = self.slots[slot as usize].as_mut().expect("listed slots are filled");
        let blocks = request.tables[0].end();
        for (group, table) in request.tables.iter_mut().enumerate() {
            let missing = table.cut(keep);
            self.pool.release(group, &missing);
        }
        if self.grow(slot, blocks) {
            self.start_after_load(slot, load, arrived);
            self.request_mut(slot).may_load = false;
        } else {
            self.request_mut(slot).may_load = false;
            self.requeue(slot);
        }
    }
}
