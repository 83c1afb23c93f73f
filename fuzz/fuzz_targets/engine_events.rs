//! Batches of KV events off an engine's wire: several in a row, since the decoder remembers.
#![no_main]

use dynamo_kv_router::{EngineEventDecoder, FilterReason};
use dynamo_tokens::BlockSize;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|batches: Vec<Vec<u8>>| {
    let Some(size) = BlockSize::new(4) else { return };
    let (mut decoder, mut events) = (EngineEventDecoder::new(size), Vec::new());
    for batch in &batches {
        // An error is an answer too.
        let _ = decoder.decode(batch, &mut events);
        events.drain(..).for_each(|event| decoder.recycle(event.data));
    }
    let counters = decoder.counters();
    let filtered: u64 = FilterReason::ALL.iter().map(|&reason| counters.filtered(reason)).sum();
    assert_eq!(counters.received, counters.accepted + filtered);
});
