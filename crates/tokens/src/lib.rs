//! Token blocks and their hashes: the identity of a piece of KV cache.
//!
//! A *block* is `block_size` consecutive tokens; only whole blocks count. It has a [`LocalBlockHash`] (its own
//! tokens) and a [`SequenceHash`] (all tokens from the start to its end). Both agree bit for bit with the
//! ecosystem that this project replaces, so that its workers and ours may share one router.
//!
//! This crate knows no I/O, no clock and no engine.

mod block_hash;
mod block_hasher;
mod sequence;

pub use block_hash::{
    BlockSize, HashSeed, LocalBlockHash, SequenceHash, local_block_hashes, sequence_hashes,
};
pub use sequence::TokenSequence;

/// The number of a token in a model's vocabulary.
pub type TokenId = u32;
