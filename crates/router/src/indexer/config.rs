//! What the service needs to know.

use std::{path::PathBuf, time::Duration};

use super::{index_choice::IndexChoice, worker_list::WorkerSpec};

/// The settings of an indexer.
#[derive(Clone, Debug)]
pub struct IndexerConfig {
    /// Engines that are there from the start.
    pub workers: Vec<WorkerSpec>,
    /// Their block size; needed where there are any.
    pub block_size: Option<u32>,
    /// Their model.
    pub model_name: String,
    /// Their group.
    pub routing_group: String,
    /// What each index is made of.
    pub index: IndexChoice,
    /// Indexers to take over from, the first that answers.
    pub peers: Vec<String>,
    /// How long that may take.
    pub recovery: RecoveryLimits,
    /// Where a line for each request goes.
    pub access_log: Option<PathBuf>,
    /// The header with a request's trace id.
    pub trace_id_header: String,
    /// Connections at once.
    pub max_connections: usize,
}

/// How long taking over from peers may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecoveryLimits {
    /// For a peer to begin to answer.
    pub answer: Duration,
    /// For all of it: after this the service is ready with what it has.
    pub total: Duration,
}

impl RecoveryLimits {
    /// A peer that is there answers at once; ten seconds are what a worker's dump may take too.
    pub const STANDARD: Self = Self { answer: Duration::from_secs(3), total: Duration::from_secs(10) };
}
