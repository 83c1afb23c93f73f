//! The worker's side of recovery: it numbers its events, keeps the last ones, and knows what it has.

use std::collections::VecDeque;

use dynamo_engine_api::{DpRank, KvCacheEventData, StorageTier};
use serde::{Deserialize, Serialize};

use crate::{ApplyError, RadixTree, RankEvent, Slot, TieredWriter};

/// Events that a worker keeps for each rank, as in the reference. A gap that reaches further back is filled by a dump.
pub const LOCAL_EVENT_BUFFER: usize = 1024;

/// Block hashes in those events at most: 4 MiB, where events of very long prompts would need hundreds.
const LOCAL_EVENT_BUFFER_BLOCKS: usize = 1 << 18;

/// A router's question to the worker whose events it lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvQuery {
    /// The rank.
    #[serde(default)]
    pub dp_rank: DpRank,
    /// The first event wanted; absent: a dump.
    pub start_event_id: Option<u64>,
    /// The last event wanted; absent: the newest.
    pub end_event_id: Option<u64>,
}

/// The worker's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KvQueryAnswer {
    /// The events wanted.
    Events {
        /// In order.
        events: Vec<RankEvent>,
        /// The id of the last of them.
        last_event_id: u64,
    },
    /// The events wanted are no longer there, or a dump was: this is all that the rank holds.
    TreeDump {
        /// To be applied in order to an empty index; their ids, from 0, mean nothing else.
        events: Vec<RankEvent>,
        /// The last event that the dump includes; 0 if there was none.
        last_event_id: u64,
    },
    /// The first event wanted has not happened.
    TooNew {
        /// As asked.
        requested_start: u64,
        /// As asked.
        requested_end: Option<u64>,
        /// The last event that has.
        newest_available: u64,
    },
    /// The end lies before the start.
    InvalidRange {
        /// As asked.
        start_id: u64,
        /// As asked.
        end_id: u64,
    },
}

/// What one rank of a worker has published and holds.
pub struct LocalIndexer {
    dp_rank: DpRank,
    index: TieredWriter,
    recent: VecDeque<RankEvent>,
    recent_blocks: usize,
    last_event_id: u64,
    failed: u64,
}

impl LocalIndexer {
    /// The rank of a fresh process: it holds nothing and has published nothing.
    pub fn new(dp_rank: DpRank) -> Self {
        Self {
            dp_rank,
            index: TieredWriter::new(RadixTree::new()),
            recent: VecDeque::new(),
            recent_blocks: 0,
            last_event_id: 0,
            failed: 0,
        }
    }

    const SLOT: Slot = Slot::new(0, 0);

    /// Gives the next number to a change of the cache on the device, and keeps it. Publish the events in this order.
    pub fn record(&mut self, data: KvCacheEventData) -> RankEvent {
        let applied = self.index.apply(Self::SLOT, StorageTier::Device, &data);
        self.failed += u64::from(applied.is_err());
        self.number(StorageTier::Device, data)
    }

    /// The same for a change on a lower tier. What does not fit there is given back, or what fits alone recorded: engines
    /// that offload tell less of it, and a router could only ask again and again for what nobody has.
    pub fn record_lower(
        &mut self,
        tier: StorageTier,
        mut data: KvCacheEventData,
    ) -> Result<RankEvent, KvCacheEventData> {
        if let KvCacheEventData::Removed { block_hashes } = &mut data {
            let all = block_hashes.len();
            block_hashes.retain(|hash| self.index.holds_lower(Self::SLOT, tier, *hash));
            self.failed += u64::from(block_hashes.len() < all);
            if block_hashes.is_empty() {
                return Err(data);
            }
        }
        match self.index.apply(Self::SLOT, tier, &data) {
            // A name may be there twice.
            Ok(()) | Err(ApplyError::BlockNotFound) => Ok(self.number(tier, data)),
            Err(_) => {
                self.failed += 1;
                Err(data)
            }
        }
    }

    fn number(&mut self, storage_tier: StorageTier, data: KvCacheEventData) -> RankEvent {
        self.last_event_id += 1;
        let event = RankEvent { event_id: self.last_event_id, data, dp_rank: self.dp_rank, storage_tier };
        self.recent_blocks += blocks_of(&event);
        self.recent.push_back(event.clone());
        while self.recent.len() > LOCAL_EVENT_BUFFER || self.recent_blocks > LOCAL_EVENT_BUFFER_BLOCKS {
            match self.recent.pop_front() {
                Some(oldest) => self.recent_blocks -= blocks_of(&oldest),
                None => break,
            }
        }
        event
    }

    /// Answers a router.
    pub fn answer(&self, query: &KvQuery) -> KvQueryAnswer {
        let Some(start) = query.start_event_id else { return self.dump() };
        if let Some(end_id) = query.end_event_id.filter(|&end| end < start) {
            return KvQueryAnswer::InvalidRange { start_id: start, end_id };
        }
        let Some(oldest) = self.recent.front().map(|event| event.event_id) else { return self.dump() };
        if start > self.last_event_id {
            return KvQueryAnswer::TooNew {
                requested_start: start,
                requested_end: query.end_event_id,
                newest_available: self.last_event_id,
            };
        }
        if start < oldest {
            return self.dump();
        }
        let last_event_id = query.end_event_id.map_or(self.last_event_id, |end| end.min(self.last_event_id));
        let wanted = (start - oldest) as usize..=(last_event_id - oldest) as usize;
        KvQueryAnswer::Events { events: self.recent.range(wanted).cloned().collect(), last_event_id }
    }

    /// The number of the last event; 0 before the first.
    pub fn last_event_id(&self) -> u64 {
        self.last_event_id
    }

    /// Blocks that the rank holds on its device.
    pub fn held_blocks(&self) -> u32 {
        self.index.held_blocks(Self::SLOT)
    }

    /// Events that made no sense to the rank's own index: the engine reports wrongly.
    pub fn failed_events(&self) -> u64 {
        self.failed
    }

    fn dump(&self) -> KvQueryAnswer {
        let dp_rank = self.dp_rank;
        let event = |(event_id, (storage_tier, data))| RankEvent { event_id, data, dp_rank, storage_tier };
        KvQueryAnswer::TreeDump {
            events: (0..).zip(self.index.dump(Self::SLOT)).map(event).collect(),
            last_event_id: self.last_event_id,
        }
    }
}

fn blocks_of(event: &RankEvent) -> usize {
    match &event.data {
        KvCacheEventData::Stored { blocks, .. } => blocks.len(),
        KvCacheEventData::Removed { block_hashes } => block_hashes.len(),
        KvCacheEventData::Cleared => 0,
    }
}

#[cfg(test)]
mod tests {
    use dynamo_engine_api::{ExternalBlockHash, StoredBlock};
    use dynamo_tokens::LocalBlockHash;

    use super::*;

    fn stored(hashes: std::ops::Range<u64>) -> KvCacheEventData {
        let block =
            |hash| StoredBlock { block_hash: ExternalBlockHash(hash), tokens_hash: LocalBlockHash(hash) };
        KvCacheEventData::Stored { parent_hash: None, blocks: hashes.map(block).collect() }
    }

    fn ask(indexer: &LocalIndexer, start: Option<u64>, end: Option<u64>) -> KvQueryAnswer {
        let answer = indexer.answer(&KvQuery { dp_rank: 3, start_event_id: start, end_event_id: end });
        let bytes = rmp_serde::to_vec_named(&answer).unwrap();
        assert_eq!(rmp_serde::from_slice::<KvQueryAnswer>(&bytes).unwrap(), answer, "it travels");
        answer
    }

    #[test]
    fn a_range_is_answered_by_events_while_they_are_kept_and_by_a_dump_after() {
        let mut indexer = LocalIndexer::new(3);
        for hash in 0..LOCAL_EVENT_BUFFER as u64 + 10 {
            indexer.record(stored(hash..hash + 1));
        }
        let KvQueryAnswer::Events { events, last_event_id } = ask(&indexer, Some(11), Some(13)) else {
            panic!()
        };
        assert_eq!(events.iter().map(|event| event.event_id).collect::<Vec<_>>(), [11, 12, 13]);
        assert_eq!((last_event_id, events[0].dp_rank), (13, 3));
        let KvQueryAnswer::Events { events, last_event_id } = ask(&indexer, Some(1033), Some(5000)) else {
            panic!()
        };
        assert_eq!((events.len(), last_event_id), (2, 1034));
        let KvQueryAnswer::TreeDump { events, last_event_id } = ask(&indexer, Some(10), None) else {
            panic!()
        };
        assert_eq!((events.len(), events[5].event_id, last_event_id), (1034, 5, 1034));
        assert_eq!(indexer.held_blocks(), 1034);
    }

    #[test]
    fn an_empty_rank_and_bad_ranges_have_their_answers() {
        let mut indexer = LocalIndexer::new(3);
        let empty = KvQueryAnswer::TreeDump { events: vec![], last_event_id: 0 };
        assert_eq!(ask(&indexer, Some(4), None), empty);
        indexer.record(stored(0..1));
        let too_new =
            KvQueryAnswer::TooNew { requested_start: 2, requested_end: Some(4), newest_available: 1 };
        assert_eq!(ask(&indexer, Some(2), Some(4)), too_new);
        assert_eq!(ask(&indexer, Some(4), Some(2)), KvQueryAnswer::InvalidRange { start_id: 4, end_id: 2 });
        assert_eq!(indexer.failed_events(), 0);
        indexer.record(KvCacheEventData::Removed { block_hashes: vec![ExternalBlockHash(77)] });
        assert_eq!(indexer.failed_events(), 1);
    }

    #[test]
    fn events_of_lower_tiers_have_their_place_in_the_order_and_in_dumps() {
        let mut indexer = LocalIndexer::new(3);
        indexer.record(stored(1..3));
        let host = indexer.record_lower(StorageTier::HostPinned, stored(1..2)).unwrap();
        assert_eq!((host.event_id, host.dp_rank, host.storage_tier), (2, 3, StorageTier::HostPinned));
        let KvQueryAnswer::Events { events, .. } = ask(&indexer, Some(1), None) else { panic!() };
        assert_eq!((events[0].storage_tier, &events[1]), (StorageTier::Device, &host));
        let KvQueryAnswer::TreeDump { events, last_event_id } = ask(&indexer, None, None) else { panic!() };
        let tiers: Vec<_> = events.iter().map(|event| event.storage_tier).collect();
        assert_eq!((last_event_id, tiers), (2, vec![StorageTier::Device, StorageTier::HostPinned]));
    }

    #[test]
    fn what_does_not_fit_below_the_device_takes_no_number() {
        let mut indexer = LocalIndexer::new(3);
        indexer.record(stored(1..2));
        let orphan = KvCacheEventData::Stored {
            parent_hash: Some(ExternalBlockHash(99)),
            blocks: vec![StoredBlock { block_hash: ExternalBlockHash(5), tokens_hash: LocalBlockHash(5) }],
        };
        assert_eq!(indexer.record_lower(StorageTier::Disk, orphan.clone()), Err(orphan));
        let removed = |hashes: &[u64]| KvCacheEventData::Removed {
            block_hashes: hashes.iter().map(|&hash| ExternalBlockHash(hash)).collect(),
        };
        // It is on the device, and on the host, but not on the disk.
        indexer.record_lower(StorageTier::HostPinned, stored(1..2)).unwrap();
        assert_eq!(indexer.record_lower(StorageTier::Disk, removed(&[1])), Err(removed(&[])));
        assert_eq!((indexer.last_event_id(), indexer.failed_events()), (2, 2));
        let known = indexer.record_lower(StorageTier::HostPinned, removed(&[7, 1])).unwrap();
        assert_eq!((known.event_id, known.data, indexer.failed_events()), (3, removed(&[1]), 3));
    }

    #[test]
    fn long_events_are_kept_by_their_blocks() {
        let mut indexer = LocalIndexer::new(0);
        for event in 0..6 {
            indexer.record(stored(event * 60_000..(event + 1) * 60_000));
        }
        assert!(indexer.recent_blocks <= LOCAL_EVENT_BUFFER_BLOCKS);
        assert!(matches!(ask(&indexer, Some(2), None), KvQueryAnswer::TreeDump { .. }));
        assert!(matches!(ask(&indexer, Some(3), None), KvQueryAnswer::Events { .. }));
    }
}
