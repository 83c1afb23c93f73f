//! A short way from text to tokens for byte-level BPE: words are cut without offsets, and their tokens remembered.

use std::{
    collections::HashMap,
    sync::{PoisonError, RwLock},
};

use aho_corasick::{AhoCorasick, MatchKind};
use tokenizers::{AddedToken, Model, Tokenizer};

use crate::{char_class::CharClasses, token_table::alphabet_symbol, word_split::WordPattern};

/// Words remembered: about 3 MB. When they are that many, all are forgotten: what is frequent is back soon.
const CACHED_WORDS: usize = 1 << 15;
/// Longer words are rare, and not remembered.
const CACHED_BYTES: usize = 48;

/// The tokens of words. The hasher is keyed: words come from outside.
type Words = HashMap<Box<str>, Box<[u32]>>;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Gives the same tokens as the `tokenizers` crate without special tokens added, for tokenizers of the shape that it
/// knows: a byte-level BPE with a known word pattern, NFC or no normalizer, and added tokens that match as they are.
pub(crate) struct WordEncoder {
    pattern: WordPattern,
    /// Added tokens are cut out first: those of the text as it came, then those of the normalized text.
    added: Vec<(AhoCorasick, Vec<u32>)>,
    nfc: bool,
    cache: RwLock<Words>,
}

impl WordEncoder {
    /// `None` if the tokenizer is of another shape.
    pub(crate) fn new(tokenizer: &Tokenizer) -> Option<Self> {
        let pattern = WordPattern::detect(&serde_json::to_value(tokenizer.get_pre_tokenizer()).ok()?)?;
        let nfc = match serde_json::to_value(tokenizer.get_normalizer()).ok()? {
            serde_json::Value::Null => false,
            normalizer if normalizer["type"] == "NFC" => true,
            _ => return None,
        };
        let tokenizers::ModelWrapper::BPE(model) = tokenizer.get_model() else { return None };
        let random = model.dropout.is_some_and(|dropout| dropout > 0.0);
        let joins = model.continuing_subword_prefix.is_some() || model.end_of_word_suffix.is_some();
        if random || joins || tokenizer.get_added_vocabulary().get_encode_special_tokens() {
            return None;
        }
        let tokens = tokenizer.get_added_tokens_decoder();
        let plain = |token: &AddedToken| {
            let exact = !token.lstrip && !token.rstrip && !token.single_word && !token.content.is_empty();
            exact && !(token.normalized && nfc)
        };
        if !tokens.values().all(plain) {
            return None;
        }
        let mut added = Vec::new();
        for normalized in [false, true] {
            let contents: Vec<&str> = tokens
                .values()
                .filter(|token| token.normalized == normalized)
                .map(|token| token.content.as_str())
                .collect();
            if contents.is_empty() {
                continue;
            }
            let ids: Option<Vec<u32>> =
                contents.iter().map(|content| tokenizer.token_to_id(content)).collect();
            let matcher =
                AhoCorasick::builder().match_kind(MatchKind::LeftmostLongest).build(&contents).ok()?;
            added.push((matcher, ids?));
        }
        // Filled now rather than in the first request.
        CharClasses::get();
        Some(Self { pattern, added, nfc, cache: RwLock::default() })
    }

    /// The tokens of a text, none added around it.
    pub(crate) fn encode(&self, tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>, Failure> {
        let cache = self.cache.read().unwrap_or_else(PoisonError::into_inner);
        let ids = Vec::with_capacity(text.len() / 3 + 1);
        let mut run = Run { encoder: self, tokenizer, cache: &cache, fresh: Vec::new(), ids };
        run.cut(text, &self.added)?;
        let Run { ids, fresh, .. } = run;
        drop(cache);
        // Another thread that is reading or writing has the same words, or will: nobody waits here.
        if !fresh.is_empty()
            && let Ok(mut cache) = self.cache.try_write()
        {
            if cache.len() + fresh.len() > CACHED_WORDS {
                cache.clear();
            }
            cache.extend(fresh.into_iter().take(CACHED_WORDS));
        }
        Ok(ids)
    }
}

/// One text on its way.
struct Run<'a> {
    encoder: &'a WordEncoder,
    tokenizer: &'a Tokenizer,
    cache: &'a Words,
    ids: Vec<u32>,
    /// Words that the cache did not know.
    fresh: Vec<(Box<str>, Box<[u32]>)>,
}

impl Run<'_> {
    /// Takes out added tokens, matcher by matcher, and encodes what is between them.
    fn cut(&mut self, text: &str, matchers: &[(AhoCorasick, Vec<u32>)]) -> Result<(), Failure> {
        let Some(((matcher, added), others)) = matchers.split_first() else { return self.segment(text) };
        let mut from = 0;
        for found in matcher.find_iter(text) {
            self.cut(&text[from..found.start()], others)?;
            self.ids.push(added[found.pattern()]);
            from = found.end();
        }
        self.cut(&text[from..], others)
    }

    fn segment(&mut self, text: &str) -> Result<(), Failure> {
        if self.encoder.nfc && !text.chars().all(stays_in_nfc) {
            let encoding = self.tokenizer.encode_fast(text, false)?;
            self.ids.extend_from_slice(encoding.get_ids());
            return Ok(());
        }
        for word in self.encoder.pattern.words(text) {
            if let Some(known) = self.cache.get(word) {
                self.ids.extend_from_slice(known);
                continue;
            }
            let symbols: String = word.bytes().map(alphabet_symbol).collect();
            let tokens = self.tokenizer.get_model().tokenize(&symbols)?;
            let first = self.ids.len();
            self.ids.extend(tokens.iter().map(|token| token.id));
            if word.len() <= CACHED_BYTES {
                self.fresh.push((word.into(), self.ids[first..].into()));
            }
        }
        Ok(())
    }
}

/// Ranges of characters that NFC leaves alone whatever stands beside them, as long as that is of these ranges too:
/// Latin, Greek-free European letters, punctuation, Cyrillic, Chinese, Japanese, Korean, most emoji.
fn stays_in_nfc(symbol: char) -> bool {
    matches!(u32::from(symbol),
        0..=0x2ff | 0x400..=0x482 | 0x48a..=0x52f | 0x2010..=0x205f | 0x3001..=0x3029 | 0x3041..=0x3096
        | 0x309b..=0x30ff | 0x4e00..=0x9fff | 0xac00..=0xd7a3 | 0xff01..=0xff60 | 0x1f300..=0x1faff)
}

#[cfg(test)]
mod tests;
