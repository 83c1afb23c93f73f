//! What an engine gives back.

use dynamo_tokens::TokenId;
use serde::{Deserialize, Serialize};
use smallvec::SmallVec;

/// How a request advanced in one step.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct EngineOutput {
    /// The new tokens only; may be empty.
    pub token_ids: SmallVec<[TokenId; 4]>,
    /// The choice that advanced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<u32>,
    /// Text, from engines that detokenize themselves.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Set in the last output.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub finish_reason: Option<FinishReason>,
    /// What stopped it: a string or a token of the user's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<StopReason>,
    /// Log probabilities of `token_ids`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_probs: Option<Vec<f64>>,
    /// The engine's own counts, usually in the last output.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub completion_usage: Option<CompletionUsage>,
    /// From prefill workers: how another worker gets the prompt's blocks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disaggregated_params: Option<serde_json::Value>,
}

/// Why generation ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model produced an end token.
    Eos,
    /// `max_tokens`, or the context is full.
    Length,
    /// A stop string or stop token.
    Stop,
    /// Taken back.
    #[serde(alias = "abort")]
    Cancelled,
    /// A filter.
    ContentFilter,
    /// The engine failed; the text is for logs and, if it names a fault of the request, for the client.
    Error(String),
}

/// What stopped a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum StopReason {
    /// A stop string.
    Text(String),
    /// A stop token.
    Token(TokenId),
}

/// An engine's counts for a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "OpenAI's names")]
pub struct CompletionUsage {
    pub prompt_tokens: u32,
    pub completion_tokens: u32,
    pub total_tokens: u32,
    pub prompt_tokens_details: Option<PromptTokensDetails>,
}

/// Of the prompt tokens, those that were found in the cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PromptTokensDetails {
    /// Tokens whose KV was not computed again.
    pub cached_tokens: u32,
}
