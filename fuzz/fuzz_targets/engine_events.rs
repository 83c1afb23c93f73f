//! Batches of KV events off an engine's wire, several in a row since the decoder remembers, and on through the publisher.
#![no_main]

use dynamo_engine_api::{KvCacheEventData, RouterEvent};
use dynamo_kv_router::{EngineEventDecoder, EventPipeline, FilterReason};
use dynamo_tokens::BlockSize;
use libfuzzer_sys::fuzz_target;

fn blocks(data: &KvCacheEventData) -> usize {
    match data {
        KvCacheEventData::Stored { blocks, .. } => blocks.len(),
        KvCacheEventData::Removed { block_hashes } => block_hashes.len(),
        KvCacheEventData::Cleared => 0,
    }
}

fuzz_target!(|batches: Vec<Vec<u8>>| {
    let Some(size) = BlockSize::new(4) else { return };
    let (mut decoder, mut events) = (EngineEventDecoder::new(size), Vec::new());
    let (mut pipeline, mut last) = (EventPipeline::new(7, 0), 0);
    for batch in &batches {
        // An error is an answer too.
        let _ = decoder.decode(batch, &mut events);
        let named: usize = events.iter().map(|event| blocks(&event.data)).sum();
        assert!(named <= batch.len());
        let mut send = |message: &[RouterEvent]| {
            for event in message {
                last += 1;
                assert_eq!(event.event.event_id, last);
            }
        };
        events.drain(..).for_each(|event| pipeline.push(event, &mut send));
        pipeline.flush(&mut send);
    }
    let counters = decoder.counters();
    let filtered: u64 = FilterReason::ALL.iter().map(|&reason| counters.filtered(reason)).sum();
    assert_eq!(counters.received, counters.accepted + filtered);
});
