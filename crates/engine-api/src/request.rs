//! A request after templates and tokenizing, as an engine receives it.

use std::collections::BTreeMap;

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
    /// Settings of the choice that count for this request instead of the router's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub router_config_override: Option<RouterConfigOverride>,
    /// What a prefill worker said when it had computed the prompt: its blocks can be had there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefill_result: Option<PrefillResult>,
}

/// A prompt that another worker has computed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PrefillResult {
    /// The object that the prefill worker gave, which only engines understand: see
    /// [`EngineOutput::disaggregated_params`](crate::EngineOutput::disaggregated_params).
    pub disaggregated_params: serde_json::Value,
}

/// What a request sets of the router's configuration. Absent: as configured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RouterConfigOverride {
    /// The older setting that the next two go before: the scale of the prefill; 0 also takes away the credit for caches.
    #[serde(alias = "overlap_weight", skip_serializing_if = "Option::is_none")]
    pub overlap_score_weight: Option<f64>,
    /// What a cached block takes off the prompt, in blocks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overlap_score_credit: Option<f64>,
    /// What a block to compute costs beside a block to hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefill_load_scale: Option<f64>,
    /// 0 takes the cheapest worker, more spreads the choice.
    #[serde(alias = "temperature", skip_serializing_if = "Option::is_none")]
    pub router_temperature: Option<f64>,
    /// Whether it shares blocks with running requests of a common prefix.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub assume_kv_reuse: Option<bool>,
    /// Whether its prompt tokens count until the first token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub track_prefill_tokens: Option<bool>,
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

/// Labels of workers that a request needs or prefers.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RoutingConstraints {
    /// Its worker must have all of these.
    pub required_taints: Vec<String>,
    /// Its worker should have these, by weight: the more of them, the cheaper it counts.
    pub preferred_taints: BTreeMap<String, f64>,
}

/// Where a request is to go, and its place among others.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RoutingHints {
    /// The worker that must serve it.
    #[serde(alias = "backend_instance_id")]
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
    /// Workers that may serve it; absent: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_worker_ids: Option<Vec<u64>>,
    /// Labels of the workers that may, or should, serve it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub routing_constraints: Option<RoutingConstraints>,
    /// Seconds by which it counts as come earlier where requests queue; below 0 counts as 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<f64>,
    /// Where requests queue, a higher one goes before all lower ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub strict_priority: Option<u32>,
    /// The policy class that it names, where requests queue by classes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy_class: Option<String>,
    /// The session that it belongs to, where sessions stay with their workers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
    /// The session that this one came out of: it begins where that one is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent_session_id: Option<String>,
    /// Whether it is the session's last request.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub session_final: bool,
}
