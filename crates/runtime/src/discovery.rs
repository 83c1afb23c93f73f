//! Discovery: which endpoints, models and event channels exist, and where.
//!
//! Records are registered under a key and hold while their registration is held and their process lives. A watch is
//! level-triggered: first a snapshot, then changes by value, and a fresh snapshot after any doubt.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

mod error;
mod file;
mod holdings;
mod key_path;
mod mem;
mod owner;
mod record;
mod record_json;
mod registration;
#[cfg(test)]
mod suite;
mod table;
#[cfg(test)]
pub(crate) mod test_records;

pub use error::DiscoveryError;
pub use file::default_root;
pub use mem::MemStore;
pub use record::{
    Change, EndpointRecord, EventChannelRecord, EventScope, ModelRecord, Query, Record, RecordKey,
    RecordState,
};
pub use registration::Registration;
pub use table::Watch;

use file::FileStore;
use holdings::{Claim, Holdings};
use owner::OwnerId;
use registration::Holding;
use table::{Entry, Table};

use crate::identity::{Epoch, WorkerId};
use crate::metrics::{BoundHits, IntCounter};
use crate::scope::TaskScope;

/// How long a record on disk stays draining before it is deleted: several polls of every watcher, so that each sees
/// that the worker left and did not die.
const FAREWELL: Duration = Duration::from_millis(500);

/// How often files are looked at. A dead process is noticed within this time.
const POLL: Duration = Duration::from_millis(100);

/// Which store discovery uses.
#[derive(Clone, Debug)]
pub enum DiscoveryConfig {
    /// Within this process; runtimes that share the store see each other.
    Mem(MemStore),
    /// In files below `root`, for the processes of one user on one host. See [`default_root`].
    File {
        /// The directory that holds `v1`; made with mode 0700 when missing.
        root: PathBuf,
    },
}

/// A client of one store. Clones are the same client: what one registers belongs to all.
#[derive(Clone)]
pub struct Discovery {
    client: Arc<Client>,
    lagged: Option<IntCounter>,
}

struct Client {
    store: Store,
    owner: OwnerId,
    holdings: Holdings,
    scope: TaskScope,
}

enum Store {
    Mem(MemStore),
    File(Arc<FileStore>),
}

impl Discovery {
    /// Opens the store; its tasks belong to `scope`. Watches that fall behind are counted in `bounds`.
    pub async fn start(
        config: DiscoveryConfig,
        scope: TaskScope,
        bounds: &BoundHits,
    ) -> Result<Self, DiscoveryError> {
        let mut discovery = match config {
            DiscoveryConfig::Mem(store) => Self::mem(store, scope),
            DiscoveryConfig::File { root } => Self::file(&root, scope).await?,
        };
        discovery.lagged = Some(bounds.of("discovery_watch"));
        Ok(discovery)
    }

    /// A client of a store in this process.
    pub fn mem(store: MemStore, scope: TaskScope) -> Self {
        Self::with_store(Store::Mem(store), OwnerId::random(), scope)
    }

    /// A client of the files below `root`.
    pub async fn file(root: &Path, scope: TaskScope) -> Result<Self, DiscoveryError> {
        let owner = OwnerId::random();
        let root = root.to_owned();
        let opening = scope.spawn_blocking("open discovery files", move || FileStore::open(&root, owner));
        let store = Arc::new(opening.await.map_err(|_| DiscoveryError::Closed)??);
        let watched = Arc::downgrade(&store);
        scope.spawn("poll discovery files", {
            let scope = scope.clone();
            async move {
                loop {
                    tokio::select! {
                        () = scope.cancelled() => return,
                        () = tokio::time::sleep(POLL) => {}
                    }
                    let Some(store) = watched.upgrade() else { return };
                    let refreshing = scope.spawn_blocking("refresh discovery files", move || store.poll());
                    if refreshing.await.is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Self::with_store(Store::File(store), owner, scope))
    }

    fn with_store(store: Store, owner: OwnerId, scope: TaskScope) -> Self {
        Self { client: Arc::new(Client { store, owner, holdings: Holdings::default(), scope }), lagged: None }
    }

    /// Publishes a record. Fails when another worker holds its id, when a later incarnation registered, and when this
    /// client holds the key already.
    pub async fn register(&self, record: Record) -> Result<Registration, DiscoveryError> {
        let (client, key) = (self.client.clone(), record.key());
        let claim = client.holdings.claim(&key)?;
        // From here on a dropped future takes the record back.
        let registration = Registration::new(Holding { client, key, claim, record: record.clone() });
        self.client.publish(record, claim).await?;
        Ok(registration)
    }

    /// Everything that answers `query`, as fresh as the store can tell.
    pub async fn list(&self, query: &Query) -> Result<Vec<Record>, DiscoveryError> {
        self.client.refresh().await?;
        Ok(self.client.table().list(query))
    }

    /// Follows what answers `query`.
    pub fn watch(&self, query: Query) -> Watch {
        self.client.table().watch(query, self.lagged.clone())
    }

    /// The epoch for a worker that starts now: later than that of every record of the same id. Fails when the id belongs
    /// to a worker of another name.
    pub async fn next_epoch(&self, id: WorkerId, worker_name: &str) -> Result<Epoch, DiscoveryError> {
        self.client.refresh().await?;
        let found = self.client.table().latest_epoch(id, worker_name)?;
        Ok(found.map_or(Epoch::now(), |found| Epoch::now().after(found)))
    }

    /// Deletes what is left of this client's records; with files, ends its watches too.
    pub async fn close(&self) {
        match &self.client.store {
            Store::Mem(store) => {
                self.client.holdings.drain(|key| store.remove(key, self.client.owner, || true));
            }
            Store::File(store) => {
                let store = store.clone();
                let closing =
                    self.client.scope.spawn_blocking("close discovery files", move || store.close());
                if closing.await.is_err() {
                    tracing::warn!("discovery files were left behind; others clean them up");
                }
            }
        }
    }
}

/// The backend, for the log: `memory` or `files below <root>`.
impl std::fmt::Display for Discovery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.client.store {
            Store::Mem(_) => f.write_str("memory"),
            Store::File(store) => write!(f, "files below {}", store.root().display()),
        }
    }
}

impl std::fmt::Debug for Discovery {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Discovery").field("owner", &self.client.owner).finish_non_exhaustive()
    }
}

impl Client {
    fn table(&self) -> &Arc<Table> {
        match &self.store {
            Store::Mem(store) => &store.table,
            Store::File(store) => store.table(),
        }
    }

    async fn publish(self: &Arc<Self>, record: Record, claim: Claim) -> Result<(), DiscoveryError> {
        let (key, entry) = (record.key(), Entry { record, owner: self.owner });
        match &self.store {
            Store::Mem(store) => store.publish(entry, || self.holdings.is_current(&key, claim)),
            Store::File(store) => {
                let (client, store) = (self.clone(), store.clone());
                let writing = self.scope.spawn_blocking("publish a record", move || {
                    store.publish(entry, || client.holdings.is_current(&key, claim))
                });
                writing.await.unwrap_or(Err(DiscoveryError::Closed))
            }
        }
    }

    fn remove(&self, key: &RecordKey, claim: Claim) -> Result<(), DiscoveryError> {
        let still_ours = || self.holdings.give_up(key, claim);
        match &self.store {
            Store::Mem(store) => {
                store.remove(key, self.owner, still_ours);
                Ok(())
            }
            Store::File(store) => store.remove(key, still_ours),
        }
    }

    fn leave_in_background(self: Arc<Self>, holding: Holding) {
        self.holdings.start_leaving(&holding.key, holding.claim);
        match &self.store {
            Store::Mem(store) => {
                if let Some(record) = holding.farewell() {
                    let entry = Entry { record, owner: self.owner };
                    // Refused only when another incarnation has the key, and then there is nothing to say.
                    let _ = store.publish(entry, || self.holdings.is_current(&holding.key, holding.claim));
                }
                self.remove_in_background(holding.key.clone(), holding.claim);
            }
            Store::File(_) => {
                let client = self.clone();
                self.scope.spawn("leave discovery", async move {
                    if let Some(record) = holding.farewell()
                        && let Err(error) = client.publish(record, holding.claim).await
                    {
                        tracing::debug!(%error, "a record leaves without being seen to drain");
                    }
                    client.remove_in_background(holding.key.clone(), holding.claim);
                });
            }
        }
    }

    /// Deletes the record, on disk after its farewell.
    fn remove_in_background(self: &Arc<Self>, key: RecordKey, claim: Claim) {
        if let Store::Mem(_) = self.store {
            // Does not fail in memory.
            let _ = self.remove(&key, claim);
            return;
        }
        let client = self.clone();
        self.scope.spawn("remove a record", async move {
            if let RecordKey::Endpoint(..) = key {
                tokio::select! {
                    () = tokio::time::sleep(FAREWELL) => {}
                    () = client.scope.cancelled() => {}
                }
            }
            let scope = client.scope.clone();
            let removing = scope.spawn_blocking("remove a record", move || client.remove(&key, claim));
            if let Ok(Err(error)) = removing.await {
                tracing::warn!(%error, "a record could not be removed; it goes with this process");
            }
        });
    }

    async fn refresh(self: &Arc<Self>) -> Result<(), DiscoveryError> {
        let Store::File(store) = &self.store else { return Ok(()) };
        let store = store.clone();
        let refreshing = self.scope.spawn_blocking("refresh discovery files", move || store.refresh());
        refreshing.await.unwrap_or(Err(DiscoveryError::Closed))
    }
}
