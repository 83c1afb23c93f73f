//! The `nvext` object: what the incumbent's clients ask for beside OpenAI's fields.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The accepted keys of a request's `nvext`, for the error about any other.
pub const NVEXT_KEYS: [&str; 19] = [
    "greed_sampling",
    "use_raw_prompt",
    "annotations",
    "backend_instance_id",
    "token_data",
    "max_thinking_tokens",
    "cache_salt",
    "extra_fields",
    "metadata_upload",
    "prefill_worker_id",
    "decode_worker_id",
    "dp_rank",
    "prefill_dp_rank",
    "agent_hints",
    "request_timestamp_ms",
    "routing_constraints",
    "router",
    "expected_output_tokens",
    "enable_local_updates",
];

/// A request's extensions.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NvExt {
    /// Always the likeliest token: sampling options are dropped.
    pub greed_sampling: Option<bool>,
    /// Leave the template out.
    pub use_raw_prompt: Option<bool>,
    /// Extra events asked for.
    pub annotations: Option<Vec<String>>,
    /// The worker that must serve it.
    pub backend_instance_id: Option<u64>,
    /// Prompt tokens that replace template and tokenizer.
    pub token_data: Option<Vec<u32>>,
    /// Tokens of thinking at most.
    pub max_thinking_tokens: Option<u32>,
    /// Separates caches of tenants.
    pub cache_salt: Option<String>,
    /// Extra fields of the answer's `nvext`.
    pub extra_fields: Option<Vec<String>>,
    /// Where to put metadata.
    pub metadata_upload: Option<Value>,
    /// The worker that must compute the prompt.
    pub prefill_worker_id: Option<u64>,
    /// The worker that must generate; as `backend_instance_id`, and it wins.
    pub decode_worker_id: Option<u64>,
    /// The rank that must serve it.
    pub dp_rank: Option<u32>,
    /// The rank that must compute the prompt.
    pub prefill_dp_rank: Option<u32>,
    /// What an agent knows of its request.
    pub agent_hints: Option<AgentHints>,
    /// When the client sent it, Unix milliseconds.
    pub request_timestamp_ms: Option<f64>,
    /// Taints that workers must or should carry.
    pub routing_constraints: Option<RoutingConstraints>,
    /// Latency targets, a hint.
    pub router: Option<Value>,
    /// Answer tokens that the client expects.
    pub expected_output_tokens: Option<u32>,
    /// The older gateways' switch for the router's bookkeeping.
    pub enable_local_updates: Option<bool>,
}

/// The annotation that asks for a worker instead of an answer; what follows it does not matter.
const QUERY_INSTANCE: &str = "query_instance_id:";

impl NvExt {
    /// Whether only the worker is asked for that would answer.
    pub fn asks_for_instance(&self) -> bool {
        self.annotations.iter().flatten().any(|name| name.starts_with(QUERY_INSTANCE))
    }

    /// The worker that must serve the request.
    pub fn worker_id(&self) -> Option<u64> {
        self.decode_worker_id.or(self.backend_instance_id)
    }

    /// Answer tokens that the client expects.
    pub fn expected_output_tokens(&self) -> Option<u32> {
        self.agent_hints.as_ref().and_then(|hints| hints.osl).or(self.expected_output_tokens)
    }
}

/// Hints of an agent's; none of them changes an answer.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct AgentHints {
    /// Answer tokens expected.
    pub osl: Option<u32>,
    /// Where requests queue: seconds by which this one counts as come earlier; below 0 counts as 0.
    pub priority: Option<i32>,
    /// Where requests queue: a higher one goes before all lower ones.
    pub strict_priority: Option<u32>,
    /// Where requests queue by classes: the name of this one's.
    pub policy_class: Option<String>,
    /// The older name of `priority`, which goes before it.
    pub latency_sensitivity: Option<f64>,
}

impl AgentHints {
    /// Seconds by which the request counts as come earlier.
    pub fn priority_jump(&self) -> f64 {
        self.priority.map(f64::from).or(self.latency_sensitivity).unwrap_or(0.0).max(0.0)
    }
}

/// Taints that workers must or should carry.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct RoutingConstraints {
    /// All of these.
    pub required_taints: Vec<String>,
    /// These, by weight: the more a worker has of them, the cheaper it counts.
    pub preferred_taints: BTreeMap<String, f32>,
}

/// An answer's extensions: what `extra_fields` asked for.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct NvExtAnswer {
    /// Who served it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worker_id: Option<WorkerIds>,
    /// How long it took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timing: Option<Timing>,
    /// The prompt in tokens, where only a worker was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<Vec<u32>>,
    /// The stop string or token that ended the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_reason: Option<Value>,
}

/// Who served a request. Without disaggregation both workers are the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[allow(missing_docs, reason = "the parts of two workers' names")]
pub struct WorkerIds {
    pub prefill_worker_id: u64,
    pub prefill_dp_rank: u32,
    pub decode_worker_id: u64,
    pub decode_dp_rank: u32,
}

/// How long a request took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Timing {
    /// When it came in, Unix milliseconds.
    pub request_received_ms: u64,
    /// Milliseconds to the first token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttft_ms: Option<f64>,
    /// Milliseconds to the end.
    pub total_time_ms: f64,
    /// The share of prompt tokens that was found in a cache.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kv_hit_rate: Option<f64>,
}
