use dynamo_engine_api::{ExternalBlockHash, StoredBlock};
use dynamo_tokens::LocalBlockHash;

use super::*;

fn stored(parent: Option<u64>, hashes: impl IntoIterator<Item = u64>) -> EngineEvent {
    let block = |hash| StoredBlock { block_hash: ExternalBlockHash(hash), tokens_hash: LocalBlockHash(hash) };
    let blocks = hashes.into_iter().map(block).collect();
    let data = KvCacheEventData::Stored { parent_hash: parent.map(ExternalBlockHash), blocks };
    EngineEvent { tier: StorageTier::Device, data }
}

fn removed(hashes: impl IntoIterator<Item = u64>) -> EngineEvent {
    let block_hashes = hashes.into_iter().map(ExternalBlockHash).collect();
    EngineEvent { tier: StorageTier::Device, data: KvCacheEventData::Removed { block_hashes } }
}

fn cleared() -> EngineEvent {
    EngineEvent { tier: StorageTier::Device, data: KvCacheEventData::Cleared }
}

/// The messages that a batch gives.
fn messages(pipeline: &mut EventPipeline, batch: Vec<EngineEvent>) -> Vec<Vec<RouterEvent>> {
    let mut messages = Vec::new();
    let mut send = |message: &[RouterEvent]| messages.push(message.to_vec());
    for event in batch {
        pipeline.push(event, &mut send);
    }
    pipeline.flush(&mut send);
    messages
}

/// The events of a batch that fits in one message.
fn events(pipeline: &mut EventPipeline, batch: Vec<EngineEvent>) -> Vec<(u64, KvCacheEventData)> {
    let messages = messages(pipeline, batch);
    assert!(messages.len() <= 1);
    messages.into_iter().flatten().map(|event| (event.event.event_id, event.event.data)).collect()
}

#[test]
fn changes_that_go_on_are_one_event_and_numbers_have_no_holes() {
    let mut pipeline = EventPipeline::new(7, 2);
    let batch = vec![
        stored(None, [1, 2]),
        stored(Some(2), [3]),
        stored(Some(2), [4]),
        stored(None, [9]),
        removed([4]),
        removed([9]),
        cleared(),
        stored(None, [1]),
    ];
    let expected = [
        (1, stored(None, [1, 2, 3]).data),
        (2, stored(Some(2), [4]).data),
        (3, stored(None, [9]).data),
        (4, removed([4, 9]).data),
        (5, cleared().data),
        (6, stored(None, [1]).data),
    ];
    assert_eq!(events(&mut pipeline, batch), expected);
    // Not over the end of a batch.
    assert_eq!(events(&mut pipeline, vec![stored(Some(1), [2])]), [(7, stored(Some(1), [2]).data)]);
    assert_eq!((pipeline.local().held_blocks(), pipeline.local().failed_events()), (2, 0));
}

#[test]
fn a_block_is_gone_when_its_last_copy_is() {
    let mut pipeline = EventPipeline::new(7, 0);
    let batch = vec![stored(None, [1, 2]), stored(Some(1), [2])];
    assert_eq!(events(&mut pipeline, batch).len(), 2);
    assert_eq!(events(&mut pipeline, vec![removed([2])]), []);
    assert_eq!(pipeline.doubled_blocks(), 1);
    // One that is not known passes.
    assert_eq!(events(&mut pipeline, vec![removed([2, 55])]), [(3, removed([2, 55]).data)]);
    events(&mut pipeline, vec![stored(None, [5]), stored(None, [5]), cleared()]);
    let last = events(&mut pipeline, vec![stored(None, [5]), removed([5])]);
    assert_eq!(last[1].1, removed([5]).data);
}

#[test]
fn an_event_without_blocks_still_has_its_number() {
    let mut pipeline = EventPipeline::new(7, 0);
    assert_eq!(events(&mut pipeline, vec![removed([])]), [(1, removed([]).data)]);
}

#[test]
fn other_tiers_take_no_number() {
    let mut pipeline = EventPipeline::new(7, 0);
    let host = EngineEvent { tier: StorageTier::HostPinned, ..stored(None, [1]) };
    assert_eq!(events(&mut pipeline, vec![host, stored(None, [1])]), [(1, stored(None, [1]).data)]);
    assert_eq!(pipeline.other_tiers(), 1);
}

#[test]
fn messages_are_bounded_in_events_and_in_blocks() {
    let mut pipeline = EventPipeline::new(7, 0);
    let many = (0..300).map(|hash| stored(None, [hash])).collect();
    let sizes: Vec<usize> = messages(&mut pipeline, many).iter().map(Vec::len).collect();
    assert_eq!(sizes, [128, 128, 44]);
    let long = (1..5).map(|number| stored(None, number * 10_000..number * 10_000 + 3000)).collect();
    let sizes: Vec<usize> = messages(&mut pipeline, long).iter().map(Vec::len).collect();
    assert_eq!(sizes, [2, 2]);
    let chain = (100_000..100_200u64).map(|hash| stored(hash.checked_sub(1), [hash])).collect();
    let lengths: Vec<usize> = messages(&mut pipeline, chain)
        .iter()
        .flatten()
        .map(|event| merge::blocks(&event.event.data))
        .collect();
    assert_eq!(lengths, [128, 72]);
}

#[test]
fn what_was_sent_can_be_asked_for_again() {
    let mut pipeline = EventPipeline::new(7, 3);
    let sent: Vec<_> = messages(&mut pipeline, (0..10).map(|hash| stored(None, [hash])).collect())
        .into_iter()
        .flatten()
        .map(|event| event.event)
        .collect();
    let query = KvQuery { dp_rank: 3, start_event_id: Some(4), end_event_id: Some(6) };
    let KvQueryAnswer::Events { events, .. } = pipeline.answer(&query) else { panic!("no events") };
    assert_eq!(events, sent[3..6]);
}
