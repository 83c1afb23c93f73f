use dynamo_engine_api::{ExternalBlockHash, KvCacheEventData, StorageTier};
use dynamo_tokens::{BlockSize, HashSeed, LocalBlockHash, TokenId, local_block_hashes};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::WireError;

const FOUR: BlockSize = BlockSize::new(4).unwrap();

fn decode(decoder: &mut EngineEventDecoder, batch: &Value) -> (Vec<EngineEvent>, BatchInfo) {
    let mut out = Vec::new();
    let info = decoder.decode(&rmp_serde::to_vec_named(batch).unwrap(), &mut out).unwrap();
    (out, info)
}

fn one(events: Value) -> (Vec<EngineEvent>, IntakeCounters) {
    let mut decoder = EngineEventDecoder::new(FOUR);
    let (out, _) = decode(&mut decoder, &json!([1.5, events, null]));
    (out, *decoder.counters())
}

fn locals(tokens: &[TokenId], seed: HashSeed) -> Vec<LocalBlockHash> {
    let mut out = Vec::new();
    local_block_hashes(tokens, FOUR, seed, &mut out);
    out
}

/// The local hashes of a stored event.
fn stored_locals(event: &EngineEvent) -> Vec<LocalBlockHash> {
    let KvCacheEventData::Stored { blocks, .. } = &event.data else { panic!("{event:?}") };
    blocks.iter().map(|block| block.tokens_hash).collect()
}

const TOKENS: [TokenId; 8] = [1, 2, 300, 4, 5, 70_000, 7, 8];

#[test]
fn both_forms_of_a_stored_event_mean_the_same() {
    let array = json!([[
        "BlockStored",
        [-1, 7],
        99,
        TOKENS,
        4,
        3,
        "CPU",
        "adapter",
        null,
        null,
        0,
        "full_attention",
        128,
        {}
    ]]);
    let map = json!([{"new_field": {"a": [1]}, "block_size": 4, "token_ids": TOKENS, "type": "BlockStored", "medium": "CPU",
        "parent_block_hash": 99, "block_hashes": [-1, 7], "lora_name": "adapter", "lora_id": 3, "group_idx": 0,
        "kv_cache_spec_kind": "full_attention", "extra_keys": [null, null]}]);
    let (events, counters) = one(array);
    assert_eq!((counters.received, counters.accepted), (1, 1));
    assert_eq!(one(map).0, events);
    let KvCacheEventData::Stored { parent_hash, blocks } = &events[0].data else { panic!() };
    assert_eq!(events[0].tier, StorageTier::HostPinned);
    assert_eq!(*parent_hash, Some(ExternalBlockHash(99)));
    assert_eq!(blocks.iter().map(|block| block.block_hash.0).collect::<Vec<_>>(), [u64::MAX, 7]);
    assert_eq!(stored_locals(&events[0]), locals(&TOKENS, HashSeed::new(Some("adapter"), None)));
}

#[test]
fn removals_and_clears_in_both_forms() {
    let (events, counters) = one(json!([
        ["BlockRemoved", [1, 2], "GPU"],
        {"type": "BlockRemoved", "block_hashes": [3], "medium": null},
        ["AllBlocksCleared"], {"type": "AllBlocksCleared", "extra": 1}, ["Ignored"], {"type": "Ignored"},
        ["BlockRemoved", [4], "nvme", 0, "full_attention"],
    ]));
    assert_eq!((counters.received, counters.accepted, counters.filtered(FilterReason::Ignored)), (7, 5, 2));
    let removed = |hashes: &[u64]| KvCacheEventData::Removed {
        block_hashes: hashes.iter().copied().map(ExternalBlockHash).collect(),
    };
    let data: Vec<_> = events.iter().map(|event| event.data.clone()).collect();
    let cleared = KvCacheEventData::Cleared;
    assert_eq!(data, [removed(&[1, 2]), removed(&[3]), cleared.clone(), cleared, removed(&[4])]);
    assert_eq!(events[4].tier, StorageTier::Disk);
}

#[test]
fn each_reason_to_filter_is_told_apart() {
    let reasons = [
        (json!(["BlockMoved", [1]]), FilterReason::UnknownKind),
        (json!(["BlockStored", "hashes"]), FilterReason::Malformed),
        (json!({"block_hashes": [1]}), FilterReason::Malformed),
        (json!(["BlockStored", [], null, [], 4]), FilterReason::Empty),
        (json!(["BlockRemoved", [1], "TAPE"]), FilterReason::UnknownMedium),
        (json!({"type": "BlockRemoved", "block_hashes": [1], "locality": "REMOTE"}), FilterReason::Remote),
        (json!(["BlockRemoved", [1], "GPU", 1]), FilterReason::AttentionGroup),
        (json!(["BlockStored", [1], null, TOKENS, 8]), FilterReason::BlockSize),
        (json!(["BlockStored", [1], null, [1, 2, 3], 4]), FilterReason::TooFewTokens),
    ];
    for (event, reason) in reasons {
        // What comes after it is read all the same.
        let (events, counters) = one(json!([event, ["AllBlocksCleared"]]));
        assert_eq!(events.len(), 1, "{reason:?}");
        assert_eq!(
            (counters.received, counters.accepted, counters.filtered(reason)),
            (2, 1, 1),
            "{reason:?}"
        );
    }
    let (_, counters) = one(json!([["BlockStored", [1], null, TOKENS, 8]]));
    assert_eq!(counters.other_block_size, Some(8));
}

#[test]
fn blocks_without_tokens_are_left_out() {
    let (events, counters) = one(json!([["BlockStored", [1, 2, 3], null, TOKENS, 4]]));
    assert_eq!(stored_locals(&events[0]).len(), 2);
    assert_eq!((counters.accepted, counters.cut_short), (1, 1));
}

#[test]
fn a_store_that_names_a_block_twice_is_an_event_without_blocks() {
    let empty = KvCacheEventData::Removed { block_hashes: vec![] };
    let long: Vec<u64> = (0..20).chain([3]).collect();
    let many: Vec<TokenId> = (0..84).collect();
    for event in [
        json!(["BlockStored", [1, 1], null, TOKENS, 4]),
        json!(["BlockStored", [1, 2], 2, TOKENS, 4]),
        json!(["BlockStored", long, null, many, 4]),
        json!(["BlockStored", &long[..20], 7, many, 4]),
    ] {
        let (events, counters) = one(json!([event]));
        assert_eq!((&events[0].data, counters.not_unique), (&empty, 1));
    }
}

#[test]
fn long_hashes_count_by_their_last_eight_bytes() {
    // A map in MessagePack by hand: bytes are no JSON.
    let mut payload = vec![0x93, 0x01, 0x91, 0x93, 0xac];
    payload.extend_from_slice(b"BlockRemoved");
    payload.extend_from_slice(&[0x91, 0xc4, 32]);
    payload.extend_from_slice(&[9; 24]);
    payload.extend_from_slice(&0x0102_0304_0506_0708u64.to_be_bytes());
    payload.extend_from_slice(&[0xc0, 0x03]);
    let mut out = Vec::new();
    let info = EngineEventDecoder::new(FOUR).decode(&payload, &mut out).unwrap();
    assert_eq!((info.timestamp, info.dp_rank), (1.0, Some(3)));
    let block_hashes = vec![ExternalBlockHash(0x0102_0304_0506_0708)];
    assert_eq!(out[0].data, KvCacheEventData::Removed { block_hashes });
}

#[test]
fn pairs_of_tokens_hash_with_the_token_after_the_block() {
    let pairs: Vec<[u32; 2]> = (10..18).map(|token| [token, token + 1]).collect();
    let (events, _) = one(json!([["BlockStored", [1, 2], null, pairs, 4]]));
    let tokens: Vec<TokenId> = (10..19).collect();
    let of = |window: &[TokenId]| LocalBlockHash::of(window, HashSeed::PLAIN);
    assert_eq!(stored_locals(&events[0]), [of(&tokens[..5]), of(&tokens[4..9])]);
}

#[test]
fn images_and_salts_are_in_the_hashes() {
    let object = |number: u64| format!("{number:016x}{}", "0".repeat(48));
    let mut decoder = EngineEventDecoder::new(FOUR);
    let batch = json!([0, [
        ["BlockStored", [1, 2], null, TOKENS, 4, null, "GPU", null,
            [["dynamo-cache-salt:tenant"], [[object(9), 0], [object(5), 0]]]],
        ["BlockStored", [3], 2, &TOKENS[..4], 4, null, "GPU", {"cache_salt": null}],
        {"type": "BlockStored", "block_hashes": [4], "token_ids": &TOKENS[..4], "block_size": 4, "cache_salt": "tenant"},
        {"type": "BlockStored", "block_hashes": [5], "parent_block_hash": 4, "token_ids": &TOKENS[..4], "block_size": 4,
            "cache_salt": "other"},
    ], 1]);
    let (events, _) = decode(&mut decoder, &batch);
    let seed = HashSeed::new(None, Some("tenant"));
    let salted = LocalBlockHash::of(&TOKENS[..4], seed);
    assert_eq!(
        stored_locals(&events[0]),
        [salted, LocalBlockHash::with_objects(&TOKENS[4..], &[5, 9], seed)]
    );
    assert_eq!((stored_locals(&events[1]), stored_locals(&events[2])), (vec![salted], vec![salted]));
    assert_eq!((events.len(), decoder.counters().filtered(FilterReason::AmbiguousSalt)), (3, 1));
}

#[test]
fn a_batch_that_cannot_be_read_is_an_error() {
    let refused = |batch: &Value| {
        let payload = rmp_serde::to_vec_named(batch).unwrap();
        EngineEventDecoder::new(FOUR).decode(&payload, &mut Vec::new()).unwrap_err()
    };
    assert_eq!(refused(&json!([1.0])), WireError::Missing);
    assert_eq!(refused(&json!({"ts": 1})), WireError::Type);
    assert_eq!(refused(&json!([1.0, [], -1])), WireError::Range);
    let mut decoder = EngineEventDecoder::new(FOUR);
    assert_eq!(decode(&mut decoder, &json!([1.0, [], 2, "more", [1]])).1.dp_rank, Some(2));
    assert_eq!(decode(&mut decoder, &json!([1.0, []])).1.dp_rank, None);
}

#[test]
fn what_is_written_is_read_in_either_form() {
    let tokens: Vec<TokenId> = (0..400).map(|number| number * 977).collect();
    let hashes: Vec<u64> = (1..=100).map(|number| number << 40 | number).collect();
    let events = [
        WireEvent::Stored {
            block_hashes: &hashes,
            parent: Some(5),
            tokens: &tokens,
            block_size: 4,
            lora_name: Some("adapter"),
        },
        WireEvent::Removed { block_hashes: &hashes[..3] },
        WireEvent::Cleared,
    ];
    let read = |form| {
        let (mut payload, mut out) = (Vec::new(), Vec::new());
        write_batch(7.5, &events, Some(300), form, &mut payload);
        let info = EngineEventDecoder::new(FOUR).decode(&payload, &mut out).unwrap();
        assert_eq!(info, BatchInfo { timestamp: 7.5, dp_rank: Some(300) });
        out
    };
    let out = read(WireForm::Map);
    assert_eq!(out, read(WireForm::Array));
    assert_eq!(stored_locals(&out[0]), locals(&tokens, HashSeed::new(Some("adapter"), None)));
    assert_eq!(out.len(), 3);
}

#[test]
fn once_warm_lists_are_used_again() {
    let tokens: Vec<TokenId> = (0..64).collect();
    let stored = WireEvent::Stored {
        block_hashes: &[1, 2, 3, 4],
        parent: None,
        tokens: &tokens,
        block_size: 4,
        lora_name: None,
    };
    let mut payload = Vec::new();
    write_batch(0.0, &[stored], None, WireForm::Map, &mut payload);
    let (mut decoder, mut out) = (EngineEventDecoder::new(FOUR), Vec::new());
    let list = |event: &EngineEvent| match &event.data {
        KvCacheEventData::Stored { blocks, .. } => blocks.as_ptr(),
        other => panic!("{other:?}"),
    };
    decoder.decode(&payload, &mut out).unwrap();
    let first = list(&out[0]);
    decoder.recycle(out.remove(0).data);
    decoder.decode(&payload, &mut out).unwrap();
    assert_eq!(list(&out[0]), first);
}

fn any_wire() -> impl Strategy<Value = Vec<u8>> {
    let stored = (
        prop::collection::vec(any::<u64>(), 0..6),
        any::<Option<u64>>(),
        prop::collection::vec(any::<u32>(), 0..30),
    );
    (prop::collection::vec(stored, 0..4), any::<bool>(), any::<Option<u32>>()).prop_map(
        |(stored, map, rank)| {
            let events: Vec<WireEvent<'_>> = stored
                .iter()
                .flat_map(|(hashes, parent, tokens)| {
                    let (block_hashes, parent) = (&hashes[..], *parent);
                    [
                        WireEvent::Stored { block_hashes, parent, tokens, block_size: 4, lora_name: None },
                        WireEvent::Removed { block_hashes },
                    ]
                })
                .collect();
            let mut payload = Vec::new();
            let form = if map { WireForm::Map } else { WireForm::Array };
            write_batch(1.0, &events, rank, form, &mut payload);
            payload
        },
    )
}

proptest! {
    #[test]
    fn any_bytes_are_a_batch_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let _ = EngineEventDecoder::new(FOUR).decode(&bytes, &mut Vec::new());
    }

    #[test]
    fn a_changed_batch_is_a_batch_or_an_error(
        payload in any_wire(), changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let mut changed = payload.clone();
        for (at, byte) in changes {
            let at = at.index(changed.len());
            changed[at] = byte;
        }
        let (mut decoder, mut out) = (EngineEventDecoder::new(FOUR), Vec::new());
        let _ = decoder.decode(&changed, &mut out);
        let counters = decoder.counters();
        let filtered: u64 = FilterReason::ALL.iter().map(|&reason| counters.filtered(reason)).sum();
        prop_assert_eq!(counters.received, counters.accepted + filtered);
        // The decoder is none the worse for it.
        prop_assert!(decoder.decode(&payload, &mut out).is_ok());
    }
}
