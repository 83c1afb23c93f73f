//! Tokens of prompts and answers: made of hash ids, as the load generator makes text of them.

use dynamo_tokens::TokenId;
use dynamo_trace::TraceRequest;

use crate::Setting;

/// Ordinary ids: below every vocabulary's size that matters, so that nothing depends on it.
const TOKEN_BITS: u32 = 15;
const PROMPT: u64 = 1;
const ANSWER: u64 = 2;
const TEMPLATE: u64 = 3;

/// Makes prompts and answers of one setting.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Prompts {
    seed: u64,
    block_tokens: u32,
    exact: bool,
    template_tokens: u32,
    shrink: u32,
    output_tokens: Option<u32>,
}

impl Prompts {
    pub(crate) fn of(setting: &Setting) -> Self {
        Self {
            seed: setting.seed,
            block_tokens: setting.trace_block_tokens.max(1),
            exact: setting.exact_lengths,
            template_tokens: setting.template_tokens,
            shrink: setting.shrink.max(1),
            output_tokens: setting.output_tokens,
        }
    }

    /// Replaces `out` by a request's prompt: for each hash id its block. At least one token.
    pub(crate) fn prompt(&self, request: &TraceRequest, out: &mut Vec<TokenId>) {
        out.clear();
        let template = mix(self.seed ^ TEMPLATE);
        out.extend((0..self.template_tokens).map(|place| token(template, u64::from(place))));
        for id in &request.hash_ids {
            let block = mix(mix(self.seed ^ PROMPT).wrapping_add(*id));
            out.extend((0..self.block_tokens).map(|place| token(block, u64::from(place))));
        }
        if self.exact {
            out.truncate((self.template_tokens + request.input_length / self.shrink) as usize);
        }
        if out.is_empty() {
            out.push(token(self.seed, 0));
        }
    }

    /// How many tokens answer it, at least one.
    pub(crate) fn answer_len(&self, request: &TraceRequest) -> u32 {
        self.output_tokens.unwrap_or(request.output_length / self.shrink).max(1)
    }

    /// The token at a place of the answer to the request with this number. No two answers are alike.
    pub(crate) fn answer(&self, request: u32, place: usize) -> TokenId {
        token(mix(self.seed ^ ANSWER).wrapping_add(u64::from(request)), place as u64)
    }
}

fn token(stream: u64, place: u64) -> TokenId {
    (mix(stream.wrapping_add(place.wrapping_mul(0x9e37_79b9_7f4a_7c15))) >> (u64::BITS - TOKEN_BITS))
        as TokenId
}

/// The finalizer of SplitMix64.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
