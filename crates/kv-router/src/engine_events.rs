//! What engines say of their caches on their own wire, turned into this crate's events.
//!
//! vLLM, SGLang and TensorRT-LLM publish batches of MessagePack over ZeroMQ. [`EngineEventDecoder`] reads a batch and
//! converts its events: tokens become local hashes, under the seed of adapter and salt; events that are not for a
//! router are filtered, and counted by reason. [`EngineSequence`] and [`ReplayCheck`] watch the numbers of the batches.
//! Nothing here does I/O.

mod batch;
mod decoder;
mod extra_keys;
mod fields;
mod groups;
mod outcome;
mod salted;
mod sequence;
mod tier_names;
mod write;

pub use batch::BatchInfo;
pub use decoder::{EngineEvent, EngineEventDecoder};
pub use outcome::{FilterReason, IntakeCounters};
pub use sequence::{BatchArrival, END_OF_REPLAY, EngineSequence, ReplayCheck, ReplayFailure};
pub use write::{WireEvent, WireForm, write_batch};

#[cfg(test)]
mod tests;
