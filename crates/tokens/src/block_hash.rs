//! Local and sequence hashes: XXH3-64 with an explicit seed over little-endian bytes.

use std::num::NonZeroU32;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::{TokenId, block_hasher::BlockHasher};

/// The seed of every chain, and of local hashes without adapter or salt.
const CHAIN_SEED: u64 = 1337;
/// The seed under which an adapter's name is hashed.
const LORA_NAME_SEED: u64 = 0;
/// The seed under which a cache salt is hashed.
const CACHE_SALT_SEED: u64 = 1;

/// Tokens per block, at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BlockSize(NonZeroU32);

impl BlockSize {
    /// `None` for zero.
    pub const fn new(tokens: u32) -> Option<Self> {
        match NonZeroU32::new(tokens) {
            Some(tokens) => Some(Self(tokens)),
            None => None,
        }
    }

    /// Tokens per block.
    pub const fn get(self) -> usize {
        self.0.get() as usize
    }

    /// Blocks needed to hold `tokens`, the last one perhaps in part.
    pub const fn blocks_for(self, tokens: usize) -> usize {
        tokens.div_ceil(self.get())
    }
}

/// The hash of one block's own tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LocalBlockHash(pub u64);

/// The hash of all tokens from the start of the sequence to the end of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SequenceHash(pub u64);

/// The seed of local hashes: equal tokens under another adapter or salt are other blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct HashSeed(u64);

impl HashSeed {
    /// Neither adapter nor salt.
    pub const PLAIN: Self = Self(CHAIN_SEED);

    /// The seed for an adapter's name and a cache salt; an empty string counts as absent.
    pub fn new(lora_name: Option<&str>, cache_salt: Option<&str>) -> Self {
        let part = |text: Option<&str>, seed| match text {
            Some(text) if !text.is_empty() => xxh3_64_with_seed(text.as_bytes(), seed),
            _ => 0,
        };
        Self(
            CHAIN_SEED
                .wrapping_add(part(lora_name, LORA_NAME_SEED))
                .wrapping_add(part(cache_salt, CACHE_SALT_SEED)),
        )
    }
}

impl LocalBlockHash {
    /// The hash of one whole block.
    pub fn of(tokens: &[TokenId], seed: HashSeed) -> Self {
        // Engines hash the little-endian bytes of the tokens; a block is small, so a stack buffer serves.
        const ON_STACK: usize = 64;
        if tokens.len() <= ON_STACK {
            let mut bytes = [0u8; ON_STACK * TOKEN_BYTES];
            Self(xxh3_64_with_seed(little_endian(tokens, &mut bytes), seed.0))
        } else {
            let mut bytes = vec![0u8; tokens.len() * TOKEN_BYTES];
            Self(xxh3_64_with_seed(little_endian(tokens, &mut bytes), seed.0))
        }
    }

    /// The hash of one whole block in which objects other than text lie, images for one: the hash of the objects'
    /// hashes, ascending, after the tokens.
    pub fn with_objects(tokens: &[TokenId], objects: &[u64], seed: HashSeed) -> Self {
        let tokens = tokens.iter().flat_map(|token| token.to_le_bytes());
        let bytes: Vec<u8> = tokens.chain(objects.iter().flat_map(|object| object.to_le_bytes())).collect();
        Self(xxh3_64_with_seed(&bytes, seed.0))
    }
}

const TOKEN_BYTES: usize = size_of::<TokenId>();

/// The bytes of `tokens`, written to the front of `buffer`.
fn little_endian<'a>(tokens: &[TokenId], buffer: &'a mut [u8]) -> &'a [u8] {
    let bytes = &mut buffer[..tokens.len() * TOKEN_BYTES];
    for (bytes, token) in bytes.chunks_exact_mut(TOKEN_BYTES).zip(tokens) {
        bytes.copy_from_slice(&token.to_le_bytes());
    }
    bytes
}

impl SequenceHash {
    /// The hash of a sequence's first block: its local hash as it is.
    pub const fn first(local: LocalBlockHash) -> Self {
        Self(local.0)
    }

    /// The hash of the sequence that ends with `self` and goes on with `local`.
    pub fn then(self, local: LocalBlockHash) -> Self {
        let mut bytes = [0u8; 16];
        bytes[..8].copy_from_slice(&self.0.to_le_bytes());
        bytes[8..].copy_from_slice(&local.0.to_le_bytes());
        Self(xxh3_64_with_seed(&bytes, CHAIN_SEED))
    }

    /// `parent` followed by `local`, or the first block where there is no parent.
    pub fn chain(parent: Option<Self>, local: LocalBlockHash) -> Self {
        match parent {
            Some(parent) => parent.then(local),
            None => Self::first(local),
        }
    }
}

/// Replaces `out` by the local hashes of all whole blocks of `tokens`.
pub fn local_block_hashes(
    tokens: &[TokenId],
    block_size: BlockSize,
    seed: HashSeed,
    out: &mut Vec<LocalBlockHash>,
) {
    /// Tokens whose bytes are laid out at a time, so that they are hashed out of the nearest cache.
    const AT_ONCE: usize = 1024;
    out.clear();
    let size = block_size.get();
    if size > AT_ONCE {
        out.extend(tokens.chunks_exact(size).map(|block| LocalBlockHash::of(block, seed)));
        return;
    }
    let mut buffer = [0u8; AT_ONCE * TOKEN_BYTES];
    let hasher = BlockHasher::new(seed.0, size * TOKEN_BYTES);
    for tokens in tokens.chunks(AT_ONCE / size * size) {
        let blocks = little_endian(tokens, &mut buffer).chunks_exact(size * TOKEN_BYTES);
        out.extend(blocks.map(|block| LocalBlockHash(hasher.hash(block))));
    }
}

/// Replaces `out` by the sequence hashes of a chain of local hashes that starts at the first block.
pub fn sequence_hashes(local: &[LocalBlockHash], out: &mut Vec<SequenceHash>) {
    out.clear();
    let mut parent = None;
    out.extend(local.iter().map(|&hash| {
        let sequence = SequenceHash::chain(parent, hash);
        parent = Some(sequence);
        sequence
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    const FOUR: BlockSize = BlockSize::new(4).unwrap();

    #[test]
    fn known_answers() {
        let (mut local, mut sequence) = (Vec::new(), Vec::new());
        let tokens: Vec<TokenId> = (1..=14).collect();
        local_block_hashes(&tokens, FOUR, HashSeed::PLAIN, &mut local);
        sequence_hashes(&local, &mut sequence);
        assert_eq!(
            local.iter().map(|hash| hash.0).collect::<Vec<_>>(),
            [14643705804678351452, 16777012769546811212, 483935686894639516]
        );
        assert_eq!(
            sequence.iter().map(|hash| hash.0).collect::<Vec<_>>(),
            [14643705804678351452, 4945711292740353085, 12583592247330656132]
        );
    }

    #[test]
    fn an_empty_adapter_or_salt_is_no_adapter_or_salt() {
        assert_eq!(HashSeed::new(None, None), HashSeed::PLAIN);
        assert_eq!(HashSeed::new(Some(""), Some("")), HashSeed::PLAIN);
        let lora = HashSeed::new(Some("a"), None);
        let salt = HashSeed::new(None, Some("a"));
        assert!(lora != salt && lora != HashSeed::PLAIN && salt != HashSeed::PLAIN);
    }

    #[test]
    fn a_block_with_objects_is_another_block() {
        let tokens = [1, 2, 3, 4];
        assert_eq!(
            LocalBlockHash::with_objects(&tokens, &[], HashSeed::PLAIN),
            LocalBlockHash::of(&tokens, HashSeed::PLAIN)
        );
        // An object's hash counts like two more tokens: its lower half, then its upper one.
        let one = LocalBlockHash::with_objects(&tokens, &[6 << 32 | 5], HashSeed::PLAIN);
        assert_eq!(one, LocalBlockHash::of(&[1, 2, 3, 4, 5, 6], HashSeed::PLAIN));
    }

    #[test]
    fn blocks_of_all_sizes_hash_alike_alone_and_in_a_prompt() {
        let tokens: Vec<TokenId> = (0..5000u32).map(|at| at.wrapping_mul(0x0101_0101)).collect();
        for size in [1, 3, 16, 60, 61, 63, 64, 65, 256, 1000, 1024, 1025, 4999, 5001] {
            let plain = |block: &[TokenId]| {
                let bytes: Vec<u8> = block.iter().flat_map(|token| token.to_le_bytes()).collect();
                LocalBlockHash(xxh3_64_with_seed(&bytes, 1337))
            };
            let expected: Vec<_> = tokens.chunks_exact(size).map(plain).collect();
            let mut together = Vec::new();
            let block_size = BlockSize::new(size as u32).unwrap();
            local_block_hashes(&tokens, block_size, HashSeed::PLAIN, &mut together);
            assert_eq!(together, expected, "{size}");
            let alone = tokens.chunks_exact(size).map(|block| LocalBlockHash::of(block, HashSeed::PLAIN));
            assert_eq!(alone.collect::<Vec<_>>(), expected, "{size}");
        }
    }
}
