//! From what an engine reports of a rank to numbered events in messages: merged, without what is doubled, kept.

use dynamo_engine_api::{DpRank, KvCacheEventData, RouterEvent, StorageTier};

use crate::{EngineEvent, KvQuery, KvQueryAnswer, LocalIndexer, event_lists::EventLists};

mod holdings;
mod merge;

use holdings::Holdings;

/// Events in one message at most: a router decodes a message in one go, between two requests.
pub const MAX_MESSAGE_EVENTS: usize = 128;

/// Blocks in one message at most, unless one event alone has more.
pub const MAX_MESSAGE_BLOCKS: usize = 8192;

/// One rank's way from changes to messages. Changes are merged with the one before as long as they may be, blocks that
/// are stored more than once are removed only when all of it is taken back, and what then is left gets a number, is
/// kept for routers that miss it, and goes into a message.
///
/// Routers and the ranges that they ask for know one tier, so changes on others end here and are counted.
pub struct EventPipeline {
    worker_id: u64,
    dp_rank: DpRank,
    local: LocalIndexer,
    holdings: Holdings,
    pending: Option<KvCacheEventData>,
    lists: EventLists,
    message: Vec<RouterEvent>,
    message_blocks: usize,
    other_tiers: u64,
    doubled: u64,
}

impl EventPipeline {
    /// The rank of a fresh engine: it holds nothing and nothing was published.
    pub fn new(worker_id: u64, dp_rank: DpRank) -> Self {
        Self {
            worker_id,
            dp_rank,
            local: LocalIndexer::new(dp_rank),
            holdings: Holdings::default(),
            pending: None,
            lists: EventLists::default(),
            message: Vec::new(),
            message_blocks: 0,
            other_tiers: 0,
            doubled: 0,
        }
    }

    /// Takes a change. Messages that are full go to `send`.
    pub fn push(&mut self, event: EngineEvent, send: &mut impl FnMut(&[RouterEvent])) {
        let EngineEvent { tier, data } = event;
        let is_clear = matches!(data, KvCacheEventData::Cleared);
        if tier != StorageTier::Device && !is_clear {
            self.other_tiers += 1;
            self.lists.recycle(data);
            return;
        }
        if let Some(pending) = &mut self.pending {
            if merge::goes_on(pending, &data) {
                merge::append(pending, &data);
                self.lists.recycle(data);
            } else {
                self.number_pending(send);
                self.pending = Some(data);
            }
        } else {
            self.pending = Some(data);
        }
        if is_clear || self.pending.as_ref().is_some_and(merge::is_full) {
            self.number_pending(send);
        }
    }

    /// A batch of the engine ends: everything goes out.
    pub fn flush(&mut self, send: &mut impl FnMut(&[RouterEvent])) {
        self.number_pending(send);
        self.send_message(send);
    }

    /// Answers a router that missed events. Flush first, or it will miss what is not numbered yet.
    pub fn answer(&self, query: &KvQuery) -> KvQueryAnswer {
        self.local.answer(query)
    }

    /// What the rank published and holds.
    pub fn local(&self) -> &LocalIndexer {
        &self.local
    }

    /// Changes on other tiers than the device, which ended here.
    pub fn other_tiers(&self) -> u64 {
        self.other_tiers
    }

    /// Removals of blocks that are still stored, for they had been stored more than once.
    pub fn doubled_blocks(&self) -> u64 {
        self.doubled
    }

    fn number_pending(&mut self, send: &mut impl FnMut(&[RouterEvent])) {
        let Some(mut data) = self.pending.take() else { return };
        let before = merge::blocks(&data);
        self.holdings.apply(&mut data);
        let blocks = merge::blocks(&data);
        self.doubled += (before - blocks) as u64;
        if blocks == 0 && before > 0 {
            self.lists.recycle(data);
            return;
        }
        if self.message.len() == MAX_MESSAGE_EVENTS
            || (self.message_blocks > 0 && self.message_blocks + blocks > MAX_MESSAGE_BLOCKS)
        {
            self.send_message(send);
        }
        let event = self.local.record(data);
        debug_assert_eq!(event.dp_rank, self.dp_rank);
        self.message.push(RouterEvent {
            worker_id: self.worker_id,
            event,
            storage_tier: StorageTier::Device,
        });
        self.message_blocks += blocks;
    }

    fn send_message(&mut self, send: &mut impl FnMut(&[RouterEvent])) {
        if self.message.is_empty() {
            return;
        }
        send(&self.message);
        self.message_blocks = 0;
        for event in self.message.drain(..) {
            self.lists.recycle(event.event.data);
        }
    }
}

#[cfg(test)]
mod tests;
