//! Events applied by threads of their own: lanes.
//!
//! Each lane has a bounded queue and writes for its slots alone, so that the events of a slot keep their order and
//! lanes do not meet. A lane takes all that waits at once.

mod barrier;
mod dump;
mod lane;
mod lane_index;
mod outcomes;
mod queue;

pub use barrier::FlushError;
pub use dump::{DumpError, RankDump};
pub use lane_index::{LaneIndex, StartLanesError, TryApplyError};

use std::{num::NonZeroUsize, time::Duration};

use crate::{IndexError, WorkerRank};

/// How events are applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LaneConfig {
    /// Lanes; an index may allow fewer.
    pub lanes: NonZeroUsize,
    /// Events that may wait in a lane. As many again may be in its hands.
    pub queued_events: NonZeroUsize,
    /// Blocks of these events. A larger event waits until it is alone.
    pub queued_blocks: NonZeroUsize,
}

impl LaneConfig {
    /// The reference's threads and queue length; blocks for a tenth of a second of work.
    pub const REFERENCE: Self = Self {
        lanes: NonZeroUsize::new(4).unwrap(),
        queued_events: NonZeroUsize::new(16_384).unwrap(),
        queued_blocks: NonZeroUsize::new(1 << 20).unwrap(),
    };
}

/// What a lane tells of its own accord. It is told on the lane's thread, which waits: hand it on and return.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LaneReport {
    /// An event of a rank did not apply.
    Refused {
        /// The rank.
        worker: WorkerRank,
        /// The incarnation that the event came from.
        epoch: u64,
        /// Why.
        error: IndexError,
    },
    /// A lane broke: what it writes for is no longer kept up to date.
    Broken(LaneBroken),
}

/// A lane panicked. The index may be damaged: answers for its workers are not to be trusted, start anew.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("lane {lane} of the index broke and applies no more events: {message}")]
pub struct LaneBroken {
    /// Which one.
    pub lane: usize,
    /// The panic's message.
    pub message: String,
}

/// How the lanes keep up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneGauges {
    /// Lanes.
    pub lanes: usize,
    /// Events that wait or are about to be applied.
    pub queued_events: usize,
    /// Blocks of these.
    pub queued_blocks: usize,
    /// How long the oldest of them has waited.
    pub oldest_wait: Duration,
    /// The longest that any batch waited so far.
    pub longest_wait: Duration,
    /// Times that whoever brought an event had to wait for room.
    pub waits: u64,
    /// Times that an event was given back for want of room.
    pub refused: u64,
}

#[cfg(test)]
mod tests;
