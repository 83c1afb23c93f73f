//! Tokens to text, one by one.

use std::sync::Arc;

use crate::{
    decoder_kind::DecoderKind,
    token_table::{FALLBACK_BYTE, RAW, SPECIAL, Token, TokenTable},
    whole_decoder::{self, WholeDecoder},
};

/// Turns the tokens of one answer into text. What it gives out, put together, is what decoding all tokens at once
/// gives; a character that is spread over tokens comes out with the last of them.
///
/// One case differs, since a stream cannot take text back: in a run of fallback bytes (`<0xNN>`) that turns out not
/// to be UTF-8, characters that were complete before the wrong byte stay as they are.
#[derive(Debug)]
pub struct Detokenizer {
    table: Arc<TokenTable>,
    skip_special: bool,
    /// Characters that may still be stripped from the start of the text.
    strip: usize,
    /// The next visible token is the first of the text and decoded by other rules.
    first: bool,
    /// In a run of fallback bytes that is not UTF-8.
    broken_run: bool,
    /// Bytes of an incomplete character, at most 3 between calls.
    carry: Vec<u8>,
    whole: Option<Box<WholeDecoder>>,
}

impl Detokenizer {
    /// Starts an answer to this prompt. The prompt matters where a decoder treats the start of a text otherwise
    /// (strips a space): an answer to a prompt with visible text is not a start.
    pub fn new(table: Arc<TokenTable>, prompt: &[u32], skip_special: bool) -> Self {
        let visible = |id: &u32| table.token(*id).is_some_and(|token| !(skip_special && token.is(SPECIAL)));
        let (mut strip, mut first, mut whole) = (0, false, None);
        match &table.kind {
            DecoderKind::ByteLevel => {}
            DecoderKind::Pieces(pieces) => {
                if (pieces.strip.is_some() || pieces.special_first) && !prompt.iter().rev().any(visible) {
                    strip = pieces.strip.map_or(0, |(_, times)| times);
                    first = pieces.special_first;
                }
            }
            DecoderKind::Whole => whole = Some(Box::new(WholeDecoder::new(prompt))),
        }
        Self { table, skip_special, strip, first, broken_run: false, carry: Vec::new(), whole }
    }

    /// Appends the text that this token completes, if any. Ids outside the vocabulary have no text.
    #[inline]
    pub fn push(&mut self, id: u32, out: &mut String) {
        let Some(token) = self.table.token(id) else { return };
        if self.skip_special && token.is(SPECIAL) {
            return;
        }
        let plain = !token.is(RAW | FALLBACK_BYTE) && self.carry.is_empty() && !self.broken_run;
        if plain && self.strip == 0 && !self.first && self.whole.is_none() {
            out.push_str(self.table.text(token));
            return;
        }
        self.push_slow(id, token, out);
    }

    /// Appends what was held back for a character that never became complete.
    pub fn finish(&mut self, out: &mut String) {
        if let Some(whole) = &mut self.whole {
            whole.finish(&self.table, self.skip_special, out);
        } else if matches!(self.table.kind, DecoderKind::ByteLevel) {
            out.push_str(&String::from_utf8_lossy(&self.carry));
            self.carry.clear();
        } else {
            self.end_run(out);
        }
    }

    fn push_slow(&mut self, id: u32, token: Token, out: &mut String) {
        if let Some(whole) = &mut self.whole {
            whole.push(&self.table, id, self.skip_special, out);
            return;
        }
        if std::mem::take(&mut self.first) {
            out.push_str(&whole_decoder::decode(&self.table, &[id], self.skip_special));
            return;
        }
        let start = out.len();
        if matches!(self.table.kind, DecoderKind::ByteLevel) {
            self.carry.extend_from_slice(self.table.bytes_of(token));
            self.drain_lossy(out);
        } else if token.is(FALLBACK_BYTE) {
            if let Some(byte) = self.table.bytes_of(token).first().copied() {
                self.push_fallback(byte, out);
            }
        } else {
            self.end_run(out);
            out.push_str(self.table.text(token));
        }
        if self.strip > 0 {
            self.strip_start(start, out);
        }
    }

    /// Moves complete characters from the carry to `out`; each ill-formed sequence becomes one U+FFFD.
    fn drain_lossy(&mut self, out: &mut String) {
        let mut rest = self.carry.as_slice();
        let held = loop {
            match std::str::from_utf8(rest) {
                Ok(text) => {
                    out.push_str(text);
                    break 0;
                }
                Err(error) => {
                    let (valid, after) = rest.split_at(error.valid_up_to());
                    out.push_str(std::str::from_utf8(valid).unwrap_or_default());
                    let Some(wrong) = error.error_len() else { break after.len() };
                    out.push(char::REPLACEMENT_CHARACTER);
                    rest = &after[wrong..];
                }
            }
        };
        self.carry.drain(..self.carry.len() - held);
    }

    fn push_fallback(&mut self, byte: u8, out: &mut String) {
        if self.broken_run {
            out.push(char::REPLACEMENT_CHARACTER);
            return;
        }
        self.carry.push(byte);
        match std::str::from_utf8(&self.carry) {
            Ok(text) => {
                out.push_str(text);
                self.carry.clear();
            }
            Err(error) if error.error_len().is_none() => {}
            Err(_) => {
                self.replace_carry(out);
                self.broken_run = true;
            }
        }
    }

    /// A run of fallback bytes is over: what is incomplete is wrong.
    fn end_run(&mut self, out: &mut String) {
        self.replace_carry(out);
        self.broken_run = false;
    }

    fn replace_carry(&mut self, out: &mut String) {
        out.extend(self.carry.drain(..).map(|_| char::REPLACEMENT_CHARACTER));
    }

    fn strip_start(&mut self, start: usize, out: &mut String) {
        let DecoderKind::Pieces(pieces) = &self.table.kind else { return };
        let Some((content, _)) = pieces.strip else { return };
        let mut end = start;
        for symbol in out[start..].chars() {
            if symbol != content || self.strip == 0 {
                self.strip = 0;
                break;
            }
            self.strip -= 1;
            end += symbol.len_utf8();
        }
        out.replace_range(start..end, "");
    }
}

#[cfg(test)]
mod tests;
