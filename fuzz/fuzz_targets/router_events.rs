//! Messages of KV events off the event plane.
#![no_main]

use dynamo_kv_router::RouterEventDecoder;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|message: &[u8]| {
    let (mut decoder, mut events) = (RouterEventDecoder::new(), Vec::new());
    // An error is an answer too.
    let _ = decoder.decode(message, &mut events);
    events.drain(..).for_each(|event| decoder.recycle(event.event.data));
});
