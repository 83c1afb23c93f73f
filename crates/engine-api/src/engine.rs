//! The traits between an engine and the worker process that runs it.

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
    /// Where outputs go. Dropping it without a finish reason ends the stream as incomplete.
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

/// The way back of one request. Neither call blocks, waits for the reader or, once warm, allocates.
pub trait OutputSink: Send {
    /// Copies an output into the outbox of the caller's connection; wakes nobody. An output with a finish reason is
    /// the last one.
    fn push(&mut self, output: &EngineOutput) -> SinkState;
    /// Ends a step: what was pushed to any sink of the same connection leaves in one frame, with one wake-up.
    /// Cheap if another sink of that connection was flushed already.
    fn flush(&mut self);
}

/// Something that generates tokens.
pub trait Engine: Send + Sync + 'static {
    /// Takes a request. Never blocks and never fails: a request that can't be served is finished through its sink
    /// with [`crate::FinishReason::Error`].
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
    /// The load after a step in which it changed.
    fn load(&self, load: ActiveLoad);
}
