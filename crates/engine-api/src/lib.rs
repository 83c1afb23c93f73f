//! The engine contract: what the stack asks of an engine and what an engine gives back.
//!
//! An [`Engine`] takes a [`PreprocessedRequest`] and an [`OutputSink`], and pushes an [`EngineOutput`] whenever a
//! request advanced, by any number of tokens. It never waits for a reader. Beside the outputs it reports
//! [`KvCacheEvent`]s and [`ActiveLoad`] to an [`EngineObserver`].
//!
//! These are internal types: the public wire lives in `dynamo-protocols`. No I/O, no clock, no runtime.

mod codec;
mod engine;
mod kv_event;
mod output;
mod request;

pub use codec::{DecodeError, decode_output, decode_request, encode_output, encode_request};
pub use engine::{
    AbortReason, Engine, EngineObserver, OutputSink, Refused, RequestKey, SinkState, Submission,
};
pub use kv_event::{
    ActiveLoad, DpRank, ExternalBlockHash, KvCacheEvent, KvCacheEventData, RouterEvent, StorageTier,
    StoredBlock,
};
pub use output::{CompletionUsage, EngineOutput, FinishReason, PromptTokensDetails, StopReason};
pub use request::{
    LatencyTargets, OutputOptions, PrefillResult, PreprocessedRequest, RouterConfigOverride,
    RoutingConstraints, RoutingHints, SamplingOptions, StopConditions,
};
