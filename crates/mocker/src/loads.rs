//! Blocks that other engines computed for a request: promised to it, then on the way.

use std::time::Duration;

use dynamo_scheduler::{BlockId, FullBlock, LoadTicket, RequestId};
use dynamo_tokens::TokenId;
use rustc_hash::FxHashMap;

use crate::TransferTime;

/// What arrives with one load. Nothing is said of contents where nobody would look for them.
#[derive(Debug)]
pub(crate) struct Load {
    pub(crate) blocks: Vec<BlockId>,
    /// Of all blocks, or none.
    pub(crate) contents: Vec<FullBlock>,
    /// Of all blocks, or none.
    pub(crate) tokens: Vec<TokenId>,
}

/// Times are since the caller's origin.
#[derive(Debug, Default)]
pub(crate) struct Loads {
    transfer: TransferTime,
    now: Duration,
    /// Leading blocks of requests that were not admitted yet: not more entries than live requests.
    promised: FxHashMap<RequestId, usize>,
    /// One entry at most per request that loads.
    under_way: FxHashMap<LoadTicket, (Duration, Load)>,
    tickets: u64,
}

impl Loads {
    pub(crate) fn set_transfer(&mut self, transfer: TransferTime) {
        self.transfer = transfer;
    }

    pub(crate) fn set_now(&mut self, now: Duration) {
        self.now = now;
    }

    pub(crate) fn promise(&mut self, request: RequestId, blocks: usize) {
        if blocks > 0 {
            self.promised.insert(request, blocks);
        }
    }

    /// The blocks promised to a request, to which nothing is promised from now on.
    pub(crate) fn take_promise(&mut self, request: RequestId) -> usize {
        if self.promised.is_empty() { 0 } else { self.promised.remove(&request).unwrap_or(0) }
    }

    pub(crate) fn start(&mut self, load: Load) -> LoadTicket {
        self.tickets += 1;
        let ticket = LoadTicket(self.tickets);
        let due = self.now.saturating_add(self.transfer.of(load.blocks.len()));
        self.under_way.insert(ticket, (due, load));
        ticket
    }

    pub(crate) fn is_under_way(&self, ticket: LoadTicket) -> bool {
        self.under_way.get(&ticket).is_some_and(|(due, _)| *due > self.now)
    }

    pub(crate) fn end(&mut self, ticket: LoadTicket) -> Option<Load> {
        self.under_way.remove(&ticket).map(|(_, load)| load)
    }

    pub(crate) fn next_due(&self) -> Option<Duration> {
        self.under_way.values().map(|(due, _)| *due).min()
    }
}
