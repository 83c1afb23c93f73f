use proptest::prelude::*;

use super::*;

fn any_data() -> impl Strategy<Value = KvCacheEventData> {
    let block = (any::<u64>(), any::<u64>()).prop_map(|(hash, tokens)| StoredBlock {
        block_hash: ExternalBlockHash(hash),
        tokens_hash: LocalBlockHash(tokens),
    });
    let parent = prop::option::of(any::<u64>().prop_map(ExternalBlockHash));
    let stored = (parent, prop::collection::vec(block, 0..20))
        .prop_map(|(parent_hash, blocks)| KvCacheEventData::Stored { parent_hash, blocks });
    let removed = prop::collection::vec(any::<u64>().prop_map(ExternalBlockHash), 0..20)
        .prop_map(|block_hashes| KvCacheEventData::Removed { block_hashes });
    prop_oneof![stored, removed, Just(KvCacheEventData::Cleared)]
}

const TIERS: &[StorageTier] =
    &[StorageTier::Device, StorageTier::HostPinned, StorageTier::Disk, StorageTier::External];

fn any_event() -> impl Strategy<Value = RouterEvent> {
    (any::<u64>(), any::<u64>(), any_data(), any::<u32>(), prop::sample::select(TIERS)).prop_map(
        |(worker_id, event_id, data, dp_rank, storage_tier)| RouterEvent {
            worker_id,
            event: KvCacheEvent { event_id, data, dp_rank },
            storage_tier,
        },
    )
}

proptest! {
    #[test]
    fn it_reads_what_serde_writes_also_into_used_memory(
        messages in prop::collection::vec(prop::collection::vec(any_event(), 0..20), 1..4),
    ) {
        let mut decoder = RouterEventDecoder::new();
        let mut events = Vec::new();
        for message in messages {
            let payload = rmp_serde::to_vec_named(&message).unwrap();
            prop_assert_eq!(decoder.decode(&payload, &mut events), Ok(()));
            prop_assert_eq!(&events, &message);
            for event in events.drain(..) {
                decoder.recycle(event.event.data);
            }
        }
    }

    #[test]
    fn any_bytes_are_events_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = RouterEventDecoder::new().decode(&bytes, &mut Vec::new());
    }

    #[test]
    fn a_message_with_one_byte_changed_is_events_or_an_error(
        message in prop::collection::vec(any_event(), 1..4), at in any::<prop::sample::Index>(), byte in any::<u8>(),
    ) {
        let mut payload = rmp_serde::to_vec_named(&message).unwrap();
        let at = at.index(payload.len());
        payload[at] = byte;
        let _ = RouterEventDecoder::new().decode(&payload, &mut Vec::new());
    }
}

#[test]
fn unknown_fields_are_passed_over_and_absent_ones_take_their_defaults() {
    let json = serde_json::json!([{
        "worker_id": 7, "session_id": null, "residency_domain": "worker",
        "event": {"event_id": 3, "more": [1, {"a": 2.5}], "data": {"stored": {
            "parent_hash": null, "start_position": 4,
            "blocks": [{"block_hash": 5, "tokens_hash": 6, "mm_extra_info": {"mm_objects": []}}],
        }}},
    }]);
    let mut events = Vec::new();
    let payload = rmp_serde::to_vec_named(&json).unwrap();
    RouterEventDecoder::new().decode(&payload, &mut events).unwrap();
    let blocks = vec![StoredBlock { block_hash: ExternalBlockHash(5), tokens_hash: LocalBlockHash(6) }];
    let event = KvCacheEvent {
        event_id: 3,
        data: KvCacheEventData::Stored { parent_hash: None, blocks },
        dp_rank: 0,
    };
    assert_eq!(events, [RouterEvent { worker_id: 7, event, storage_tier: StorageTier::Device }]);
    // One event without its array.
    let payload = rmp_serde::to_vec_named(&json[0]).unwrap();
    RouterEventDecoder::new().decode(&payload, &mut events).unwrap();
    assert_eq!(events[0], events[1]);
}

#[test]
fn what_is_required_and_unknown_is_an_error() {
    let refused = |json: serde_json::Value| {
        let payload = rmp_serde::to_vec_named(&json).unwrap();
        RouterEventDecoder::new().decode(&payload, &mut Vec::new()).unwrap_err()
    };
    assert_eq!(refused(serde_json::json!([{"worker_id": 7}])), WireError::Missing);
    let event = serde_json::json!({"event_id": 1, "data": "cleared"});
    let tier = serde_json::json!([{"worker_id": 7, "event": event, "storage_tier": "tape"}]);
    assert_eq!(refused(tier), WireError::Name);
    assert_eq!(refused(serde_json::json!(7)), WireError::Type);
    let data = serde_json::json!([{"worker_id": 7, "event": {"event_id": 1, "data": "moved"}}]);
    assert_eq!(refused(data), WireError::Name);
}
