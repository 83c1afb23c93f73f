//! From a prompt's text to the ids of its blocks.

use dynamo_text::{Tokenizer, TokenizerError};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// Without a tokenizer, so many bytes count as a token: the usual mean of English text.
const BYTES_PER_TOKEN: usize = 4;
/// Ids have so many bits, so that they survive a JSON double. Among ten million blocks, two differ but share an id in one
/// of 180 traces. Numbering blocks by first sight would make denser ids, but needs a table of all blocks.
const ID_BITS: u32 = 53;

/// The tokenizer did not take a text.
#[derive(Debug, thiserror::Error)]
#[error("the tokenizer cannot encode a prompt: {0}")]
pub struct TokenizerFault(#[from] TokenizerError);

/// Cuts texts into blocks of tokens and names each by all that leads to its end, so that equal ids are equal prefixes.
pub struct PromptBlocks {
    block_size: usize,
    tokenizer: Option<Tokenizer>,
}

impl PromptBlocks {
    /// For blocks of `block_size` tokens. Without a tokenizer, four bytes count as a token.
    #[must_use]
    pub fn new(block_size: u32, tokenizer: Option<Tokenizer>) -> Self {
        Self { block_size: block_size.max(1) as usize, tokenizer }
    }

    /// How many tokens a text has, and the ids of its blocks, the last of which may be partial.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn of(&self, text: &str) -> Result<(u32, Vec<u64>), TokenizerFault> {
        Ok(match &self.tokenizer {
            Some(tokenizer) => {
                let tokens = tokenizer.encode(text, false)?;
                let bytes: Vec<u8> = tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
                (tokens.len() as u32, chain(&bytes, self.block_size * size_of::<u32>()))
            }
            None => {
                let tokens = text.len().div_ceil(BYTES_PER_TOKEN) as u32;
                (tokens, chain(text.as_bytes(), self.block_size * BYTES_PER_TOKEN))
            }
        })
    }
}

fn chain(bytes: &[u8], block_bytes: usize) -> Vec<u64> {
    let mut parent = 0;
    let link = |block: &[u8]| {
        parent = xxh3_64_with_seed(block, parent);
        parent >> (u64::BITS - ID_BITS)
    };
    bytes.chunks(block_bytes).map(link).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_prefixes_share_ids_and_nothing_else_does() {
        let blocks = PromptBlocks::new(2, None);
        let (tokens, ids) = blocks.of("aaaabbbbccccddddeee").unwrap();
        assert_eq!((tokens, ids.len()), (5, 3));
        let (_, longer) = blocks.of("aaaabbbbccccddddeeeeffff").unwrap();
        assert_eq!(ids[..2], longer[..2]);
        assert_ne!(ids[2], longer[2]);
        // The same block after another one is another block.
        assert_ne!(blocks.of("xxxxbbbbccccdddd").unwrap().1[1], ids[1]);
        assert!(ids.iter().all(|id| *id < 1 << ID_BITS));
        assert_eq!(blocks.of("").unwrap(), (0, vec![]));
    }
}
