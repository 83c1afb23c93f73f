//! When a simulated request ends before its length.

use dynamo_engine_api::{FinishReason, PreprocessedRequest, StopReason};
use dynamo_tokens::TokenId;

/// The tokens that end a request.
#[derive(Debug, Default)]
pub(crate) struct StopRules {
    /// The model's: never drawn unless the configuration allows it.
    end: Vec<TokenId>,
    /// The user's.
    stop: Vec<TokenId>,
    min_tokens: usize,
    ignore_end: bool,
}

impl StopRules {
    pub(crate) fn new(request: &PreprocessedRequest) -> Self {
        let conditions = &request.stop_conditions;
        let all = |list: &Option<Vec<TokenId>>| list.clone().unwrap_or_default();
        let mut end = request.eos_token_ids.clone();
        end.extend(all(&conditions.stop_token_ids_hidden));
        let mut stop = all(&conditions.stop_token_ids);
        stop.extend(all(&conditions.stop_token_ids_visible));
        // Who asks for a token of the model's by name gets it as a stop of their own.
        end.retain(|token| !stop.contains(token));
        Self {
            end,
            stop,
            min_tokens: conditions.min_tokens.unwrap_or(0) as usize,
            ignore_end: conditions.ignore_eos.unwrap_or(false),
        }
    }

    /// Tokens of the model's that end a text.
    pub(crate) fn end_tokens(&self) -> &[TokenId] {
        &self.end
    }

    /// Whether the `generated`-th token ends the request.
    pub(crate) fn check(
        &self,
        token: TokenId,
        generated: usize,
    ) -> Option<(FinishReason, Option<StopReason>)> {
        if generated < self.min_tokens {
            None
        } else if self.stop.contains(&token) {
            Some((FinishReason::Stop, Some(StopReason::Token(token))))
        } else if !self.ignore_end && self.end.contains(&token) {
            Some((FinishReason::Eos, None))
        } else {
            None
        }
    }
}
