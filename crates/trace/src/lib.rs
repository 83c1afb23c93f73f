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
//! The trace tools ([`run_trace`], behind `dynamo trace`) check, describe, make and convert such traces; conversions take
//! the same memory whatever the size of their input. [`Page`] and [`Chart`] make reports that need nothing else.
//!
//! It is a guest: it installs no runtime, no signal handler and no logger, and is cheapest on a current-thread runtime.

mod alarm;
mod analyze;
mod args;
mod arrival;
mod cache_limit;
mod client;
mod command;
mod comparison;
mod connection;
mod convert;
mod difference;
mod distribution;
mod error;
mod failure;
mod faults;
mod html;
mod http1;
mod lines;
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
mod reshape;
mod rng;
mod run;
mod sine;
mod sse;
mod summary;
mod synthesize;
mod table;
mod target;
mod turns;
mod validate;
mod validity;
mod watch;
mod words;
mod workload;

pub use analyze::{Analysis, analyze};
pub use args::{BenchArgs, ProgressMode};
pub use cache_limit::cached_share;
pub use command::{
    AnalyzeArgs, BurstGptArgs, ConvertArgs, DuplicateArgs, NatArgs, SineArgs, StretchArgs, SynthesizeArgs,
    TraceArgs, TraceCommand, TraceToolError, ValidateArgs, run_trace,
};
pub use comparison::{Comparison, Side};
pub use convert::{
    BurstGpt, Conversion, ConvertError, Nat, PromptBlocks, TokenizerFault, convert_burstgpt, convert_nat,
    convert_nat_csv,
};
pub use difference::{Cost, Difference};
pub use distribution::Distribution;
pub use error::BenchError;
pub use failure::FailureKind;
pub use faults::{Fault, Faults};
pub use html::{Chart, Page, Series, Shape};
pub use http1::{HttpError, ResponseParser};
pub use mooncake::{TraceError, TraceRequest, read_trace};
pub use population::OpenStreams;
pub use report::{
    BenchReport, CacheUse, Events, FailureCount, GeneratorUse, LoopKind, Report, Requests, Tokens,
    WorkerSpread,
};
pub use reshape::{ReshapeError, duplicate, highest_id, stretch, time_span};
pub use run::{measure_all, run, run_until};
pub use sine::{SineLoad, Wave};
pub use sse::{EventScanner, Usage};
pub use summary::{Summary, quantile};
pub use synthesize::{Synthesis, SynthesisError, SynthesizedRequest, Synthesizer};
pub use target::{Target, TargetError};
pub use turns::{TurnTime, Turns};
pub use validate::{Validity, validate};
pub use watch::ServerUse;
pub use words::{push_words, usual_tokens, usual_words};
pub use workload::{Replay, Synthetic, Workload};
