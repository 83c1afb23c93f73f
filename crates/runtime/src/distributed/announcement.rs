use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Mutex as AsyncMutex;

use super::DistributedRuntime;
use crate::discovery::{Discovery, DiscoveryError, Record, Registration};

/// A record that is published for as long as this is held. It can leave before, and come back.
#[must_use = "dropping an announcement withdraws its record"]
pub struct Announcement {
    announced: Arc<Announced>,
    /// What it stands on.
    _runtime: DistributedRuntime,
}

/// Shared with the runtime, which makes it leave when it shuts down.
pub(super) struct Announced {
    discovery: Discovery,
    record: Mutex<Record>,
    /// None while it has left. Held across changes, so that leaving and coming back take turns.
    registration: AsyncMutex<Option<Registration>>,
}

impl Announcement {
    pub(super) fn new(announced: Arc<Announced>, runtime: DistributedRuntime) -> Self {
        Self { announced, _runtime: runtime }
    }

    /// Withdraws the record; an endpoint is seen to drain first. Does nothing when it has left already.
    pub async fn leave(&self) -> Result<(), DiscoveryError> {
        self.announced.leave().await
    }

    /// Publishes the record again. Does nothing when it is published.
    pub async fn come_back(&self) -> Result<(), DiscoveryError> {
        let mut registration = self.announced.registration.lock().await;
        if registration.is_none() {
            let record = self.announced.record.lock().clone();
            *registration = Some(self.announced.discovery.register(record).await?);
        }
        Ok(())
    }

    /// Replaces the record by one of the same key; when it has left, the new one is what comes back.
    pub async fn update(&self, record: Record) -> Result<(), DiscoveryError> {
        let mut registration = self.announced.registration.lock().await;
        if let Some(registration) = registration.as_mut() {
            registration.update(record.clone()).await?;
        }
        *self.announced.record.lock() = record;
        Ok(())
    }
}

impl Announced {
    pub(super) fn new(discovery: Discovery, record: Record, registration: Registration) -> Self {
        let registration = AsyncMutex::new(Some(registration));
        Self { discovery, record: Mutex::new(record), registration }
    }

    pub(super) async fn leave(&self) -> Result<(), DiscoveryError> {
        match self.registration.lock().await.take() {
            Some(registration) => registration.leave().await,
            None => Ok(()),
        }
    }
}
