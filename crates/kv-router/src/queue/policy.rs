//! Who of those that wait is next.

use std::{str::FromStr, time::Instant};

use super::Waiting;

/// The order of requests of one strict priority; the higher score is first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum QueuePolicy {
    /// First come, first served: `priority_jump − arrival`, in seconds.
    #[default]
    Fcfs,
    /// Last come, first served: `priority_jump + arrival`.
    Lcfs,
    /// Shortest work first, weighted: `(1 + priority_jump) / max(1, tokens that are not cached)`.
    Wspt,
    /// Earliest deadline first: `priority_jump − deadline`; those without one come after, as they came.
    Edf,
}

impl QueuePolicy {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Fcfs, Self::Lcfs, Self::Wspt, Self::Edf];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fcfs => "fcfs",
            Self::Lcfs => "lcfs",
            Self::Wspt => "wspt",
            Self::Edf => "edf",
        }
    }

    pub(super) fn score(self, waiting: &Waiting, arrival: f64, start: Instant) -> f64 {
        // Not a number counts as 0 too.
        let jump = waiting.priority_jump.max(0.0);
        match self {
            Self::Fcfs => jump - arrival,
            Self::Lcfs => jump + arrival,
            Self::Wspt => {
                let new_tokens = waiting.isl_tokens.saturating_sub(waiting.cached_tokens).max(1);
                (1.0 + jump) / new_tokens as f64
            }
            Self::Edf => match waiting.deadline {
                Some(deadline) => jump - deadline.saturating_duration_since(start).as_secs_f64(),
                None => f64::NEG_INFINITY,
            },
        }
    }
}

impl std::fmt::Display for QueuePolicy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Not the name of a policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("use fcfs, lcfs, wspt or edf")]
pub struct ParseQueuePolicyError;

impl FromStr for QueuePolicy {
    type Err = ParseQueuePolicyError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let is_named = |policy: &Self| policy.name().eq_ignore_ascii_case(text);
        Self::ALL.into_iter().find(is_named).ok_or(ParseQueuePolicyError)
    }
}
