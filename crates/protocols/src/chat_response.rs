//! The whole answer of `POST /v1/chat/completions`. Stream chunks are spliced from prepared bytes by the frontend;
//! [`ChatCompletionChunk`] is their typed form, for readers.

use serde::{Deserialize, Serialize};

use crate::NvExtAnswer;

/// A whole answer.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs, reason = "OpenAI's names")]
pub struct ChatCompletion<'a> {
    pub id: &'a str,
    /// [`ChatCompletion::OBJECT`].
    pub object: &'static str,
    /// Unix seconds.
    pub created: u64,
    pub model: &'a str,
    pub choices: [ChatChoice<'a>; 1],
    pub usage: Usage,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nvext: Option<NvExtAnswer>,
}

impl ChatCompletion<'_> {
    /// The value of `object`.
    pub const OBJECT: &'static str = "chat.completion";
}

/// One choice of an answer.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs, reason = "OpenAI's names")]
pub struct ChatChoice<'a> {
    pub index: u32,
    pub message: AnswerMessage<'a>,
    /// Always null: not served.
    pub logprobs: Option<()>,
    pub finish_reason: &'static str,
}

/// The assistant's message.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs, reason = "OpenAI's names")]
pub struct AnswerMessage<'a> {
    /// `assistant`.
    pub role: &'static str,
    pub content: &'a str,
    pub refusal: Option<&'a str>,
}

/// Token counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "OpenAI's names")]
pub struct Usage {
    pub prompt_tokens: u32,
    pub completion_tokens: u32,
    pub total_tokens: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_tokens_details: Option<UsageDetails>,
}

/// Of the prompt tokens, those that were found in a cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs, reason = "OpenAI's names")]
pub struct UsageDetails {
    pub cached_tokens: u32,
}

/// One event of a stream, for those who read streams.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[allow(missing_docs, reason = "OpenAI's names")]
pub struct ChatCompletionChunk {
    pub id: String,
    pub object: String,
    pub created: u64,
    pub model: String,
    pub choices: Vec<ChunkChoice>,
    #[serde(default)]
    pub usage: Option<Usage>,
}

/// How one choice goes on.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[allow(missing_docs, reason = "OpenAI's names")]
pub struct ChunkChoice {
    pub index: u32,
    pub delta: ChunkDelta,
    pub finish_reason: Option<String>,
}

/// What is new.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[allow(missing_docs, reason = "OpenAI's names")]
pub struct ChunkDelta {
    #[serde(default)]
    pub role: Option<String>,
    #[serde(default)]
    pub content: Option<String>,
}
