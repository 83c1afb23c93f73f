//! A simulated engine: the scheduler with a clock for an executor.
//!
//! [`MockEngine`] admits, batches, preempts and caches exactly as an engine does, because it is the same
//! [`Scheduler`](dynamo_scheduler::Scheduler); only the arithmetic is replaced by a [`TimingModel`] that says how long a
//! step would take. Time is a schedule: what is due runs at once, and a rank sleeps only when its next step is a
//! millisecond or more ahead. With a speed-up of 0 it never sleeps.
//!
//! A simulated token is a function of the seed and of all tokens before it, so a request that is preempted, migrated
//! or handed over goes on exactly as it would have.
//!
//! An engine may compute prompts for others to answer: the last output of a [prefill](DisaggregationMode) engine says how
//! the prompt's blocks are had, and an engine that gets a request with that word loads them in the time of a
//! [`TransferTime`] instead of computing them.
//!
//! Each data-parallel rank is one task, spawned by the caller; it ends when the engine is dropped.

mod config;
mod disaggregation;
mod engine;
mod eviction;
mod inbox;
mod kv_report;
mod loads;
mod rank;
mod sim_pool;
mod stats;
mod stop;
mod stream;
#[cfg(test)]
mod tests;
mod timetable;
mod timing;
mod transfer;
mod vocabulary;

pub use config::{MockConfigError, MockerConfig, PreemptionPolicy};
pub use disaggregation::{DisaggregationMode, UnknownMode};
pub use engine::{MockEngine, RankTask};
pub use eviction::{EvictionOrder, LeastRecentlyUsed};
pub use kv_report::events_of;
pub use sim_pool::SimPool;
pub use stats::MockStats;
pub use timetable::Timetable;
pub use timing::TimingModel;
pub use transfer::TransferTime;
pub use vocabulary::{TokenState, Vocabulary};
