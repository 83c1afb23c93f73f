//! The head of a request.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;

use crate::{ConnectionError, frame::Reader};

/// The longest encoded head (id, path, metadata), in bytes.
pub const MAX_HEAD: usize = 16 * 1024;
const NO_DEADLINE: u64 = u64::MAX;

/// What opens a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Names the request in logs on both sides.
    pub id: Arc<str>,
    /// Who shall answer.
    pub path: Arc<str>,
    /// Time left to answer in, whole milliseconds; none: no limit.
    pub time_left: Option<Duration>,
    /// Trace context and the like.
    pub metadata: Vec<(String, String)>,
    /// Opaque.
    pub payload: Bytes,
}

impl Request {
    /// The head as it travels, or none if it is longer than [`MAX_HEAD`].
    pub(crate) fn encode_head(&self) -> Option<Vec<u8>> {
        let time_left =
            self.time_left.map_or(NO_DEADLINE, |left| u64::try_from(left.as_millis()).unwrap_or(NO_DEADLINE));
        let short = |len: usize| u16::try_from(len).ok();
        let mut head = Vec::with_capacity(64 + self.id.len() + self.path.len());
        head.extend_from_slice(&time_left.to_le_bytes());
        head.extend_from_slice(&u32::try_from(self.payload.len()).ok()?.to_le_bytes());
        head.extend_from_slice(&short(self.id.len())?.to_le_bytes());
        head.extend_from_slice(&short(self.path.len())?.to_le_bytes());
        head.extend_from_slice(&short(self.metadata.len())?.to_le_bytes());
        head.extend_from_slice(self.id.as_bytes());
        head.extend_from_slice(self.path.as_bytes());
        for (key, value) in &self.metadata {
            head.extend_from_slice(&short(key.len())?.to_le_bytes());
            head.extend_from_slice(&short(value.len())?.to_le_bytes());
            head.extend_from_slice(key.as_bytes());
            head.extend_from_slice(value.as_bytes());
            if head.len() > MAX_HEAD {
                return None;
            }
        }
        (head.len() <= MAX_HEAD).then_some(head)
    }

    /// The request without its payload, the payload's length, and the part of the payload that came along.
    pub(crate) fn decode_head(bytes: &[u8]) -> Result<(Self, u32, &[u8]), ConnectionError> {
        let mut reader = Reader::new(bytes, "request");
        let time_left = reader.u64()?;
        let payload_len = reader.u32()?;
        let (id, path, pairs) = (reader.u16()?, reader.u16()?, reader.u16()?);
        let id = reader.text(usize::from(id))?.into();
        let path = reader.text(usize::from(path))?.into();
        let mut metadata = Vec::new();
        for _ in 0..pairs {
            let (key, value) = (reader.u16()?, reader.u16()?);
            let key = reader.text(usize::from(key))?.to_owned();
            metadata.push((key, reader.text(usize::from(value))?.to_owned()));
        }
        let inline = reader.rest();
        if inline.len() > payload_len as usize {
            return Err(ConnectionError::Malformed("request"));
        }
        let time_left = (time_left != NO_DEADLINE).then(|| Duration::from_millis(time_left));
        Ok((Self { id, path, time_left, metadata, payload: Bytes::new() }, payload_len, inline))
    }
}
