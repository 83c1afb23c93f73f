//! Events on their way out.

use std::collections::VecDeque;

use super::{ActiveSequenceChange, ActiveSequenceEvent, MAX_REPLICA_BATCH};

/// Events that wait at most: a second of the rate that one router serves. A reader that is further behind would be told
/// of requests that are over.
const MAX_EVENTS: usize = 16_384;
/// Hashes of those events at most: 16 MB.
const MAX_HASHES: usize = 2 << 20;
/// Hashes of one message at most, but for a single event: a reader decodes a message in one go, between two requests.
const MAX_BATCH_HASHES: usize = 16_384;

/// Events that wait to be published, in order. When it is full, the newest is dropped and counted: what others then do
/// not know of ends there by expiry.
#[derive(Debug, Default)]
pub struct ReplicaOutbox {
    events: VecDeque<ActiveSequenceEvent>,
    hashes: usize,
    dropped: u64,
}

impl ReplicaOutbox {
    /// Adds an event; whether there was room.
    pub fn push(&mut self, event: ActiveSequenceEvent) -> bool {
        let hashes = hashes_of(&event);
        let fits = self.events.len() < MAX_EVENTS && self.hashes + hashes <= MAX_HASHES;
        if fits {
            self.hashes += hashes;
            self.events.push_back(event);
        } else {
            self.dropped += 1;
        }
        fits
    }

    /// Replaces `batch` by the events of the next message, the oldest first; none if it is empty.
    pub fn take_batch(&mut self, batch: &mut Vec<ActiveSequenceEvent>) {
        batch.clear();
        let mut taken = 0;
        while batch.len() < MAX_REPLICA_BATCH
            && let Some(event) =
                self.events.pop_front_if(|next| taken == 0 || taken + hashes_of(next) <= MAX_BATCH_HASHES)
        {
            taken += hashes_of(&event);
            batch.push(event);
        }
        self.hashes -= taken;
        if self.events.is_empty() {
            self.events.shrink_to(MAX_REPLICA_BATCH);
        }
    }

    /// Events that wait.
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// Events that found no room so far.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}

fn hashes_of(event: &ActiveSequenceEvent) -> usize {
    match &event.data {
        ActiveSequenceChange::AddRequest { token_sequence: Some(hashes), .. } => hashes.len(),
        _ => 0,
    }
}
