//! Which adapters any worker of a router has.

use std::collections::{BTreeMap, BTreeSet};

use parking_lot::RwLock;

/// Adapters by worker. No more than cards name.
#[derive(Default)]
pub(super) struct Adapters {
    state: RwLock<State>,
}

#[derive(Default)]
struct State {
    of_worker: BTreeMap<u64, Vec<String>>,
    all: BTreeSet<String>,
}

impl Adapters {
    /// These are what the worker has now.
    pub(super) fn set(&self, worker_id: u64, adapters: &[String]) {
        // Most deployments have none: then no worker's record takes the lock for writing.
        let known = self.state.read().of_worker.get(&worker_id).map_or(&[][..], Vec::as_slice) == adapters;
        if known {
            return;
        }
        let mut state = self.state.write();
        if adapters.is_empty() {
            state.of_worker.remove(&worker_id);
        } else {
            state.of_worker.insert(worker_id, adapters.to_vec());
        }
        state.all = state.of_worker.values().flatten().cloned().collect();
    }

    /// Whether any worker has it.
    pub(super) fn contains(&self, adapter: &str) -> bool {
        self.state.read().all.contains(adapter)
    }
}

#[cfg(test)]
mod tests;
