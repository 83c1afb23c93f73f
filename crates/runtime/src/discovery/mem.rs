//! Discovery inside one process.

use std::sync::Arc;

use parking_lot::Mutex;

use super::DiscoveryError;
use super::owner::OwnerId;
use super::table::{Entry, Table};
use crate::discovery::RecordKey;

/// A store that the runtimes of one process share: each is given a clone. It ends with its last clone.
#[derive(Clone)]
pub struct MemStore {
    pub(super) table: Arc<Table>,
    /// Makes a check and the change after it one step.
    mutation: Arc<Mutex<()>>,
}

impl MemStore {
    /// An empty store.
    pub fn new() -> Self {
        Self { table: Table::new(), mutation: Arc::default() }
    }

    pub(super) fn publish(
        &self,
        entry: Entry,
        still_wanted: impl FnOnce() -> bool,
    ) -> Result<(), DiscoveryError> {
        let _mutation = self.mutation.lock();
        if still_wanted() {
            self.table.admit(&entry.record, entry.owner)?;
            self.table.put(entry);
        }
        Ok(())
    }

    pub(super) fn remove(&self, key: &RecordKey, owner: OwnerId, still_wanted: impl FnOnce() -> bool) {
        let _mutation = self.mutation.lock();
        if still_wanted() {
            self.table.remove(key, owner);
        }
    }
}

impl Default for MemStore {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for MemStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemStore").finish_non_exhaustive()
    }
}
