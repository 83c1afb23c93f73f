//! What came of a run.

use std::collections::BTreeMap;

use dynamo_trace::Distribution;
use serde::Serialize;

use crate::{Mode, args::SimulateArgs};

/// How evenly requests fell on workers.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Balance {
    /// Requests of each worker, or of each rank where workers have several.
    pub requests: Vec<u64>,
    /// Their mean.
    pub mean: f64,
    /// The least over the mean.
    pub min_over_mean: f64,
    /// The most over the mean.
    pub max_over_mean: f64,
}

/// Requests that waited: at the router for a worker, or at their worker to be admitted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Queue {
    /// The mean over the samples.
    pub mean: f64,
    /// The most at any time.
    pub max: u64,
}

/// The state at a time, or since the sample before.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Sample {
    /// Seconds since the start.
    pub seconds: f64,
    /// Requests that wait.
    pub waiting: u64,
    /// Requests that wait or are computed, on each worker's each rank: the mean since the sample before.
    pub live: Vec<f64>,
    /// Share of the prompt tokens that were cached, of requests whose first token came since the last sample.
    pub cached_share: Option<f64>,
}

/// What came of the requests of one policy class.
#[derive(Clone, Debug, Serialize)]
pub struct ClassOutcome {
    /// Its name.
    pub name: String,
    /// Requests that came.
    pub requests: u64,
    /// Requests that nobody took.
    pub refused: u64,
    /// From arrival to the first token.
    pub first_token: Distribution,
}

/// What came of one run.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// How workers were chosen.
    pub mode: Mode,
    /// The trace's rate was multiplied by this.
    pub load: f64,
    /// Requests that came.
    pub requests: u64,
    /// Requests that were answered.
    pub answered: u64,
    /// Requests that nobody took, and why.
    pub refused: BTreeMap<String, u64>,
    /// From the first arrival to the last token.
    pub seconds: f64,
    /// Requests a second, while they came.
    pub offered_per_second: f64,
    /// Requests answered a second.
    pub requests_per_second: f64,
    /// Tokens generated a second.
    pub tokens_per_second: f64,
    /// Answered while requests came, or within the usual time of an answer after; over all that came.
    pub served_share: f64,
    /// Whether less than 98 % were.
    pub saturated: bool,
    /// Tokens of the prompts that were answered.
    pub prompt_tokens: u64,
    /// Of those, found in a cache.
    pub cached_tokens: u64,
    /// The share of them.
    pub cached_share: f64,
    /// What one cache of all workers' blocks would reach (least recently used, deepest block first).
    pub cached_share_limit: f64,
    /// From arrival to the first token.
    pub first_token: Distribution,
    /// By policy class, where there are several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<ClassOutcome>,
    /// From token to token.
    pub between_tokens: Distribution,
    /// From arrival to the last token.
    pub whole: Distribution,
    /// How evenly requests fell on workers.
    pub balance: Balance,
    /// Requests that waited.
    pub queue: Queue,
    /// Times that a request was preempted.
    pub preemptions: u64,
    /// Over time.
    pub samples: Vec<Sample>,
}

/// All runs of a command.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Of this program.
    pub version: &'static str,
    /// The flags.
    pub parameters: SimulateArgs,
    /// One run for each router and load.
    pub outcomes: Vec<Outcome>,
}
