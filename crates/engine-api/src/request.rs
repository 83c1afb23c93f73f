//! A request after templates and tokenizing, as an engine receives it.

use dynamo_tokens::TokenId;
use serde::{Deserialize, Serialize};

use crate::DpRank;

/// What to generate. Field names are the dictionary keys that Python workers see.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PreprocessedRequest {
    /// The public name of the model.
    pub model: String,
    /// The prompt.
    pub token_ids: Vec<TokenId>,
    /// When to stop.
    pub stop_conditions: StopConditions,
    /// How to choose tokens.
    pub sampling_options: SamplingOptions,
    /// What to report.
    pub output_options: OutputOptions,
    /// Tokens that end a text; empty where the request ignores them.
    pub eos_token_ids: Vec<TokenId>,
    /// The checksum of the model card that the frontend used.
    pub mdc_sum: Option<String>,
    /// Extra answers that the client asked for.
    pub annotations: Vec<String>,
    /// What the router decided, or the client asked it to.
    pub routing: RoutingHints,
    /// What the client hopes for, where there are pools to choose from.
    pub router: LatencyTargets,
}

/// Latency that a client hopes for: a router over pools chooses by it. Milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct LatencyTargets {
    /// To the first token.
    pub ttft_target: Option<f64>,
    /// Between tokens.
    pub itl_target: Option<f64>,
}

/// When to stop. Text stop strings stay in the frontend, which sees the text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StopConditions {
    /// Tokens to generate at most.
    pub max_tokens: Option<u32>,
    /// Stop strings, for engines that handle text themselves.
    pub stop: Option<Vec<String>>,
    /// Tokens of the user's that stop, and whose text is not shown.
    pub stop_token_ids: Option<Vec<TokenId>>,
    /// Tokens that stop, and whose text is shown.
    pub stop_token_ids_visible: Option<Vec<TokenId>>,
    /// Tokens of the model's that stop, and whose text is not shown.
    pub stop_token_ids_hidden: Option<Vec<TokenId>>,
    /// Tokens to generate before anything may stop.
    pub min_tokens: Option<u32>,
    /// Go on through end tokens, to `max_tokens`.
    pub ignore_eos: Option<bool>,
    /// Tokens of thinking at most.
    pub max_thinking_tokens: Option<u32>,
}

/// How to choose tokens. Absent means the engine's default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the names are OpenAI's and vLLM's, with their meanings")]
pub struct SamplingOptions {
    pub n: Option<u8>,
    pub best_of: Option<u8>,
    pub presence_penalty: Option<f64>,
    pub frequency_penalty: Option<f64>,
    pub repetition_penalty: Option<f64>,
    pub temperature: Option<f64>,
    pub top_p: Option<f64>,
    pub top_k: Option<i32>,
    pub min_p: Option<f64>,
    pub seed: Option<i64>,
    pub include_stop_str_in_output: Option<bool>,
}

/// What to report beside the tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
#[allow(missing_docs, reason = "the names are OpenAI's and vLLM's, with their meanings")]
pub struct OutputOptions {
    pub logprobs: Option<u32>,
    pub prompt_logprobs: Option<u32>,
    pub skip_special_tokens: Option<bool>,
}

/// Where a request is to go.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RoutingHints {
    /// The worker that must serve it.
    pub worker_id: Option<u64>,
    /// The rank within the worker.
    pub dp_rank: Option<DpRank>,
    /// Output tokens that the client expects.
    pub expected_output_tokens: Option<u32>,
    /// The adapter, if any.
    pub lora_name: Option<String>,
    /// Separates caches of tenants.
    pub cache_salt: Option<String>,
    /// Prompt blocks that the router believes the worker holds.
    pub estimated_prefix_hit_blocks: Option<u32>,
}
