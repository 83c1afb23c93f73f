//! The fields of one event, in either of its forms: an array with the tag first, or a map with the tag under `type`.

use dynamo_tokens::TokenId;

use crate::msgpack::{Reader, WireError};

/// Tokens of one event at most: more than any context has.
const MAX_TOKENS: usize = 1 << 22;
/// Blocks of one event at most.
const MAX_BLOCKS: usize = 1 << 18;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Stored,
    Removed,
    Cleared,
    Ignored,
    Unknown,
}

impl Kind {
    fn of(tag: &[u8]) -> Self {
        match tag {
            b"BlockStored" => Self::Stored,
            b"BlockRemoved" => Self::Removed,
            b"AllBlocksCleared" => Self::Cleared,
            b"Ignored" => Self::Ignored,
            _ => Self::Unknown,
        }
    }
}

/// What one event says. Its hashes and tokens are in [`Lists`].
#[derive(Default)]
pub(super) struct Fields<'a> {
    pub(super) kind: Option<Kind>,
    pub(super) parent: Option<u64>,
    pub(super) block_size: Option<u64>,
    pub(super) medium: Option<&'a [u8]>,
    pub(super) lora_name: Option<&'a str>,
    pub(super) cache_salt: Option<&'a str>,
    pub(super) extra_keys: Option<Reader<'a>>,
    pub(super) group: Option<u32>,
    pub(super) spec_kind: Option<&'a [u8]>,
    pub(super) remote: bool,
    /// Tokens came in overlapping pairs; the last one's second follows in the list.
    pub(super) pairs: bool,
}

/// Scratch space, kept for its memory.
#[derive(Default)]
pub(super) struct Lists {
    pub(super) hashes: Vec<u64>,
    pub(super) tokens: Vec<TokenId>,
}

impl<'a> Fields<'a> {
    pub(super) fn read(reader: &mut Reader<'a>, lists: &mut Lists) -> Result<Self, WireError> {
        lists.hashes.clear();
        lists.tokens.clear();
        let mut fields = Self::default();
        if reader.is_at_map() {
            fields.read_map(reader, lists)?;
        } else {
            fields.read_array(reader, lists)?;
        }
        Ok(fields)
    }

    fn read_map(&mut self, reader: &mut Reader<'a>, lists: &mut Lists) -> Result<(), WireError> {
        for _ in 0..reader.map()? {
            let key = reader.bytes()?;
            // An absent value is an absent field.
            if reader.take_nil() {
                continue;
            }
            match key {
                b"type" => self.kind = Some(Kind::of(reader.bytes()?)),
                b"block_hashes" => read_hashes(reader, &mut lists.hashes)?,
                b"parent_block_hash" => self.parent = Some(hash(reader)?),
                b"token_ids" => self.pairs = read_tokens(reader, &mut lists.tokens)?,
                b"block_size" => self.block_size = Some(reader.u64()?),
                b"medium" => self.medium = Some(reader.bytes()?),
                b"lora_name" => self.read_name(reader)?,
                b"cache_salt" => self.cache_salt = Some(reader.str()?),
                b"extra_keys" => self.read_extra_keys(reader)?,
                b"group_idx" => self.group = Some(reader.u32()?),
                b"kv_cache_spec_kind" => self.spec_kind = Some(reader.bytes()?),
                b"locality" => self.remote = reader.bytes()? == b"REMOTE",
                _ => reader.skip()?,
            }
        }
        Ok(())
    }

    fn read_array(&mut self, reader: &mut Reader<'a>, lists: &mut Lists) -> Result<(), WireError> {
        let elements = reader.array()?;
        if elements == 0 {
            return Err(WireError::Missing);
        }
        let kind = Kind::of(reader.bytes()?);
        self.kind = Some(kind);
        for position in 1..elements {
            if reader.take_nil() {
                continue;
            }
            match (kind, position) {
                (Kind::Stored | Kind::Removed, 1) => read_hashes(reader, &mut lists.hashes)?,
                (Kind::Stored, 2) => self.parent = Some(hash(reader)?),
                (Kind::Stored, 3) => self.pairs = read_tokens(reader, &mut lists.tokens)?,
                (Kind::Stored, 4) => self.block_size = Some(reader.u64()?),
                (Kind::Stored, 6) | (Kind::Removed, 2) => self.medium = Some(reader.bytes()?),
                (Kind::Stored, 7) => self.read_name(reader)?,
                (Kind::Stored, 8) => self.read_extra_keys(reader)?,
                (Kind::Stored, 9..) | (Kind::Removed, 3..) => self.read_tail(reader)?,
                _ => reader.skip()?,
            }
        }
        Ok(())
    }

    /// Elements that are told apart by their type: the first number is the group, the first string the kind of its layers.
    fn read_tail(&mut self, reader: &mut Reader<'a>) -> Result<(), WireError> {
        if reader.is_at_int() && self.group.is_none() {
            self.group = Some(reader.u32()?);
        } else if reader.is_at_str() && self.spec_kind.is_none() {
            self.spec_kind = Some(reader.bytes()?);
        } else {
            reader.skip()?;
        }
        Ok(())
    }

    /// An adapter's name, or in its place a map with the salt.
    fn read_name(&mut self, reader: &mut Reader<'a>) -> Result<(), WireError> {
        if !reader.is_at_map() {
            self.lora_name = Some(reader.str()?);
            return Ok(());
        }
        for _ in 0..reader.map()? {
            match reader.bytes()? {
                b"cache_salt" if !reader.take_nil() => self.cache_salt = Some(reader.str()?),
                b"cache_salt" => {}
                _ => reader.skip()?,
            }
        }
        Ok(())
    }

    fn read_extra_keys(&mut self, reader: &mut Reader<'a>) -> Result<(), WireError> {
        self.extra_keys = Some(*reader);
        reader.skip()
    }
}

/// A number, or the bytes of a longer hash, of which the last eight count.
fn hash(reader: &mut Reader<'_>) -> Result<u64, WireError> {
    if reader.is_at_int() {
        return reader.bits();
    }
    let bytes = reader.bytes()?;
    let last = bytes.last_chunk().ok_or(WireError::Range)?;
    Ok(u64::from_be_bytes(*last))
}

fn read_hashes(reader: &mut Reader<'_>, out: &mut Vec<u64>) -> Result<(), WireError> {
    let count = reader.array()?;
    if count > MAX_BLOCKS {
        return Err(WireError::TooMany);
    }
    out.clear();
    // A claim was checked against the bytes that are there.
    out.reserve(count);
    for _ in 0..count {
        out.push(hash(reader)?);
    }
    Ok(())
}

/// Returns whether the tokens came in pairs.
fn read_tokens(reader: &mut Reader<'_>, out: &mut Vec<TokenId>) -> Result<bool, WireError> {
    let count = reader.array()?;
    if count > MAX_TOKENS {
        return Err(WireError::TooMany);
    }
    out.clear();
    out.reserve(count + 1);
    let pairs = reader.is_at_array() && count > 0;
    if !pairs {
        reader.u32s(count, out)?;
        return Ok(false);
    }
    let mut second = 0;
    for _ in 0..count {
        if reader.array()? != 2 {
            return Err(WireError::Type);
        }
        out.push(reader.u32()?);
        second = reader.u32()?;
    }
    out.push(second);
    Ok(true)
}
