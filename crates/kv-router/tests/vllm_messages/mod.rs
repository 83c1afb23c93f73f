//! Messages of a real vLLM 0.32.0 (`data/vllm-0.32.0-kv-events.jsonl`: ZMQ frames in base64).

use dynamo_tokens::BlockSize;
use serde_json::Value;

const MESSAGES: &str = include_str!("../data/vllm-0.32.0-kv-events.jsonl");

/// Its blocks.
pub(crate) const SIZE: BlockSize = BlockSize::new(32).unwrap();

fn base64(text: &str) -> Vec<u8> {
    const DIGITS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bytes, mut bits, mut count) = (Vec::new(), 0u32, 0);
    for digit in text.bytes().filter(|&digit| digit != b'=') {
        bits = bits << 6 | DIGITS.find(char::from(digit)).unwrap() as u32;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    bytes
}

/// Sequence numbers and payloads.
pub(crate) fn messages() -> Vec<(u64, Vec<u8>)> {
    let message = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        let [topic, sequence, payload] =
            [0, 1, 2].map(|frame| base64(line["frames"][frame].as_str().unwrap()));
        assert_eq!(topic, b"");
        (u64::from_be_bytes(sequence.try_into().unwrap()), payload)
    };
    MESSAGES.lines().map(message).collect()
}
