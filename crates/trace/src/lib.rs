//! Trace tools and the load generator.
//!
//! The load generator ([`run`], behind `dynamo bench`) asks any OpenAI-compatible server for streaming chat completions, in
//! closed loop, at random times, or on the schedule of a mooncake trace, and reports times, rates, the server's
//! CPU time and memory, and whether the point counts. It shares the machine with what it measures, so it reads streams
//! with one system call and one pass over the bytes, and parses no event but the last.
//!
//! - Tokens come from the usage; events are counted apart.
//! - In open loop, times count from when a request was due.
//! - Nothing is dropped: a request that could not go out in time goes out late, and its lateness is reported.
//! - [`ResponseParser`] and [`EventScanner`] know no sockets and no clock, and take any cutting of a stream.
//!
//! It is a guest: it installs no runtime, no signal handler and no logger, and is cheapest on a current-thread runtime.

mod alarm;
mod args;
mod arrival;
mod cache_limit;
mod client;
mod comparison;
mod connection;
mod difference;
mod distribution;
mod error;
mod failure;
mod http1;
mod load;
mod meter;
mod mooncake;
mod plan;
mod point;
mod population;
mod process;
mod progress;
mod report;
mod request;
mod rng;
mod run;
mod sse;
mod table;
mod target;
mod validity;
mod watch;
mod words;
mod workload;

pub use args::{BenchArgs, ProgressMode};
pub use cache_limit::cached_share;
pub use comparison::{Comparison, Side};
pub use difference::{Cost, Difference};
pub use distribution::Distribution;
pub use error::BenchError;
pub use failure::FailureKind;
pub use http1::{HttpError, ResponseParser};
pub use mooncake::{TraceError, TraceRequest, read_trace};
pub use population::OpenStreams;
pub use report::{
    BenchReport, CacheUse, Events, FailureCount, GeneratorUse, LoopKind, Report, Requests, Tokens,
    WorkerSpread,
};
pub use run::{measure_all, run, run_until};
pub use sse::{EventScanner, Usage};
pub use target::{Target, TargetError};
pub use watch::ServerUse;
pub use words::{push_words, usual_tokens, usual_words};
pub use workload::{Replay, Synthetic, Workload};
