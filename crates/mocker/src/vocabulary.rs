//! Simulated tokens.

use std::sync::Arc;

use dynamo_tokens::TokenId;
use serde::{Deserialize, Serialize};

/// Draws after which a token is taken though it is unwanted: only a vocabulary of nothing else comes that far.
const MAX_REDRAWS: u32 = 64;

/// What simulated tokens are drawn from, each with the same chance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Vocabulary {
    /// All ids from `start` to before `end`.
    Range {
        /// The first id.
        start: TokenId,
        /// The id after the last one.
        end: TokenId,
    },
    /// These ids.
    Set(Arc<[TokenId]>),
}

impl Default for Vocabulary {
    /// Ids that are ordinary tokens in nearly every model: after the bytes and control tokens that come first.
    fn default() -> Self {
        Self::Range { start: 1000, end: 30000 }
    }
}

impl Vocabulary {
    /// Whether there is nothing to draw.
    pub fn is_empty(&self) -> bool {
        match self {
            Self::Range { start, end } => start >= end,
            Self::Set(tokens) => tokens.is_empty(),
        }
    }

    fn pick(&self, random: u64) -> TokenId {
        let below = |count: u64| ((u128::from(random) * u128::from(count)) >> 64) as u64;
        match self {
            Self::Range { start, end } => start + below(u64::from(end - start)) as TokenId,
            Self::Set(tokens) => tokens[below(tokens.len() as u64) as usize],
        }
    }
}

/// A running hash over all tokens of a sequence; it determines the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenState(u64);

impl TokenState {
    /// Before the first token. The engine's seed and the request's count both.
    pub fn new(seed: u64, request_seed: Option<i64>) -> Self {
        Self(mix(mix(seed).wrapping_add(request_seed.unwrap_or(0) as u64)))
    }

    /// After one more token.
    #[must_use]
    pub fn after(self, token: TokenId) -> Self {
        // A prompt is hashed in one go, token after token, so this is as short as it can be without losing bits: for
        // any one token it maps states one to one. The draw does the rest of the mixing.
        let mixed = (self.0 ^ (u64::from(token) + 1)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        Self(mixed ^ (mixed >> 32))
    }

    /// After all of these.
    #[must_use]
    pub fn after_all(self, tokens: &[TokenId]) -> Self {
        tokens.iter().fold(self, |state, &token| state.after(token))
    }

    /// The token that follows. One of `unwanted` only if the vocabulary has next to nothing else.
    pub fn next(self, vocabulary: &Vocabulary, unwanted: &[TokenId]) -> TokenId {
        let mut random = mix(!self.0);
        let mut token = vocabulary.pick(random);
        let mut redraws = 0;
        while unwanted.contains(&token) && redraws < MAX_REDRAWS {
            random = mix(random);
            token = vocabulary.pick(random);
            redraws += 1;
        }
        token
    }
}

/// The finalizer of SplitMix64 with its increment.
fn mix(value: u64) -> u64 {
    let mut mixed = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}
