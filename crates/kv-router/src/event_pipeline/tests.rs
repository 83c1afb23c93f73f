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

fn on(tier: StorageTier, event: EngineEvent) -> EngineEvent {
    EngineEvent { tier, ..event }
}

#[test]
fn tiers_share_one_order_and_are_not_merged() {
    let (host, disk) = (StorageTier::HostPinned, StorageTier::Disk);
    let mut pipeline = EventPipeline::new(7, 0);
    let batch = vec![
        stored(None, [1]),
        on(host, stored(None, [1])),
        on(host, stored(Some(1), [2])),
        on(disk, stored(Some(2), [3])),
        removed([1]),
        on(disk, removed([3])),
    ];
    let sent: Vec<_> = messages(&mut pipeline, batch).into_iter().flatten().collect();
    let sent: Vec<_> =
        sent.into_iter().map(|event| (event.event.event_id, event.storage_tier, event.event.data)).collect();
    let expected = [
        (1, StorageTier::Device, stored(None, [1]).data),
        (2, host, stored(None, [1, 2]).data),
        (3, disk, stored(Some(2), [3]).data),
        (4, StorageTier::Device, removed([1]).data),
        (5, disk, removed([3]).data),
    ];
    assert_eq!(sent, expected);
    assert_eq!((pipeline.lower_tiers(), pipeline.local().failed_events()), (4, 0));
    let query = KvQuery { dp_rank: 0, start_event_id: Some(2), end_event_id: Some(2) };
    let KvQueryAnswer::Events { events, .. } = pipeline.answer(&query) else { panic!("no events") };
    assert_eq!((events[0].storage_tier, &events[0].data), (host, &expected[1].2));
}

#[test]
fn copies_are_counted_tier_by_tier() {
    let host = StorageTier::HostPinned;
    let mut pipeline = EventPipeline::new(7, 0);
    let twice = vec![stored(None, [1]), on(host, stored(None, [1])), on(host, stored(None, [1]))];
    assert_eq!(events(&mut pipeline, twice).len(), 3);
    assert_eq!(events(&mut pipeline, vec![on(host, removed([1]))]), []);
    assert_eq!(events(&mut pipeline, vec![removed([1])]), [(4, removed([1]).data)]);
    assert_eq!(events(&mut pipeline, vec![on(host, removed([1]))]), [(5, removed([1]).data)]);
    assert_eq!((pipeline.doubled_blocks(), pipeline.local().failed_events()), (1, 0));
}

#[test]
fn what_was_never_stored_on_a_lower_tier_is_not_published() {
    let disk = StorageTier::Disk;
    let mut pipeline = EventPipeline::new(7, 0);
    // Nobody has its parent; then it is not there to be removed either.
    let orphan = vec![on(disk, stored(Some(8), [9])), on(disk, removed([9])), on(disk, removed([]))];
    assert_eq!(events(&mut pipeline, orphan), []);
    assert_eq!(pipeline.local().failed_events(), 2);
    // It was not counted as a copy.
    let batch = vec![on(disk, stored(None, [9])), on(disk, removed([9, 10]))];
    assert_eq!(events(&mut pipeline, batch)[1], (2, removed([9]).data));
}

#[test]
fn a_clear_concerns_all_tiers() {
    let host = StorageTier::HostPinned;
    let mut pipeline = EventPipeline::new(7, 0);
    events(&mut pipeline, vec![on(host, stored(None, [1])), on(host, cleared())]);
    let messages = messages(&mut pipeline, vec![on(host, removed([1])), on(host, stored(None, [1]))]);
    assert_eq!((messages[0].len(), messages[0][0].event.event_id), (1, 3));
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
        .map(RankEvent::from)
        .collect();
    let query = KvQuery { dp_rank: 3, start_event_id: Some(4), end_event_id: Some(6) };
    let KvQueryAnswer::Events { events, .. } = pipeline.answer(&query) else { panic!("no events") };
    assert_eq!(events, sent[3..6]);
}
