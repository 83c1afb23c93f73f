//! Frame headers and the varints within frames.

use crate::{ConnectionError, StreamId};

/// Bytes before a frame's payload: type, flags, length (u16), stream (u32), little-endian.
pub const HEADER_LEN: usize = 8;
/// The longest payload of a frame. At 10 Gb/s it takes 26 µs, which is what a small item waits behind it.
pub const MAX_FRAME_PAYLOAD: usize = 32 * 1024;

pub(crate) const HELLO: u8 = 1;
pub(crate) const REQUEST: u8 = 2;
pub(crate) const PART: u8 = 3;
pub(crate) const ITEMS: u8 = 4;
pub(crate) const WINDOW: u8 = 5;
pub(crate) const CANCEL: u8 = 6;
pub(crate) const PING: u8 = 7;
pub(crate) const PONG: u8 = 8;
pub(crate) const GO_AWAY: u8 = 9;

/// On REQUEST: items of the opener follow the payload.
pub(crate) const FLAG_MORE: u8 = 1;
/// On PART: the payload starts with the message's length.
pub(crate) const FLAG_FIRST: u8 = 1;
/// On CANCEL: kill rather than stop.
pub(crate) const FLAG_KILL: u8 = 1;
/// On GO_AWAY: the path is served again.
pub(crate) const FLAG_BACK: u8 = 1;

/// Kinds of entries in an ITEMS frame; three bits.
pub(crate) const ENTRY_ITEM: u32 = 0;
pub(crate) const ENTRY_END: u32 = 1;
pub(crate) const ENTRY_FAIL: u32 = 2;
pub(crate) const ENTRY_ACCEPTED: u32 = 3;
pub(crate) const ENTRY_KIND_BITS: u32 = 3;
/// Stream id and length, five bytes each at most.
const ENTRY_HEAD_MAX: usize = 10;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) len: usize,
    pub(crate) stream: u32,
}

impl Header {
    pub(crate) fn parse(bytes: &[u8; HEADER_LEN]) -> Result<Self, ConnectionError> {
        let [kind, flags, l0, l1, s0, s1, s2, s3] = *bytes;
        let len = usize::from(u16::from_le_bytes([l0, l1]));
        if len > MAX_FRAME_PAYLOAD {
            return Err(ConnectionError::FrameTooLarge(len));
        }
        Ok(Self { kind, flags, len, stream: u32::from_le_bytes([s0, s1, s2, s3]) })
    }
}

/// Starts a frame whose length is not known yet; returns where it starts.
pub(crate) fn begin(buffer: &mut Vec<u8>, kind: u8, flags: u8, stream: u32) -> usize {
    let start = buffer.len();
    let [s0, s1, s2, s3] = stream.to_le_bytes();
    buffer.extend_from_slice(&[kind, flags, 0, 0, s0, s1, s2, s3]);
    start
}

/// Fills in the length of the frame that started at `start` and ends here.
pub(crate) fn end(buffer: &mut [u8], start: usize) {
    let len = buffer.len() - start - HEADER_LEN;
    debug_assert!(len <= MAX_FRAME_PAYLOAD, "frames are cut before they grow past the maximum");
    buffer[start + 2..start + 4].copy_from_slice(&(len as u16).to_le_bytes());
}

/// Appends a whole frame.
pub(crate) fn put(buffer: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    let start = begin(buffer, kind, flags, stream);
    buffer.extend_from_slice(payload);
    end(buffer, start);
}

/// A run of ITEMS frames, the last one still growing.
#[derive(Debug, Default)]
pub(crate) struct ItemsFrames {
    open: Option<usize>,
}

impl ItemsFrames {
    /// Appends an entry, in a new frame if the current one is full.
    #[inline]
    pub(crate) fn put(&mut self, buffer: &mut Vec<u8>, stream: StreamId, kind: u32, data: &[u8]) {
        let full = |start: usize| {
            buffer.len() - start + ENTRY_HEAD_MAX + data.len() > HEADER_LEN + MAX_FRAME_PAYLOAD
        };
        if self.open.is_none_or(full) {
            self.close(buffer);
            self.open = Some(begin(buffer, ITEMS, 0, 0));
        }
        put_varint(buffer, stream.0);
        put_varint(buffer, (data.len() as u32) << ENTRY_KIND_BITS | kind);
        buffer.extend_from_slice(data);
    }

    /// Ends the current frame.
    pub(crate) fn close(&mut self, buffer: &mut [u8]) {
        if let Some(start) = self.open.take() {
            end(buffer, start);
        }
    }
}

#[inline]
pub(crate) fn put_varint(buffer: &mut Vec<u8>, mut value: u32) {
    while value >= 0x80 {
        buffer.push(value as u8 | 0x80);
        value >>= 7;
    }
    buffer.push(value as u8);
}

#[inline]
pub(crate) fn take_varint(bytes: &mut &[u8]) -> Result<u32, ConnectionError> {
    let mut value = 0u32;
    for shift in (0..35).step_by(7) {
        let Some((&byte, rest)) = bytes.split_first() else { break };
        *bytes = rest;
        let part = u32::from(byte & 0x7f);
        if shift == 28 && part > 0x0f {
            break;
        }
        value |= part << shift;
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(ConnectionError::Malformed("number"))
}

/// Reads fixed-size fields from the front of a payload.
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    what: &'static str,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8], what: &'static str) -> Self {
        Self { bytes, what }
    }

    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8], ConnectionError> {
        let (taken, rest) = self.bytes.split_at_checked(len).ok_or(ConnectionError::Malformed(self.what))?;
        self.bytes = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], ConnectionError> {
        let (taken, rest) =
            self.bytes.split_first_chunk::<N>().ok_or(ConnectionError::Malformed(self.what))?;
        self.bytes = rest;
        Ok(*taken)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, ConnectionError> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, ConnectionError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, ConnectionError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    pub(crate) fn text(&mut self, len: usize) -> Result<&'a str, ConnectionError> {
        let what = self.what;
        std::str::from_utf8(self.take(len)?).map_err(|_| ConnectionError::Malformed(what))
    }

    pub(crate) fn rest(self) -> &'a [u8] {
        self.bytes
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }
}
