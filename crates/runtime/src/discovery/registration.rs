//! What holds a record in discovery.

use std::sync::Arc;

use super::holdings::Claim;
use super::{Client, DiscoveryError};
use crate::discovery::{Record, RecordKey, RecordState};

/// Holds a record. Dropping it leaves as [`leave`](Self::leave) does, without waiting.
#[must_use = "dropping a registration removes its record"]
pub struct Registration {
    /// None once it left.
    held: Option<Holding>,
}

pub(super) struct Holding {
    pub(super) client: Arc<Client>,
    pub(super) key: RecordKey,
    pub(super) claim: Claim,
    pub(super) record: Record,
}

impl Registration {
    pub(super) fn new(holding: Holding) -> Self {
        Self { held: Some(holding) }
    }

    /// Replaces the record by one with the same key.
    pub async fn update(&mut self, record: Record) -> Result<(), DiscoveryError> {
        let Some(holding) = self.held.as_mut() else { return Err(DiscoveryError::Closed) };
        if record.key() != holding.key {
            let (registered, updated) = (holding.key.path(), record.key().path());
            return Err(DiscoveryError::KeyChanged { registered, updated });
        }
        holding.record = record.clone();
        holding.client.publish(record, holding.claim).await
    }

    /// Withdraws the record. An endpoint is published as draining first, so that clients tell leaving from dying; this
    /// returns when that is done, and the record is deleted soon after.
    pub async fn leave(mut self) -> Result<(), DiscoveryError> {
        match self.held.take() {
            Some(holding) => holding.leave().await,
            None => Ok(()),
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        if let Some(holding) = self.held.take() {
            holding.client.clone().leave_in_background(holding);
        }
    }
}

impl Holding {
    /// The record with which the leaving begins; none when it is simply deleted.
    pub(super) fn farewell(&self) -> Option<Record> {
        match &self.record {
            Record::Endpoint(endpoint) => {
                let mut endpoint = endpoint.clone();
                endpoint.state = RecordState::Draining;
                Some(Record::Endpoint(endpoint))
            }
            Record::Model(_) | Record::EventChannel(_) => None,
        }
    }

    async fn leave(self) -> Result<(), DiscoveryError> {
        let client = self.client.clone();
        client.holdings.start_leaving(&self.key, self.claim);
        let farewell = match self.farewell() {
            Some(record) => client.publish(record, self.claim).await,
            None => Ok(()),
        };
        client.remove_in_background(self.key.clone(), self.claim);
        farewell
    }
}
