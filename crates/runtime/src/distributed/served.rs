use super::Announcement;
use crate::discovery::DiscoveryError;
use crate::identity::EndpointId;
use crate::request_plane::ServeGuard;
use crate::system::{HealthStatus, SystemState};

/// An endpoint that is served. Dropping it leaves discovery and refuses new requests; running ones go on.
#[must_use = "dropping a served endpoint ends its serving"]
pub struct ServedEndpoint {
    id: EndpointId,
    /// Dropped first: peers are told to go elsewhere.
    announcement: Announcement,
    mount: ServeGuard,
    system: SystemState,
}

impl ServedEndpoint {
    pub(super) fn new(
        id: EndpointId,
        mount: ServeGuard,
        announcement: Announcement,
        system: SystemState,
    ) -> Self {
        system.set_endpoint(&id.endpoint, HealthStatus::Ready);
        Self { id, announcement, mount, system }
    }

    /// What is served.
    pub fn id(&self) -> &EndpointId {
        &self.id
    }

    /// Its path on the request plane.
    pub fn path(&self) -> &str {
        self.mount.path()
    }

    /// Leaves discovery and keeps serving what still comes, as for an engine that is put to sleep.
    pub async fn leave(&self) -> Result<(), DiscoveryError> {
        self.system.set_endpoint(&self.id.endpoint, HealthStatus::NotReady);
        self.announcement.leave().await
    }

    /// Registers again after [`leave`](Self::leave).
    pub async fn come_back(&self) -> Result<(), DiscoveryError> {
        self.announcement.come_back().await?;
        self.system.set_endpoint(&self.id.endpoint, HealthStatus::Ready);
        Ok(())
    }
}

impl Drop for ServedEndpoint {
    fn drop(&mut self) {
        self.system.remove_endpoint(&self.id.endpoint);
    }
}
