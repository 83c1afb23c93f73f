//! Text to tokens.

use std::sync::Arc;

use crate::{TokenTable, TokenTableError, word_encoder::WordEncoder};

/// Why a tokenizer could not be built or could not encode.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// Not a `tokenizer.json` of the `tokenizers` library.
    #[error("tokenizer.json could not be read: {0}")]
    Json(Box<dyn std::error::Error + Send + Sync>),
    /// The vocabulary cannot be tabled.
    #[error(transparent)]
    Table(#[from] TokenTableError),
    /// The text could not be encoded (a vocabulary without an unknown token met a text outside it).
    #[error("the text could not be tokenized: {0}")]
    Encode(Box<dyn std::error::Error + Send + Sync>),
}

/// A model's tokenizer. Shared by all requests; encoding a long text takes long (for some
/// families 0.2 ms per kB), so it belongs on a pool, not on a reactor.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<tokenizers::Tokenizer>,
    table: Arc<TokenTable>,
    /// For tokenizers of a shape that allows it.
    words: Option<Arc<WordEncoder>>,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("table", &self.table)
            .field("by_words", &self.words.is_some())
            .finish()
    }
}

impl Tokenizer {
    /// Reads the contents of a `tokenizer.json`. Truncation and padding that it may ask for are switched off, as they
    /// are a trainer's settings.
    pub fn from_json(json: &[u8]) -> Result<Self, TokenizerError> {
        let mut inner = tokenizers::Tokenizer::from_bytes(json).map_err(TokenizerError::Json)?;
        inner.with_padding(None).with_truncation(None).map_err(TokenizerError::Json)?;
        let inner = Arc::new(inner);
        let table = Arc::new(TokenTable::new(Arc::clone(&inner))?);
        let words = WordEncoder::new(&inner).map(Arc::new);
        Ok(Self { inner, table, words })
    }

    /// The tokens of a text. `add_special` adds what the tokenizer puts around every text (a beginning token): a
    /// rendered chat template already has it.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TokenizerError> {
        if let (Some(words), false) = (&self.words, add_special) {
            return words.encode(&self.inner, text).map_err(TokenizerError::Encode);
        }
        let encoding = self.inner.encode_fast(text, add_special).map_err(TokenizerError::Encode)?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of whole tokens. For answers in progress see [`crate::OutputDecoder`].
    pub fn decode(&self, tokens: &[u32], skip_special: bool) -> String {
        let mut text = String::new();
        let mut detokenizer = crate::Detokenizer::new(Arc::clone(&self.table), &[], skip_special);
        tokens.iter().for_each(|token| detokenizer.push(*token, &mut text));
        detokenizer.finish(&mut text);
        text
    }

    /// The token of exactly this text in the vocabulary, `<s>` for instance.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// One more than the largest token id.
    pub fn vocab_size(&self) -> usize {
        self.table.len()
    }

    /// The bytes of all tokens.
    pub fn table(&self) -> &Arc<TokenTable> {
        &self.table
    }
}

#[cfg(test)]
mod tests;
