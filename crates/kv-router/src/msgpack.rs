//! A reader of MessagePack that borrows: what events come in, from engines and from workers.
//!
//! Input is hostile. A length is never more than what is left of the input allows, so nothing is allocated for a claim;
//! nothing recurses, so depth costs nothing; and skipping is linear in the bytes that are there.

/// Why bytes are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The input ends within a value, or a length claims more than there is.
    #[error("the message is cut short")]
    Truncated,
    /// A value of another type than the format has there.
    #[error("a value has the wrong type")]
    Type,
    /// A number that does not fit.
    #[error("a number is out of range")]
    Range,
    /// A field that the format demands is absent.
    #[error("a required field is missing")]
    Missing,
    /// A name that stands for nothing known, where one must be known.
    #[error("an unknown name")]
    Name,
    /// More elements than a message may have.
    #[error("the message has too many elements")]
    TooMany,
    /// Bytes after the end of the message.
    #[error("there is more after the message")]
    Surplus,
}

type Read<T> = Result<T, WireError>;

/// Bytes after a marker that say an unsigned integer of up to 32 bits; 5 stands for all other markers.
const WIDTHS: [u8; 256] = {
    let mut widths = [5; 256];
    let mut marker = 0;
    while marker < 0x80 {
        widths[marker] = 0;
        marker += 1;
    }
    widths[0xcc] = 1;
    widths[0xcd] = 2;
    widths[0xce] = 4;
    widths
};

/// What is left of a message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) const fn empty() -> Self {
        Self { rest: &[] }
    }

    /// The marker of the next value.
    pub(crate) fn peek(&self) -> Read<u8> {
        self.rest.first().copied().ok_or(WireError::Truncated)
    }

    pub(crate) fn is_at_array(&self) -> bool {
        matches!(self.rest.first(), Some(0x90..=0x9f | 0xdc | 0xdd))
    }

    pub(crate) fn is_at_map(&self) -> bool {
        matches!(self.rest.first(), Some(0x80..=0x8f | 0xde | 0xdf))
    }

    pub(crate) fn is_at_str(&self) -> bool {
        matches!(self.rest.first(), Some(0xa0..=0xbf | 0xd9..=0xdb))
    }

    pub(crate) fn is_at_int(&self) -> bool {
        matches!(self.rest.first(), Some(0x00..=0x7f | 0xe0..=0xff | 0xcc..=0xd3))
    }

    /// Fails if anything is left.
    pub(crate) fn end(&self) -> Read<()> {
        if self.rest.is_empty() { Ok(()) } else { Err(WireError::Surplus) }
    }

    /// Takes a nil, if one is next.
    pub(crate) fn take_nil(&mut self) -> bool {
        let is_nil = self.rest.first() == Some(&0xc0);
        if is_nil {
            self.rest = &self.rest[1..];
        }
        is_nil
    }

    /// The number of elements of an array; each takes a byte at least.
    pub(crate) fn array(&mut self) -> Read<usize> {
        let len = match self.byte()? {
            marker @ 0x90..=0x9f => usize::from(marker & 0x0f),
            0xdc => self.length::<2>()?,
            0xdd => self.length::<4>()?,
            _ => return Err(WireError::Type),
        };
        if len > self.rest.len() { Err(WireError::Truncated) } else { Ok(len) }
    }

    /// The number of pairs of a map; each takes two bytes at least.
    pub(crate) fn map(&mut self) -> Read<usize> {
        let len = match self.byte()? {
            marker @ 0x80..=0x8f => usize::from(marker & 0x0f),
            0xde => self.length::<2>()?,
            0xdf => self.length::<4>()?,
            _ => return Err(WireError::Type),
        };
        if len > self.rest.len() / 2 { Err(WireError::Truncated) } else { Ok(len) }
    }

    /// The bytes of a string, or a bin.
    pub(crate) fn bytes(&mut self) -> Read<&'a [u8]> {
        let len = match self.byte()? {
            marker @ 0xa0..=0xbf => usize::from(marker & 0x1f),
            0xc4 | 0xd9 => self.length::<1>()?,
            0xc5 | 0xda => self.length::<2>()?,
            0xc6 | 0xdb => self.length::<4>()?,
            _ => return Err(WireError::Type),
        };
        self.take(len)
    }

    /// A string; not a bin.
    pub(crate) fn str(&mut self) -> Read<&'a str> {
        if !self.is_at_str() {
            self.peek()?;
            return Err(WireError::Type);
        }
        std::str::from_utf8(self.bytes()?).map_err(|_| WireError::Type)
    }

    /// An integer of either sign; a negative one as its bits.
    pub(crate) fn bits(&mut self) -> Read<u64> {
        // The common ones, apart: hashes, and tokens above 127.
        match *self.rest {
            [0xcf | 0xd3, a, b, c, d, e, f, g, h, ref rest @ ..] => {
                self.rest = rest;
                return Ok(u64::from_be_bytes([a, b, c, d, e, f, g, h]));
            }
            [0xcd, a, b, ref rest @ ..] => {
                self.rest = rest;
                return Ok(u64::from(u16::from_be_bytes([a, b])));
            }
            _ => {}
        }
        Ok(match self.byte()? {
            marker @ 0x00..=0x7f => u64::from(marker),
            marker @ 0xe0..=0xff => i64::from(marker as i8) as u64,
            0xcc => u64::from(self.byte()?),
            0xcd => u64::from(u16::from_be_bytes(self.fixed()?)),
            0xce => u64::from(u32::from_be_bytes(self.fixed()?)),
            0xcf => u64::from_be_bytes(self.fixed()?),
            0xd0 => i64::from(self.byte()? as i8) as u64,
            0xd1 => i64::from(i16::from_be_bytes(self.fixed()?)) as u64,
            0xd2 => i64::from(i32::from_be_bytes(self.fixed()?)) as u64,
            0xd3 => u64::from_be_bytes(self.fixed()?),
            _ => return Err(WireError::Type),
        })
    }

    /// An integer of 0 to `u64::MAX`.
    pub(crate) fn u64(&mut self) -> Read<u64> {
        let marker = self.peek()?;
        let bits = self.bits()?;
        let signed = matches!(marker, 0xe0..=0xff | 0xd0..=0xd3);
        if signed && (bits as i64) < 0 { Err(WireError::Range) } else { Ok(bits) }
    }

    /// An integer of 0 to `u32::MAX`.
    pub(crate) fn u32(&mut self) -> Read<u32> {
        // A token nearly always has one of these forms.
        match *self.rest {
            [marker @ 0x00..=0x7f, ref rest @ ..] => {
                self.rest = rest;
                return Ok(u32::from(marker));
            }
            [0xcd, a, b, ref rest @ ..] => {
                self.rest = rest;
                return Ok(u32::from(u16::from_be_bytes([a, b])));
            }
            [0xce, a, b, c, d, ref rest @ ..] => {
                self.rest = rest;
                return Ok(u32::from_be_bytes([a, b, c, d]));
            }
            _ => {}
        }
        u32::try_from(self.u64()?).map_err(|_| WireError::Range)
    }

    /// `count` integers of 0 to `u32::MAX`, appended to `out`. Tokens come in thousands, and their widths in no order
    /// that a processor could foresee: this takes no branch on them. `count` is bounded by the caller.
    pub(crate) fn u32s(&mut self, count: usize, out: &mut Vec<u32>) -> Read<()> {
        // Locals, or each step would wait for the one before to be written.
        let (mut rest, start) = (self.rest, out.len());
        out.resize(start + count, 0);
        let mut slots = out[start..].iter_mut();
        while let Some((&[marker, a, b, c, d], _)) = rest.split_first_chunk() {
            let width = WIDTHS[usize::from(marker)];
            if width > 4 {
                break;
            }
            let Some(slot) = slots.next() else { break };
            let following = u64::from(u32::from_be_bytes([a, b, c, d]));
            let small = u32::from(marker) & u32::from(marker >> 7).wrapping_sub(1);
            *slot = (following >> (32 - 8 * width)) as u32 | small;
            rest = &rest[1 + usize::from(width)..];
        }
        let left = slots.len();
        self.rest = rest;
        out.truncate(start + count - left);
        // Other forms, and what is too near the end to be read so.
        for _ in 0..left {
            out.push(self.u32()?);
        }
        Ok(())
    }

    /// A number of any kind.
    pub(crate) fn number(&mut self) -> Read<f64> {
        match self.peek()? {
            0xca => {
                self.byte()?;
                Ok(f64::from(f32::from_be_bytes(self.fixed()?)))
            }
            0xcb => {
                self.byte()?;
                Ok(f64::from_be_bytes(self.fixed()?))
            }
            0xe0..=0xff | 0xd0..=0xd3 => Ok(self.bits()? as i64 as f64),
            _ => Ok(self.bits()? as f64),
        }
    }

    /// Passes over one value, whatever it contains.
    pub(crate) fn skip(&mut self) -> Read<()> {
        // Each value takes a byte at least, so this many cannot be claimed in vain for long.
        let mut values: u64 = 1;
        while values > 0 {
            values -= 1;
            match self.peek()? {
                0x80..=0x8f | 0xde | 0xdf => values += 2 * self.map()? as u64,
                0x90..=0x9f | 0xdc | 0xdd => values += self.array()? as u64,
                0xa0..=0xbf | 0xc4..=0xc6 | 0xd9..=0xdb => {
                    self.bytes()?;
                }
                _ => self.skip_scalar()?,
            }
        }
        Ok(())
    }

    fn skip_scalar(&mut self) -> Read<()> {
        let len = match self.byte()? {
            0x00..=0x7f | 0xe0..=0xff | 0xc0 | 0xc2 | 0xc3 => 0,
            0xcc | 0xd0 => 1,
            0xcd | 0xd1 => 2,
            0xce | 0xd2 | 0xca => 4,
            0xcf | 0xd3 | 0xcb => 8,
            // Extensions: a type, then data.
            marker @ 0xd4..=0xd8 => 1 + (1 << (marker - 0xd4)),
            0xc7 => 1 + self.length::<1>()?,
            0xc8 => 1 + self.length::<2>()?,
            0xc9 => 1 + self.length::<4>()?,
            _ => return Err(WireError::Type),
        };
        self.take(len).map(|_| ())
    }

    fn byte(&mut self) -> Read<u8> {
        let (&byte, rest) = self.rest.split_first().ok_or(WireError::Truncated)?;
        self.rest = rest;
        Ok(byte)
    }

    fn fixed<const N: usize>(&mut self) -> Read<[u8; N]> {
        let (&bytes, rest) = self.rest.split_first_chunk().ok_or(WireError::Truncated)?;
        self.rest = rest;
        Ok(bytes)
    }

    fn length<const N: usize>(&mut self) -> Read<usize> {
        Ok(self.fixed::<N>()?.iter().fold(0, |length, &byte| length << 8 | usize::from(byte)))
    }

    fn take(&mut self, len: usize) -> Read<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(WireError::Truncated)?;
        self.rest = rest;
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn integers_of_every_width_and_sign() {
        for value in [0, 1, 127, 128, 255, 256, 65535, 65536, u64::from(u32::MAX), 1 << 40, u64::MAX] {
            let bytes = rmp_serde::to_vec(&value).unwrap();
            assert_eq!(Reader::new(&bytes).u64(), Ok(value));
            assert_eq!(Reader::new(&bytes).bits(), Ok(value));
            assert_eq!(Reader::new(&bytes).u32().ok(), u32::try_from(value).ok());
            assert_eq!(Reader::new(&bytes).number(), Ok(value as f64));
        }
        for value in [-1i64, -32, -33, -128, -129, -40_000, -3_000_000_000, i64::MIN] {
            let bytes = rmp_serde::to_vec(&value).unwrap();
            assert_eq!(Reader::new(&bytes).bits(), Ok(value as u64));
            assert_eq!(Reader::new(&bytes).u64(), Err(WireError::Range));
            assert_eq!(Reader::new(&bytes).number(), Ok(value as f64));
        }
    }

    #[test]
    fn a_claim_beyond_the_input_is_refused_at_once() {
        assert_eq!(Reader::new(&[0xdd, 0xff, 0xff, 0xff, 0xff, 1]).array(), Err(WireError::Truncated));
        assert_eq!(Reader::new(&[0xdf, 0xff, 0xff, 0xff, 0xff, 1, 1]).map(), Err(WireError::Truncated));
        assert_eq!(Reader::new(&[0xc6, 0xff, 0xff, 0xff, 0xff, 1]).bytes(), Err(WireError::Truncated));
        assert_eq!(Reader::new(&[0xdb, 0xff]).skip(), Err(WireError::Truncated));
    }

    #[test]
    fn the_deepest_nesting_is_skipped_without_a_stack() {
        let mut bytes = vec![0x91; 1_000_000];
        bytes.push(0xc0);
        let mut reader = Reader::new(&bytes);
        assert_eq!(reader.skip(), Ok(()));
        assert_eq!(reader.end(), Ok(()));
    }

    proptest! {
        #[test]
        fn many_integers_are_read_like_one_after_the_other(
            values in prop::collection::vec(prop_oneof![0..200u64, 0..70_000u64, any::<u32>().prop_map(u64::from),
                (1u64 << 32)..(1 << 33)], 0..40),
            more in prop::collection::vec(any::<u8>(), 0..6),
        ) {
            let mut bytes: Vec<u8> = values.iter().flat_map(|value| rmp_serde::to_vec(value).unwrap()).collect();
            bytes.extend(&more);
            let (mut many, mut single) = (Reader::new(&bytes), Reader::new(&bytes));
            let mut out = Vec::new();
            let expected: Read<Vec<u32>> = values.iter().map(|_| single.u32()).collect();
            prop_assert_eq!(many.u32s(values.len(), &mut out).map(|()| out), expected.clone());
            if expected.is_ok() {
                prop_assert_eq!(many.rest, &more[..]);
            }
        }

        #[test]
        fn skipping_any_bytes_ends(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut reader = Reader::new(&bytes);
            if reader.skip().is_ok() {
                prop_assert!(reader.rest.len() < bytes.len());
            }
        }

        #[test]
        fn skipping_passes_over_exactly_one_value(
            value in prop::collection::vec((any::<i64>(), ".*", prop::option::of(any::<f64>())), 0..20),
        ) {
            let mut bytes = rmp_serde::to_vec_named(&value).unwrap();
            bytes.push(0x2a);
            let mut reader = Reader::new(&bytes);
            prop_assert_eq!(reader.skip(), Ok(()));
            prop_assert_eq!(reader.u64(), Ok(42));
            prop_assert_eq!(reader.end(), Ok(()));
        }
    }
}
