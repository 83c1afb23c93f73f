//! The bytes of each token, looked up by id.

use std::sync::Arc;

use crate::decoder_kind::{DecoderKind, Pieces};

/// Largest token id taken from a file: the table has an entry for every id below it, so a wild id in a malformed
/// file would cost memory. Vocabularies of today end below 300,000.
const MAX_TOKEN_ID: u32 = 1 << 24;

/// A special token, left out of the text where the request asks for it.
pub(crate) const SPECIAL: u32 = 1 << 31;
/// The id is in the vocabulary.
const KNOWN: u32 = 1 << 30;
/// A byte of a byte-fallback run.
pub(crate) const FALLBACK_BYTE: u32 = 1 << 29;
/// The bytes are in `raw` (not UTF-8 by themselves), not in `text`.
pub(crate) const RAW: u32 = 1 << 28;
/// The low bits of an entry's second word hold the length.
const LENGTH: u32 = RAW - 1;

/// Why a table could not be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenTableError {
    /// An id that no vocabulary of today has.
    #[error("token id {0} in tokenizer.json is above {MAX_TOKEN_ID}; is the file damaged?")]
    IdTooLarge(u32),
    /// The texts of all tokens together do not fit 32-bit offsets.
    #[error("the tokens of tokenizer.json are longer than 4 GiB together; is the file damaged?")]
    TooLong,
}

#[derive(Clone, Copy, Default)]
struct Entry {
    start: u32,
    /// Flags and length.
    word: u32,
}

/// For each token id its bytes and whether it is special: 8 bytes an id beside the text itself.
///
/// Shared by all requests of a model.
pub struct TokenTable {
    entries: Box<[Entry]>,
    /// Tokens that are UTF-8 by themselves.
    text: String,
    /// The others.
    raw: Vec<u8>,
    pub(crate) kind: DecoderKind,
    pub(crate) whole: Arc<tokenizers::Tokenizer>,
}

impl std::fmt::Debug for TokenTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenTable").field("ids", &self.entries.len()).field("kind", &self.kind).finish()
    }
}

/// What a [`TokenTable`] knows of a token.
#[derive(Clone, Copy)]
pub(crate) struct Token {
    entry: Entry,
}

impl Token {
    #[inline]
    pub(crate) fn is(self, flag: u32) -> bool {
        self.entry.word & flag != 0
    }

    #[inline]
    fn range(self) -> std::ops::Range<usize> {
        let start = self.entry.start as usize;
        start..start + (self.entry.word & LENGTH) as usize
    }
}

impl TokenTable {
    /// Reads all tokens of a tokenizer.
    pub(crate) fn new(tokenizer: Arc<tokenizers::Tokenizer>) -> Result<Self, TokenTableError> {
        let decoder = serde_json::to_value(tokenizer.get_decoder()).unwrap_or_default();
        let kind = DecoderKind::detect(&decoder);
        let added = tokenizer.get_added_tokens_decoder();
        let ids = tokenizer.get_vocab(true).into_values().chain(added.keys().copied()).max();
        let count = match ids {
            Some(id) if id > MAX_TOKEN_ID => return Err(TokenTableError::IdTooLarge(id)),
            Some(id) => id + 1,
            None => 0,
        };
        let mut table = Self {
            entries: Box::default(),
            text: String::new(),
            raw: Vec::new(),
            kind,
            whole: Arc::clone(&tokenizer),
        };
        let specials = tokenizer.get_added_vocabulary();
        let mut entries = Vec::with_capacity(count as usize);
        for id in 0..count {
            entries.push(match tokenizer.id_to_token(id) {
                Some(token) => table.append(&token, specials.is_special_token(&token))?,
                None => Entry::default(),
            });
        }
        table.entries = entries.into_boxed_slice();
        table.text.shrink_to_fit();
        table.raw.shrink_to_fit();
        Ok(table)
    }

    fn append(&mut self, token: &str, special: bool) -> Result<Entry, TokenTableError> {
        let (bytes, fallback) = match &self.kind {
            DecoderKind::ByteLevel => (byte_level(token), false),
            DecoderKind::Pieces(pieces) => piece(token, pieces),
            DecoderKind::Whole => (token.as_bytes().to_vec(), false),
        };
        let mut word =
            u32::try_from(bytes.len()).ok().filter(|len| *len <= LENGTH).ok_or(TokenTableError::TooLong)?;
        word |= KNOWN | if special { SPECIAL } else { 0 } | if fallback { FALLBACK_BYTE } else { 0 };
        let start = match String::from_utf8(bytes) {
            Ok(text) => {
                self.text.push_str(&text);
                self.text.len() - text.len()
            }
            Err(error) => {
                word |= RAW;
                self.raw.extend_from_slice(error.as_bytes());
                self.raw.len() - error.as_bytes().len()
            }
        };
        Ok(Entry { start: u32::try_from(start).map_err(|_| TokenTableError::TooLong)?, word })
    }

    /// One more than the largest id; ids below it may be missing.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no token at all.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether the id is in the vocabulary and special (left out with `skip_special_tokens`).
    #[inline]
    pub fn is_special(&self, id: u32) -> bool {
        self.token(id).is_some_and(|token| token.is(SPECIAL))
    }

    /// The token's own bytes, not always UTF-8; `None` if the id is not in the vocabulary. The space that some
    /// decoders strip from the start of a text is still there.
    pub fn bytes(&self, id: u32) -> Option<&[u8]> {
        self.token(id).map(|token| self.bytes_of(token))
    }

    /// Heap bytes of the table itself.
    pub fn heap_bytes(&self) -> usize {
        size_of_val(&*self.entries) + self.text.capacity() + self.raw.capacity()
    }

    #[inline]
    pub(crate) fn token(&self, id: u32) -> Option<Token> {
        self.entries.get(id as usize).map(|entry| Token { entry: *entry }).filter(|token| token.is(KNOWN))
    }

    /// For tokens without [`RAW`].
    #[inline]
    pub(crate) fn text(&self, token: Token) -> &str {
        &self.text[token.range()]
    }

    pub(crate) fn bytes_of(&self, token: Token) -> &[u8] {
        if token.is(RAW) { &self.raw[token.range()] } else { self.text(token).as_bytes() }
    }
}

/// A token of the byte-level alphabet; one that holds any other character stands for its own UTF-8.
fn byte_level(token: &str) -> Vec<u8> {
    token.chars().map(alphabet_byte).collect::<Option<Vec<u8>>>().unwrap_or_else(|| token.as_bytes().to_vec())
}

/// GPT-2's alphabet: printable Latin-1 stands for itself, the other 68 bytes follow from U+0100 on, in order.
fn alphabet_byte(symbol: char) -> Option<u8> {
    match u32::from(symbol) {
        code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => u8::try_from(code).ok(),
        code @ 0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        code @ 0x121..=0x142 => u8::try_from(code - 0x121 + 0x7f).ok(),
        0x143 => Some(0xad),
        _ => None,
    }
}

/// The symbol of a byte: the other way round.
pub(crate) fn alphabet_symbol(byte: u8) -> char {
    let code = match byte {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => u32::from(byte),
        0x00..=0x20 => u32::from(byte) + 0x100,
        0x7f..=0xa0 => u32::from(byte) - 0x7f + 0x121,
        0xad => 0x143,
    };
    char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// The bytes of a SentencePiece token, and whether it is a fallback byte.
fn piece(token: &str, pieces: &Pieces) -> (Vec<u8>, bool) {
    let mut text = token.to_owned();
    for (from, to) in &pieces.replacements {
        text = text.replace(from.as_str(), to);
    }
    if pieces.byte_fallback
        && text.len() == 6
        && text.starts_with("<0x")
        && text.ends_with('>')
        && let Some(byte) = text.get(3..5).and_then(|hex| u8::from_str_radix(hex, 16).ok())
    {
        return (vec![byte], true);
    }
    (text.into_bytes(), false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_alphabet_covers_each_byte_once() {
        let mut seen: Vec<u8> = (0..0x200).filter_map(char::from_u32).filter_map(alphabet_byte).collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..=255).collect::<Vec<u8>>());
        assert!((0..=255).all(|byte| alphabet_byte(alphabet_symbol(byte)) == Some(byte)));
        assert_eq!(byte_level("Ġhé"), b" h\xe9");
        assert_eq!(byte_level("<|im end|>"), b"<|im end|>", "a space is outside the alphabet");
    }

    #[test]
    fn fallback_bytes_are_recognised_as_the_crate_does() {
        let pieces =
            Pieces {
                byte_fallback: true, replacements: vec![("▁".into(), " ".into())], ..Pieces::default()
            };
        assert_eq!(piece("<0x0A>", &pieces), (vec![b'\n'], true));
        assert_eq!(piece("<0xzz>", &pieces), (b"<0xzz>".to_vec(), false));
        assert_eq!(piece("▁▁a", &pieces), (b"  a".to_vec(), false));
    }
}
