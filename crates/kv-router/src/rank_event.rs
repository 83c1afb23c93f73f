//! An event of a rank, on its way between a worker and a router that missed it.

use dynamo_engine_api::{DpRank, KvCacheEventData, RouterEvent, StorageTier};
use serde::{Deserialize, Serialize};

/// An event with its place in the order of its rank, which is one over all tiers. On the wire it is a
/// [`KvCacheEvent`](dynamo_engine_api::KvCacheEvent) with its tier, which is left out where it is the device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RankEvent {
    /// From 1, without gaps; in a dump from 0, without a meaning.
    pub event_id: u64,
    /// What happened.
    pub data: KvCacheEventData,
    /// The rank that it happened to.
    #[serde(default)]
    pub dp_rank: DpRank,
    /// The tier that it happened on. `Cleared` on the device concerns all tiers.
    #[serde(default, skip_serializing_if = "is_device")]
    pub storage_tier: StorageTier,
}

fn is_device(tier: &StorageTier) -> bool {
    *tier == StorageTier::Device
}

impl RankEvent {
    /// Whether nothing is left of what the rank held before.
    pub(crate) fn clears_all(&self) -> bool {
        self.storage_tier == StorageTier::Device && self.data == KvCacheEventData::Cleared
    }
}

impl From<RouterEvent> for RankEvent {
    /// Leaves out whose it is.
    fn from(event: RouterEvent) -> Self {
        let RouterEvent { event, storage_tier, .. } = event;
        Self { event_id: event.event_id, data: event.data, dp_rank: event.dp_rank, storage_tier }
    }
}

#[cfg(test)]
mod tests {
    use dynamo_engine_api::KvCacheEvent;

    use super::*;

    #[test]
    fn on_the_device_it_is_written_as_an_event_without_a_tier() {
        let plain = KvCacheEvent { event_id: 3, data: KvCacheEventData::Cleared, dp_rank: 1 };
        let bytes = rmp_serde::to_vec_named(&plain).unwrap();
        let event: RankEvent = rmp_serde::from_slice(&bytes).unwrap();
        let routed = RouterEvent { worker_id: 7, event: plain, storage_tier: StorageTier::Device };
        assert_eq!(event, routed.into());
        assert_eq!(rmp_serde::to_vec_named(&event).unwrap(), bytes);
        let disk = RankEvent { storage_tier: StorageTier::Disk, ..event };
        let bytes = rmp_serde::to_vec_named(&disk).unwrap();
        assert_eq!(rmp_serde::from_slice::<RankEvent>(&bytes).unwrap(), disk);
        assert!(!disk.clears_all());
    }
}
