//! A sequence that grows token by token and hashes each block when it becomes whole.

use crate::{BlockSize, HashSeed, LocalBlockHash, SequenceHash, TokenId};

/// Tokens with the hashes of their whole blocks, kept up to date as tokens are appended.
#[derive(Clone, Debug)]
pub struct TokenSequence {
    block_size: BlockSize,
    seed: HashSeed,
    tokens: Vec<TokenId>,
    local: Vec<LocalBlockHash>,
    sequence: Vec<SequenceHash>,
}

impl TokenSequence {
    /// Takes the prompt; hashes its whole blocks.
    pub fn new(tokens: Vec<TokenId>, block_size: BlockSize, seed: HashSeed) -> Self {
        let (mut local, mut sequence) = (Vec::new(), Vec::new());
        crate::local_block_hashes(&tokens, block_size, seed, &mut local);
        crate::sequence_hashes(&local, &mut sequence);
        Self { block_size, seed, tokens, local, sequence }
    }

    /// Appends a token; returns the index of the block that it completed, if it did.
    pub fn push(&mut self, token: TokenId) -> Option<usize> {
        self.tokens.push(token);
        let size = self.block_size.get();
        if !self.tokens.len().is_multiple_of(size) {
            return None;
        }
        let local = LocalBlockHash::of(&self.tokens[self.tokens.len() - size..], self.seed);
        self.sequence.push(SequenceHash::chain(self.sequence.last().copied(), local));
        self.local.push(local);
        Some(self.local.len() - 1)
    }

    /// All tokens so far.
    pub fn tokens(&self) -> &[TokenId] {
        &self.tokens
    }

    /// Local hashes of the whole blocks, first to last.
    pub fn local_hashes(&self) -> &[LocalBlockHash] {
        &self.local
    }

    /// Sequence hashes of the whole blocks, first to last.
    pub fn sequence_hashes(&self) -> &[SequenceHash] {
        &self.sequence
    }

    /// Tokens per block.
    pub fn block_size(&self) -> BlockSize {
        self.block_size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growing_equals_starting_whole() {
        let size = BlockSize::new(3).unwrap();
        let tokens: Vec<TokenId> = (0..20).collect();
        let whole = TokenSequence::new(tokens.clone(), size, HashSeed::PLAIN);
        let mut grown = TokenSequence::new(tokens[..4].to_vec(), size, HashSeed::PLAIN);
        let completed: Vec<usize> = tokens[4..].iter().filter_map(|&token| grown.push(token)).collect();
        assert_eq!(completed, [1, 2, 3, 4, 5]);
        assert_eq!(grown.local_hashes(), whole.local_hashes());
        assert_eq!(grown.sequence_hashes(), whole.sequence_hashes());
    }
}
