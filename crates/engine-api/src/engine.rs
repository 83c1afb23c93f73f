//! The traits between an engine and the worker process that runs it.

use dynamo_tokens::TokenId;

use crate::{ActiveLoad, DpRank, EngineOutput, KvCacheEventData, PreprocessedRequest};

/// A request's number within its worker; never reused while the process lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestKey(pub u64);

/// Why a request is taken back from an engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AbortReason {
    /// The client went away or asked to end the request.
    Cancelled,
    /// The reader stalled past the limit.
    SlowReader,
    /// The request's time ran out.
    DeadlineExceeded,
    /// The worker shuts down and its drain deadline passed.
    Shutdown,
}

/// One request on its way into an engine.
pub struct Submission {
    /// Names the request in [`Engine::abort`].
    pub key: RequestKey,
    /// The data-parallel rank that was chosen.
    pub dp_rank: DpRank,
    /// What to generate.
    pub request: PreprocessedRequest,
    /// Where outputs go, or the refusal. Dropping it without either ends the stream as incomplete.
    pub sink: Box<dyn OutputSink>,
}

/// What a push found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SinkState {
    /// Somebody reads, or may yet.
    Open,
    /// Nobody will read any more: the engine should abort the request.
    Closed,
}

/// Why a request is not served, though nothing of it was computed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// A bound was hit: another worker, or this one later, may serve it.
    #[error("overloaded: {0}")]
    Overloaded(String),
    /// This worker can't serve it, whatever it is: another one may.
    #[error("unavailable: {0}")]
    Unavailable(String),
    /// The request itself is at fault, so no worker of this model will serve it.
    #[error("{0}")]
    Invalid(String),
}

/// The way back of one request. No call blocks, waits for the reader or, once warm, allocates.
pub trait OutputSink: Send {
    /// Copies an output into the outbox of the caller's connection; wakes nobody. An output with a finish reason is
    /// the last one.
    fn push(&mut self, output: &EngineOutput) -> SinkState;
    /// Ends a step: what was pushed to any sink of the same connection leaves in one frame, with one wake-up.
    /// Cheap if another sink of that connection was flushed already.
    fn flush(&mut self);
    /// Ends the request unserved, at once and without a flush; in place of any output. What is known at submission is
    /// said before [`Engine::submit`] returns, so that the request can still go to another worker.
    fn refuse(&mut self, refused: Refused);
}

/// Something that generates tokens.
pub trait Engine: Send + Sync + 'static {
    /// Takes a request, or [refuses](OutputSink::refuse) it through its sink: a queue that is full, a rank that there is
    /// not, a prompt that does not fit, an engine that has shut down. Never blocks.
    fn submit(&self, submission: Submission);
    /// Takes a request back; its blocks are free soon after, and its sink is dropped without another output.
    /// An unknown key is ignored (the request may just have ended).
    fn abort(&self, key: RequestKey, reason: AbortReason);
    /// Forgets all cached blocks that no request uses; they are reported as removed.
    fn clear_cache(&self);
}

/// Who is told what happens to an engine's KV cache and load. Called on the engine's own thread, between steps: an
/// implementation copies and returns.
pub trait EngineObserver: Send + Sync + 'static {
    /// Changes of one rank's cache, in order. The observer numbers them.
    fn kv_events(&self, dp_rank: DpRank, events: Vec<KvCacheEventData>);
    /// Whether to call [`kv_events_with_tokens`](Self::kv_events_with_tokens) in place of [`kv_events`](Self::kv_events).
    /// Asked once, when the engine starts; engines that cannot tell of tokens do not ask.
    fn wants_tokens(&self) -> bool {
        false
    }
    /// Changes of one rank's cache, in order, with the tokens of all stored blocks, one block's after the other's.
    fn kv_events_with_tokens(&self, dp_rank: DpRank, events: Vec<KvCacheEventData>, tokens: &[TokenId]) {
        let _ = tokens;
        self.kv_events(dp_rank, events);
    }
    /// The load after a step in which it changed.
    fn load(&self, load: ActiveLoad);
}
