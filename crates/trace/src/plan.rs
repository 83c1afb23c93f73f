//! From flags to what is done: the one place where flags are checked and defaults depend on each other.

use std::time::Duration;

use crate::{
    args::BenchArgs,
    error::BenchError,
    load::Limit,
    mooncake::{TraceRequest, read_trace},
    report::LoopKind,
    target::Target,
    turns::Turns,
    words::usual_words,
    workload::{Replay, Synthetic, Workload},
};

/// The size of the blocks that hash ids of a mooncake trace stand for.
const MOONCAKE_BLOCK_TOKENS: u32 = 512;
const DEFAULT_CONCURRENCY: u32 = 8;
const DEFAULT_REQUESTS: u64 = 200;
const DEFAULT_OUTPUT_TOKENS: u32 = 64;
/// Most streams at once while warming up in open loop.
const WARMUP_CONCURRENCY: u32 = 16;
/// Warm-up and held streams use other texts than the measured load: these bits make other seeds.
const WARMUP_SEED: u64 = 1 << 62;
const OPEN_SEED: u64 = 1 << 61;

/// How the load is made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Shape {
    Closed { concurrency: u32 },
    Poisson { rate: f64 },
    Schedule,
}

/// A checked set of flags.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) target: Target,
    pub(crate) shape: Shape,
    pub(crate) limit: Limit,
    pub(crate) workload: Workload,
    pub(crate) timeout: Duration,
    pub(crate) after: Duration,
}

impl Plan {
    pub(crate) fn new(args: &BenchArgs) -> Result<Self, BenchError> {
        let seconds = |flag, value: f64, least: f64| {
            let good = value.is_finite() && value >= least && value <= 1e7;
            let why = || {
                BenchError::flag(flag, format!("{value} is not a number of seconds from {least} to 10000000"))
            };
            good.then(|| Duration::from_secs_f64(value)).ok_or_else(why)
        };
        let positive = |flag, value: f64| {
            let why = || BenchError::flag(flag, format!("{value} is not a positive number"));
            (value.is_finite() && value > 0.0).then_some(value).ok_or_else(why)
        };
        if !(0.0..=1.0).contains(&args.shared_prefix) {
            return Err(BenchError::flag("--shared-prefix", "give a share from 0 to 1"));
        }
        positive("--open-rate", args.open_rate)?;
        positive("--speedup", args.speedup)?;
        positive("--max-lateness-ms", args.max_lateness_ms)?;
        let trace = args.trace.as_deref().map(read_trace).transpose()?;
        let shape = match (args.concurrency, args.rate, &trace) {
            (Some(concurrency), _, _) => Shape::Closed { concurrency },
            (None, Some(rate), _) => Shape::Poisson { rate: positive("--rate", rate)? },
            (None, None, Some(trace)) => {
                if trace.iter().all(|request| request.timestamp.is_none()) {
                    let why = "it has no timestamps to send by: give --concurrency or --rate";
                    return Err(BenchError::flag("--trace", why));
                }
                Shape::Schedule
            }
            (None, None, None) => Shape::Closed { concurrency: DEFAULT_CONCURRENCY },
        };
        let duration = args.duration.map(|value| seconds("--duration", value, 0.001)).transpose()?;
        let requests = match (args.requests, duration, &trace) {
            (None, None, None) => Some(DEFAULT_REQUESTS),
            (requests, ..) => requests,
        };
        let workload = match trace {
            Some(requests) => Workload::Replay(replay(args, requests)),
            None => Workload::Synthetic(synthetic(args)),
        };
        Ok(Self {
            target: args.url.parse()?,
            shape,
            limit: Limit { requests, duration },
            workload,
            timeout: seconds("--timeout", args.timeout, 0.001)?,
            after: seconds("--after", args.after, 0.0)?,
        })
    }

    pub(crate) fn loop_kind(&self) -> LoopKind {
        match self.shape {
            Shape::Closed { .. } => LoopKind::Closed,
            Shape::Poisson { .. } => LoopKind::Poisson,
            Shape::Schedule => LoopKind::Schedule,
        }
    }

    /// For how long requests are due, in open loop.
    pub(crate) fn window(&self) -> Option<Duration> {
        let count = self.request_count();
        let recorded = |index: u64| self.workload.due(index);
        let whole = match self.shape {
            Shape::Closed { .. } => return None,
            Shape::Poisson { rate } => count.map(|count| Duration::from_secs_f64(count as f64 / rate)),
            // When a later turn of a session is due depends on the answers.
            Shape::Schedule if self.workload.has_turns() => None,
            Shape::Schedule => count.and_then(|count| recorded(count.saturating_sub(1))),
        };
        match (whole, self.limit.duration) {
            (Some(whole), Some(duration)) => Some(whole.min(duration)),
            (whole, duration) => whole.or(duration),
        }
    }

    /// How many requests there will be, if that is known.
    pub(crate) fn request_count(&self) -> Option<u64> {
        match (self.limit.requests, self.workload.len()) {
            (Some(limit), Some(len)) => Some(limit.min(len)),
            (limit, len) => limit.or(len),
        }
    }

    /// What warms the server up, and with how many streams.
    pub(crate) fn warmup(&self, args: &BenchArgs) -> (Workload, u32) {
        let concurrency = match self.shape {
            Shape::Closed { concurrency } => concurrency,
            _ => WARMUP_CONCURRENCY,
        };
        (Workload::Synthetic(Synthetic { seed: args.seed ^ WARMUP_SEED, ..synthetic(args) }), concurrency)
    }

    /// What the streams held open ask.
    pub(crate) fn held(args: &BenchArgs) -> Workload {
        let output_tokens = args.open_tokens;
        Workload::Synthetic(Synthetic { seed: args.seed ^ OPEN_SEED, output_tokens, ..synthetic(args) })
    }
}

fn synthetic(args: &BenchArgs) -> Synthetic {
    let words = args.words as usize;
    Synthetic {
        seed: args.seed,
        words,
        shared_words: (words as f64 * args.shared_prefix).round() as usize,
        groups: args.prefix_groups,
        distinct: args.prompts,
        output_tokens: args.output_tokens.unwrap_or(DEFAULT_OUTPUT_TOKENS),
    }
}

fn replay(args: &BenchArgs, requests: Vec<TraceRequest>) -> Replay {
    let block_tokens =
        args.trace_block_tokens.unwrap_or((MOONCAKE_BLOCK_TOKENS / args.shrink).max(1)) as usize;
    Replay {
        seed: args.seed,
        turns: Turns::of(&requests),
        requests,
        block_words: args.trace_block_words.map_or_else(|| usual_words(block_tokens), |words| words as usize),
        block_tokens,
        shrink: args.shrink,
        speedup: args.speedup,
        output_tokens: args.output_tokens,
    }
}

#[cfg(test)]
mod tests;
