//! From what an engine reports of a rank to numbered events in messages: merged, without what is doubled, kept.

use dynamo_engine_api::{DpRank, KvCacheEvent, KvCacheEventData, RouterEvent, StorageTier};

use crate::{EngineEvent, KvQuery, KvQueryAnswer, LocalIndexer, RankEvent, event_lists::EventLists};

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
/// Changes of all tiers have one order. One on a lower tier that does not fit what is known there gets no number: see
/// [`LocalIndexer::record_lower`].
pub struct EventPipeline {
    worker_id: u64,
    dp_rank: DpRank,
    local: LocalIndexer,
    holdings: Holdings,
    pending: Option<(StorageTier, KvCacheEventData)>,
    lists: EventLists,
    message: Vec<RouterEvent>,
    message_blocks: usize,
    lower_tiers: u64,
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
            lower_tiers: 0,
            doubled: 0,
        }
    }

    /// Takes a change. Messages that are full go to `send`.
    pub fn push(&mut self, event: EngineEvent, send: &mut impl FnMut(&[RouterEvent])) {
        let EngineEvent { mut tier, data } = event;
        let is_clear = matches!(data, KvCacheEventData::Cleared);
        if is_clear {
            // It concerns all tiers, and that is what it says on the device.
            tier = StorageTier::Device;
        }
        self.lower_tiers += u64::from(tier != StorageTier::Device);
        match &mut self.pending {
            Some((on, pending)) if *on == tier && merge::goes_on(pending, &data) => {
                merge::append(pending, &data);
                self.lists.recycle(data);
            }
            _ => {
                self.number_pending(send);
                self.pending = Some((tier, data));
            }
        }
        if is_clear || self.pending.as_ref().is_some_and(|(_, pending)| merge::is_full(pending)) {
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

    /// Changes on lower tiers than the device.
    pub fn lower_tiers(&self) -> u64 {
        self.lower_tiers
    }

    /// Removals of blocks that are still stored, for they had been stored more than once.
    pub fn doubled_blocks(&self) -> u64 {
        self.doubled
    }

    fn number_pending(&mut self, send: &mut impl FnMut(&[RouterEvent])) {
        let Some((tier, mut data)) = self.pending.take() else { return };
        if tier != StorageTier::Device {
            return self.number_lower(tier, data, send);
        }
        let before = merge::blocks(&data);
        self.holdings.apply(tier, &mut data);
        let blocks = merge::blocks(&data);
        self.doubled += (before - blocks) as u64;
        if blocks == 0 && before > 0 {
            self.lists.recycle(data);
            return;
        }
        let event = self.local.record(data);
        self.put_into_message(event, blocks, send);
    }

    /// What was never stored there counts for nothing, so a store is counted when it is known to fit.
    fn number_lower(
        &mut self,
        tier: StorageTier,
        mut data: KvCacheEventData,
        send: &mut impl FnMut(&[RouterEvent]),
    ) {
        let before = merge::blocks(&data);
        if matches!(data, KvCacheEventData::Removed { .. }) {
            self.holdings.apply(tier, &mut data);
            self.doubled += (before - merge::blocks(&data)) as u64;
        }
        if merge::blocks(&data) == 0 {
            self.lists.recycle(data);
            return;
        }
        match self.local.record_lower(tier, data) {
            Ok(mut event) => {
                if matches!(event.data, KvCacheEventData::Stored { .. }) {
                    self.holdings.apply(tier, &mut event.data);
                }
                let blocks = merge::blocks(&event.data);
                self.put_into_message(event, blocks, send);
            }
            Err(data) => self.lists.recycle(data),
        }
    }

    fn put_into_message(&mut self, event: RankEvent, blocks: usize, send: &mut impl FnMut(&[RouterEvent])) {
        if self.message.len() == MAX_MESSAGE_EVENTS
            || (self.message_blocks > 0 && self.message_blocks + blocks > MAX_MESSAGE_BLOCKS)
        {
            self.send_message(send);
        }
        let RankEvent { event_id, data, dp_rank, storage_tier } = event;
        debug_assert_eq!(dp_rank, self.dp_rank);
        let event = KvCacheEvent { event_id, data, dp_rank };
        self.message.push(RouterEvent { worker_id: self.worker_id, event, storage_tier });
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
