//! What routers that serve the same workers tell each other, so that each knows the load of all: which request went
//! where, that its first token came, and that it is over. What workers have cached is not told: they say so themselves.

mod bookings;
mod outbox;

use std::time::Duration;

pub use bookings::{ReplicaBookings, ReplicaOutcome};
use dynamo_tokens::SequenceHash;
pub use outbox::ReplicaOutbox;
use serde::{Deserialize, Serialize};

use crate::WorkerRank;

/// The topic of these events on the event plane; a message is a MessagePack list of [`ActiveSequenceEvent`]s as named
/// maps.
pub const ACTIVE_SEQUENCES_TOPIC: &str = "active_sequences_events";
/// Events of one message at most.
pub const MAX_REPLICA_BATCH: usize = 256;
/// How long the first event of a message waits for others.
pub const REPLICA_BATCH_DELAY: Duration = Duration::from_millis(1);

/// What happened to one request of a router.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ActiveSequenceEvent {
    /// The router's name for the request; no other request of the router has it.
    pub request_id: String,
    /// Where it runs.
    pub worker: WorkerRank,
    /// What happened.
    pub data: ActiveSequenceChange,
    /// Who says so.
    pub router_id: u64,
    /// The adapter that it is for.
    #[serde(default)]
    pub lora_name: Option<String>,
}

/// What happened to a request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ActiveSequenceChange {
    /// It was sent to its worker.
    AddRequest {
        /// Sequence hashes of its prompt; absent where blocks are not tracked.
        #[serde(default)]
        token_sequence: Option<Vec<SequenceHash>>,
        /// Whether its prompt tokens count until the first token comes.
        #[serde(default = "yes")]
        track_prefill_tokens: bool,
        /// Tokens of the answer that the client expects.
        #[serde(default)]
        expected_output_tokens: Option<u32>,
        /// What it gives its worker to compute.
        #[serde(default)]
        prefill_load_hint: Option<PrefillLoadHint>,
    },
    /// Its first token came.
    MarkPrefillCompleted,
    /// It is over.
    Free,
}

/// The prefill work of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrefillLoadHint {
    /// Tokens that its worker has not cached.
    pub initial_effective_prefill_tokens: u64,
}

fn yes() -> bool {
    true
}

#[cfg(test)]
mod tests;
