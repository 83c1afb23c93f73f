//! How requests and outputs look on the request plane.
//!
//! A request is a MessagePack map. An output starts with a tag byte: [`TOKENS_ONLY`] is followed by LEB128 token ids
//! to the end of the item (the form of nearly every output: two or three bytes a token), [`FULL`] by a MessagePack
//! map. Neither encoding nor decoding the first form allocates once the buffers are warm.

use crate::{EngineOutput, PreprocessedRequest};

const TOKENS_ONLY: u8 = 0;
const FULL: u8 = 1;

/// Bytes that are not an encoded request or output.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// No bytes at all, or a token id cut short or over 32 bits.
    #[error("malformed engine output")]
    Malformed,
    /// A tag that this release does not know.
    #[error("unknown engine output form {0}")]
    UnknownForm(u8),
    /// The MessagePack part.
    #[error("malformed messagepack: {0}")]
    MessagePack(#[from] rmp_serde::decode::Error),
}

/// Appends the encoded output to `buffer`.
pub fn encode_output(output: &EngineOutput, buffer: &mut Vec<u8>) {
    let tokens_only = output.index.is_none()
        && output.text.is_none()
        && output.finish_reason.is_none()
        && output.stop_reason.is_none()
        && output.log_probs.is_none()
        && output.completion_usage.is_none();
    if tokens_only {
        buffer.push(TOKENS_ONLY);
        for &token in &output.token_ids {
            push_leb128(buffer, token);
        }
    } else {
        buffer.push(FULL);
        write_named(output, buffer);
    }
}

/// Replaces `output` by the one that `bytes` hold.
pub fn decode_output(bytes: &[u8], output: &mut EngineOutput) -> Result<(), DecodeError> {
    match bytes.split_first() {
        None => Err(DecodeError::Malformed),
        Some((&TOKENS_ONLY, mut rest)) => {
            let mut token_ids = std::mem::take(&mut output.token_ids);
            token_ids.clear();
            while !rest.is_empty() {
                token_ids.push(take_leb128(&mut rest).ok_or(DecodeError::Malformed)?);
            }
            *output = EngineOutput { token_ids, ..EngineOutput::default() };
            Ok(())
        }
        Some((&FULL, rest)) => {
            *output = rmp_serde::from_slice(rest)?;
            Ok(())
        }
        Some((&form, _)) => Err(DecodeError::UnknownForm(form)),
    }
}

/// Appends the encoded request to `buffer`.
pub fn encode_request(request: &PreprocessedRequest, buffer: &mut Vec<u8>) {
    write_named(request, buffer);
}

/// Reads a request.
pub fn decode_request(bytes: &[u8]) -> Result<PreprocessedRequest, DecodeError> {
    Ok(rmp_serde::from_slice(bytes)?)
}

fn write_named(value: &impl serde::Serialize, buffer: &mut Vec<u8>) {
    rmp_serde::encode::write_named(buffer, value)
        .expect("a Vec takes all bytes, and these types have only string keys and sized sequences");
}

fn push_leb128(buffer: &mut Vec<u8>, mut value: u32) {
    while value >= 0x80 {
        buffer.push(value as u8 | 0x80);
        value >>= 7;
    }
    buffer.push(value as u8);
}

fn take_leb128(bytes: &mut &[u8]) -> Option<u32> {
    let mut value = 0u32;
    for shift in (0..35).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        let part = u32::from(byte & 0x7f);
        if shift == 28 && part > 0x0f {
            return None;
        }
        value |= part << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use smallvec::smallvec;

    use super::*;
    use crate::{CompletionUsage, FinishReason, PromptTokensDetails};

    fn round_trip(output: &EngineOutput) -> EngineOutput {
        let mut bytes = Vec::new();
        encode_output(output, &mut bytes);
        let mut back = EngineOutput { text: Some("left over".into()), ..EngineOutput::default() };
        decode_output(&bytes, &mut back).unwrap();
        back
    }

    #[test]
    fn tokens_only_is_small() {
        let output =
            EngineOutput { token_ids: smallvec![0, 127, 128, 4095, u32::MAX], ..EngineOutput::default() };
        assert_eq!(round_trip(&output), output);
        let mut bytes = Vec::new();
        encode_output(&EngineOutput { token_ids: smallvec![4095], ..EngineOutput::default() }, &mut bytes);
        assert_eq!(bytes.len(), 3);
    }

    #[test]
    fn the_rest_survives_too() {
        for finish_reason in [FinishReason::Length, FinishReason::Error("boom".into())] {
            let output = EngineOutput {
                token_ids: smallvec![7],
                finish_reason: Some(finish_reason),
                completion_usage: Some(CompletionUsage {
                    prompt_tokens: 3,
                    completion_tokens: 4,
                    total_tokens: 7,
                    prompt_tokens_details: Some(PromptTokensDetails { cached_tokens: 2 }),
                }),
                ..EngineOutput::default()
            };
            assert_eq!(round_trip(&output), output);
        }
    }

    #[test]
    fn bad_bytes_are_errors() {
        let mut output = EngineOutput::default();
        for bytes in [&[][..], &[9], &[0, 0x80], &[0, 0xff, 0xff, 0xff, 0xff, 0x7f], &[1, 0xc1]] {
            assert!(decode_output(bytes, &mut output).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn requests_survive() {
        let request = PreprocessedRequest {
            model: "m".into(),
            token_ids: vec![1, 2, 70000],
            ..PreprocessedRequest::default()
        };
        let mut bytes = Vec::new();
        encode_request(&request, &mut bytes);
        assert_eq!(decode_request(&bytes).unwrap(), request);
    }
}
