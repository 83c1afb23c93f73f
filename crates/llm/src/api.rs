//! What a frontend asks of the models that it serves.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use dynamo_engine_api::{CompletionUsage, FinishReason, LatencyTargets, SamplingOptions, StopReason};
use dynamo_kv_router::{BusyThresholds, ConfigError};
use dynamo_protocols::ChatMessage;

use crate::Session;

/// The models that can be asked for at this moment.
pub trait ModelCatalog: Send + Sync + 'static {
    /// The model of that name, if one is registered and its workers are known.
    fn get(&self, name: &str) -> Option<Arc<dyn ChatModel>>;
    /// Whether somebody has registered a model of that name, ready or not; of any name before it is known what there is.
    fn is_known(&self, name: &str) -> bool;
    /// All models, by name.
    fn list(&self) -> Vec<ModelInfo>;
    /// All endpoint instances that this process knows, for `/health`.
    fn instances(&self) -> Vec<InstanceInfo>;
}

/// What `/v1/models` and the metrics say of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelInfo {
    /// The public name.
    pub id: String,
    /// Unix seconds at which this process first saw it.
    pub created: u64,
    /// Tokens of prompt and answer together.
    pub context_length: u32,
    /// Tokens per KV block.
    pub kv_block_size: u32,
    /// KV blocks per worker, where the card says.
    pub total_kv_blocks: Option<u64>,
    /// Concurrent requests per worker, where the card says.
    pub max_num_seqs: Option<u64>,
    /// Tokens per step and worker, where the card says.
    pub max_num_batched_tokens: Option<u64>,
    /// Tries of a request on another worker.
    pub migration_limit: u32,
}

/// One endpoint of one worker.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the parts of an endpoint's name")]
pub struct InstanceInfo {
    pub namespace: String,
    pub component: String,
    pub endpoint: String,
    /// The worker.
    pub instance_id: u64,
    /// `host:port/path`.
    pub address: String,
}

/// A future that a [`ChatModel`] hands out.
pub type GenerationFuture = Pin<Box<dyn Future<Output = Result<Box<dyn Generation>, GenerateError>> + Send>>;

/// One model: template, tokenizer, router and workers behind one call.
pub trait ChatModel: Send + Sync + 'static {
    /// What it is.
    fn info(&self) -> &ModelInfo;
    /// Starts an answer. Resolves when a worker has accepted the request; dropping the future or the generation
    /// cancels it everywhere.
    fn chat(self: Arc<Self>, request: ChatRequest, context: RequestContext) -> GenerationFuture;
    /// Says where a request would go, and sends it nowhere.
    fn advise(self: Arc<Self>, request: ChatRequest, context: RequestContext) -> AdviceFuture;
    /// The thresholds over which its workers take no more requests.
    fn busy_thresholds(&self) -> BusyThresholds;
    /// Sets those thresholds that are given, and returns all.
    fn merge_busy_thresholds(&self, given: BusyThresholds) -> Result<BusyThresholds, ConfigError>;
}

/// A future that [`ChatModel::advise`] hands out.
pub type AdviceFuture = Pin<Box<dyn Future<Output = Result<RoutingAdvice, GenerateError>> + Send>>;

/// Where a request would go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoutingAdvice {
    /// The worker.
    pub worker_id: u64,
    /// Its rank.
    pub dp_rank: u32,
    /// Who would compute the prompt first, if another one, and its rank.
    pub prefill: Option<(u64, u32)>,
    /// The prompt in tokens, so that it need not be tokenized again.
    pub token_ids: Vec<u32>,
}

/// What a request says of its place among others.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RoutingWishes {
    /// Seconds by which it counts as come earlier where requests queue.
    pub priority_jump: f64,
    /// A higher one goes before all lower ones where requests queue.
    pub strict_priority: u32,
    /// The policy class that it names, where requests queue by classes.
    pub policy_class: Option<Box<str>>,
    /// The session that it belongs to.
    pub session: Option<Session>,
    /// Labels that its worker must have, all of them.
    pub required_taints: Vec<String>,
    /// Labels that its worker should have, by weight; only the KV mode looks at them.
    pub preferred_taints: Vec<(String, f64)>,
}

/// A validated chat request.
#[derive(Clone, Debug, Default)]
pub struct ChatRequest {
    /// The conversation.
    pub messages: Vec<ChatMessage>,
    /// The user's tool schemas, passed to the template as they are.
    pub tools: Option<serde_json::Value>,
    /// Extra variables for the template.
    pub template_args: Option<serde_json::Map<String, serde_json::Value>>,
    /// Whether the template opens the assistant's turn.
    pub add_generation_prompt: bool,
    /// Strings that end the answer and are not shown.
    pub stop: Vec<String>,
    /// Show the stop string.
    pub include_stop_str_in_output: bool,
    /// Tokens of the user's that end the answer.
    pub stop_token_ids: Vec<u32>,
    /// Answer tokens at most; absent: what the context leaves.
    pub max_tokens: Option<u32>,
    /// Tokens before anything may stop the answer.
    pub min_tokens: Option<u32>,
    /// Go on through end tokens.
    pub ignore_eos: bool,
    /// Leave special tokens out of the text; absent: yes.
    pub skip_special_tokens: Option<bool>,
    /// How to choose tokens.
    pub sampling: SamplingOptions,
    /// Prompt tokens that replace template and tokenizer.
    pub token_data: Option<Vec<u32>>,
    /// Extra answers asked for.
    pub annotations: Vec<String>,
    /// The worker that must serve it.
    pub worker_id: Option<u64>,
    /// The rank that must serve it.
    pub dp_rank: Option<u32>,
    /// The worker that is to compute its prompt, where prompts are computed by others.
    pub prefill_worker_id: Option<u64>,
    /// And the rank.
    pub prefill_dp_rank: Option<u32>,
    /// Answer tokens that the client expects.
    pub expected_output_tokens: Option<u32>,
    /// Separates caches of tenants.
    pub cache_salt: Option<String>,
    /// What the client hopes for, where there are pools to choose from.
    pub latency_targets: LatencyTargets,
    /// Its place among others.
    pub routing: RoutingWishes,
}

/// What travels with a request on its whole way.
#[derive(Clone, Debug)]
pub struct RequestContext {
    /// Printable, at most 128 bytes; in every log line and error.
    pub id: Arc<str>,
    /// When the client no longer waits.
    pub deadline: Option<Instant>,
    /// The W3C trace context that came with the request.
    pub traceparent: Option<String>,
}

/// A running answer. Dropping it cancels the request.
pub trait Generation: Send {
    /// Calls `each` once per new token (and once more for text held back, at the end), then says how it goes on.
    /// Does not allocate once warm.
    fn poll_deltas(&mut self, cx: &mut Context<'_>, each: &mut dyn FnMut(Delta<'_>)) -> Poll<Progress>;
    /// Counts so far; final after [`Progress::End`].
    fn usage(&self) -> CompletionUsage;
    /// The worker and rank that answer.
    fn worker(&self) -> Option<(u64, u32)>;
    /// The worker and rank that computed the prompt: those that answer, if there was no other.
    fn prefill_worker(&self) -> Option<(u64, u32)> {
        self.worker()
    }
}

/// One step of an answer.
#[derive(Clone, Debug)]
pub struct Delta<'a> {
    /// The choice.
    pub index: u32,
    /// New text; empty while a character or a possible stop string is incomplete.
    pub text: &'a str,
    /// New tokens behind it: one, or none for text held back or a bare finish.
    pub tokens: u32,
    /// Set in the choice's last delta.
    pub finish_reason: Option<FinishReason>,
    /// What stopped it.
    pub stop_reason: Option<StopReason>,
}

/// How an answer goes on.
#[derive(Debug)]
pub enum Progress {
    /// Poll again.
    More,
    /// Complete; do not poll again.
    End,
    /// Broken off; do not poll again.
    Failed(GenerateError),
}

/// Why there is no answer, or no more of it. Each maps to one HTTP status and one `type`.
#[derive(Clone, Debug, thiserror::Error)]
pub enum GenerateError {
    /// The prompt leaves no room for an answer: 400.
    #[error(
        "the prompt has {prompt_tokens} tokens, and the context of this model is {context_length} tokens"
    )]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// Tokens of prompt and answer together.
        context_length: u32,
    },
    /// A value that only the model can judge: 400.
    #[error("{message}")]
    Invalid {
        /// The field at fault.
        param: Option<&'static str>,
        /// What is wrong with it.
        message: String,
    },
    /// The template refused the messages: 400.
    #[error("the chat template refused the messages: {0}")]
    Template(String),
    /// No worker of this model is there: 503.
    #[error("no worker serves this model at the moment")]
    NoWorkers,
    /// All workers are over their limits: 503.
    #[error("all workers of this model are busy")]
    Overloaded,
    /// It waited for a worker for as long as it could: 429.
    #[error("no worker had room for the request in time")]
    QueueTimeout,
    /// The worker was lost mid-way: 503, or an error event in a stream.
    #[error("the worker was lost before the answer was complete")]
    WorkerLost,
    /// Time ran out: 504.
    #[error("the request's time ran out")]
    DeadlineExceeded,
    /// Taken back: 499.
    #[error("the request was cancelled")]
    Cancelled,
    /// The reader stalled past the limit.
    #[error("the client read too slowly")]
    SlowReader,
    /// The engine refused or failed; the text is for the log: 500.
    #[error("the engine failed: {0}")]
    Engine(String),
    /// A fault of ours; the text is for the log: 500.
    #[error("internal error: {0}")]
    Internal(String),
}
