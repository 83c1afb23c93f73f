//! What a run gives back.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::{
    args::BenchArgs, distribution::Distribution, meter::Meter, population::OpenStreams, watch::ServerUse,
};

/// One measured point.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Version of the generator.
    pub version: &'static str,
    /// Unix seconds at the start of the measured phase.
    pub started_at: u64,
    /// Whether the point counts.
    pub valid: bool,
    /// Why it does not.
    pub reasons: Vec<String>,
    /// What is notable, without making it invalid.
    pub notes: Vec<String>,
    /// All flags.
    pub parameters: BenchArgs,
    /// The model that was asked.
    pub model: String,
    /// How the load was made.
    pub loop_kind: LoopKind,
    /// From the start to the last answer.
    pub wall_seconds: f64,
    /// Requests.
    pub requests: Requests,
    /// Tokens, from the usage.
    pub tokens: Tokens,
    /// Events of the streams, without `[DONE]`.
    pub events: Events,
    /// From the start of a request (open loop: from when it was due) to its first text.
    pub first_token: Distribution,
    /// Between one text and the next; texts of one read have none between them.
    pub between_tokens: Distribution,
    /// From the start of a request (open loop: from when it was due) to the end of its stream.
    pub whole: Distribution,
    /// Failed requests by kind.
    pub failures: Vec<FailureCount>,
    /// How much of the prompts was found in caches.
    pub cache: CacheUse,
    /// How requests fell on workers, if the server told.
    pub workers: Option<WorkerSpread>,
    /// The server's processes.
    pub servers: Vec<ServerUse>,
    /// The generator itself.
    pub generator: GeneratorUse,
    /// The streams held open beside the load.
    pub open_streams: Option<OpenStreams>,
}

/// How the load was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LoopKind {
    /// A stream sends its next request when the last is answered.
    Closed,
    /// At random times.
    Poisson,
    /// On a trace's schedule.
    Schedule,
}

/// Requests of the measured phase.
#[derive(Clone, Debug, Serialize)]
pub struct Requests {
    /// Due (open loop) or sent (closed loop).
    pub offered: u64,
    /// Sent.
    pub sent: u64,
    /// Answered in full.
    pub ok: u64,
    /// Failed.
    pub failed: u64,
    /// Answered within the window and the usual time of an answer (open loop), or at all (closed loop), of those offered.
    pub served_share: f64,
    /// Offered a second, in open loop.
    pub offered_per_second: Option<f64>,
    /// Answered a second.
    pub per_second: f64,
    /// Connections opened.
    pub connections: u64,
    /// Of these, in place of an idle one that the server had closed.
    pub reconnects: u64,
}

/// Tokens of the measured phase.
#[derive(Clone, Debug, Serialize)]
pub struct Tokens {
    /// Of the prompts.
    pub prompt: u64,
    /// Of the answers.
    pub completion: u64,
    /// Asked for as answers.
    pub asked: u64,
    /// Of the answers, a second.
    pub per_second: f64,
    /// Of the prompts for each hash id, when a trace is replayed: near the block size if text and blocks are aligned.
    pub prompt_per_trace_block: Option<f64>,
}

/// Events of the measured phase.
#[derive(Clone, Debug, Serialize)]
pub struct Events {
    /// All.
    pub total: u64,
    /// Those with text.
    pub with_text: u64,
    /// All, a second.
    pub per_second: f64,
    /// Answers without any text.
    pub answers_without_text: u64,
}

/// Failures of one kind.
#[derive(Clone, Debug, Serialize)]
pub struct FailureCount {
    /// What kind.
    pub kind: String,
    /// How many.
    pub count: u64,
    /// The first messages that differ.
    pub examples: Vec<String>,
}

impl FailureCount {
    pub(crate) fn list(meter: &Meter) -> Vec<Self> {
        meter.with(|counts| {
            let one = |(kind, (count, examples)): (&_, &(u64, Vec<String>))| Self {
                kind: format!("{kind}"),
                count: *count,
                examples: examples.clone(),
            };
            counts.failures.iter().map(one).collect()
        })
    }
}

/// Cached prompt tokens.
#[derive(Clone, Debug, Serialize)]
pub struct CacheUse {
    /// Prompt tokens that the usage calls cached.
    pub cached_tokens: u64,
    /// Their share of all prompt tokens.
    pub share: f64,
    /// The share that one cache of all workers' blocks would reach: least recently used, deepest block first.
    pub limit: Option<f64>,
    /// The same without bound.
    pub unbounded_limit: Option<f64>,
    /// The share as a part of the limit.
    pub share_of_limit: Option<f64>,
}

/// How requests fell on workers.
#[derive(Clone, Debug, Serialize)]
pub struct WorkerSpread {
    /// Answered requests of each worker.
    pub requests: BTreeMap<u64, u64>,
    /// Workers in the mean: those of `--workers`, or those that answered.
    pub workers: u64,
    /// The busiest worker's requests over the mean.
    pub max_over_mean: f64,
    /// The least busy worker's requests over the mean.
    pub min_over_mean: f64,
}

impl WorkerSpread {
    /// `None` if no worker was named. `expected` workers that answered nothing count as zero.
    pub(crate) fn of(requests: &BTreeMap<u64, u64>, expected: Option<u32>) -> Option<Self> {
        let max = *requests.values().max()?;
        let workers = (requests.len() as u64).max(expected.map_or(0, u64::from));
        let idle = workers > requests.len() as u64;
        let min = if idle { 0 } else { *requests.values().min()? };
        let mean = requests.values().sum::<u64>() as f64 / workers as f64;
        let (max_over_mean, min_over_mean) = (max as f64 / mean, min as f64 / mean);
        Some(Self { requests: requests.clone(), workers, max_over_mean, min_over_mean })
    }
}

/// What the generator itself took.
#[derive(Clone, Debug, Serialize)]
pub struct GeneratorUse {
    /// User seconds.
    pub user_seconds: f64,
    /// System seconds.
    pub system_seconds: f64,
    /// Core-microseconds for each token of the answers.
    pub us_per_token: Option<f64>,
    /// Threads of its runtime.
    pub threads: usize,
    /// Its CPU time as a share of what its threads could take.
    pub cpu_share: f64,
    /// How late requests were sent, in open loop.
    pub lateness: Distribution,
    /// How late its timers fired; they tick once a millisecond.
    pub timer_lag: Distribution,
}

/// What a command gives back.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum BenchReport {
    /// One point.
    Point(Box<Report>),
    /// Two servers in turn.
    Comparison(Box<crate::comparison::Comparison>),
    /// Two kinds of points in turn.
    Difference(Box<crate::difference::Difference>),
}

impl BenchReport {
    /// Whether all of its points count.
    #[must_use]
    pub fn is_valid(&self) -> bool {
        match self {
            Self::Point(report) => report.valid,
            Self::Difference(difference) => difference.valid,
            Self::Comparison(comparison) => comparison.valid,
        }
    }

    /// 0 if it counts, else 1.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        u8::from(!self.is_valid())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_without_requests_counts_in_the_mean() {
        let requests = BTreeMap::from([(1, 30), (2, 10)]);
        let seen = WorkerSpread::of(&requests, None).unwrap();
        assert_eq!((seen.max_over_mean, seen.min_over_mean), (1.5, 0.5));
        let expected = WorkerSpread::of(&requests, Some(4)).unwrap();
        assert_eq!((expected.workers, expected.max_over_mean, expected.min_over_mean), (4, 3.0, 0.0));
        assert!(WorkerSpread::of(&BTreeMap::new(), Some(4)).is_none());
    }
}
