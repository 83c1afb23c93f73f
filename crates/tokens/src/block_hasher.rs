//! XXH3-64 of many blocks under one seed.

use xxhash_rust::{const_xxh3::const_custom_default_secret, xxh3};

/// Inputs of more bytes than this go through a secret that is made from the seed.
const LONGEST_WITHOUT_SECRET: usize = 240;

/// Bytes of that secret.
const SECRET_BYTES: usize = 192;

/// Hashes blocks of one length; what depends on the seed alone is made once.
pub(crate) enum BlockHasher {
    Short { seed: u64 },
    Long { secret: [u8; SECRET_BYTES] },
}

impl BlockHasher {
    /// For blocks of so many bytes.
    pub(crate) fn new(seed: u64, block_bytes: usize) -> Self {
        if block_bytes <= LONGEST_WITHOUT_SECRET {
            Self::Short { seed }
        } else {
            Self::Long { secret: const_custom_default_secret(seed) }
        }
    }

    /// The hash of one block.
    pub(crate) fn hash(&self, bytes: &[u8]) -> u64 {
        match self {
            Self::Short { seed } => xxh3::xxh3_64_with_seed(bytes, *seed),
            Self::Long { secret } => xxh3::xxh3_64_with_secret(bytes, secret),
        }
    }
}
