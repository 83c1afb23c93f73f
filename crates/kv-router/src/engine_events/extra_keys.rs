//! What besides tokens an engine's blocks depend on: images, and the salt.

use crate::msgpack::{Reader, WireError};

/// Salts of requests that came through this stack bear this mark; what an engine mixes in otherwise is its own business.
const SALT_PREFIX: &str = "dynamo-cache-salt:";

/// Digits of an image's identifier that say something; the rest of its 64 digits are zeros.
const OBJECT_DIGITS: usize = 16;

/// The `extra_keys` of an event: for each block nil, or a list of strings and nested lists.
pub(super) struct ExtraKeys<'a> {
    reader: Reader<'a>,
    left: usize,
}

impl<'a> ExtraKeys<'a> {
    /// Of an event without any.
    pub(super) const fn none() -> Self {
        Self { reader: Reader::empty(), left: 0 }
    }

    /// Of the array that is next.
    pub(super) fn read(mut reader: Reader<'a>) -> Result<Self, WireError> {
        let left = reader.array()?;
        Ok(Self { reader, left })
    }

    /// The salt that the next block names, and the objects in it, which are left in `objects`, ascending.
    pub(super) fn next_block(&mut self, objects: &mut Vec<u64>) -> Result<Option<&'a str>, WireError> {
        objects.clear();
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        if self.reader.take_nil() {
            return Ok(None);
        }
        let (mut salt, mut values) = (None, 1);
        while values > 0 {
            values -= 1;
            if self.reader.is_at_array() {
                values += self.reader.array()?;
            } else if self.reader.is_at_str() {
                let text = self.reader.str()?;
                match text.strip_prefix(SALT_PREFIX) {
                    Some(found) => salt = Some(found),
                    None => objects.extend(object(text)),
                }
            } else {
                self.reader.skip()?;
            }
        }
        objects.sort_unstable();
        Ok(salt)
    }
}

/// The hash of an image that an identifier stands for, if it is one of this stack's.
fn object(identifier: &str) -> Option<u64> {
    let (digits, zeros) = identifier.split_at_checked(OBJECT_DIGITS)?;
    let is_ours = zeros.len() == 64 - OBJECT_DIGITS && zeros.bytes().all(|digit| digit == b'0');
    let is_hex = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    if is_ours && is_hex { u64::from_str_radix(digits, 16).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_and_salts_are_found_at_any_depth() {
        let id = |number: u64| format!("{number:016x}{}", "0".repeat(48));
        let json = serde_json::json!([
            null,
            [[id(9), 4], "a-lora", "dynamo-cache-salt:tenant", {"map": id(1)}],
            [id(7), [[id(3)]], "f".repeat(64)],
        ]);
        let bytes = rmp_serde::to_vec_named(&json).unwrap();
        let mut keys = ExtraKeys::read(Reader::new(&bytes)).unwrap();
        let mut objects = vec![1];
        assert_eq!((keys.next_block(&mut objects), objects.len()), (Ok(None), 0));
        assert_eq!(keys.next_block(&mut objects), Ok(Some("tenant")));
        assert_eq!(objects, [9]);
        assert_eq!(keys.next_block(&mut objects), Ok(None));
        assert_eq!(objects, [3, 7]);
        assert_eq!(keys.next_block(&mut objects), Ok(None));
        assert!(objects.is_empty());
    }
}
