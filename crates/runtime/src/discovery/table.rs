//! What is known at the moment, and the watches over it. Every backend keeps one.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::DiscoveryError;
use super::owner::OwnerId;
use crate::discovery::{Change, Query, Record, RecordKey};
use crate::identity::{Epoch, WorkerId};
use crate::metrics::IntCounter;

#[cfg(test)]
mod tests;

/// Most records in one store: ten thousand workers with an endpoint, a model and a few channels each.
pub(super) const MAX_RECORDS: usize = 65_536;

/// Most changes that wait for a watcher. One that is further behind is served better by a snapshot.
const MAX_PENDING_CHANGES: usize = 1024;

pub(super) struct Table {
    state: Mutex<State>,
}

struct State {
    entries: BTreeMap<RecordKey, Entry>,
    feeds: Vec<Weak<Feed>>,
    closed: bool,
}

/// A record and who holds it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    pub(super) record: Record,
    pub(super) owner: OwnerId,
}

struct Feed {
    query: Query,
    queue: Mutex<Queue>,
    ready: Notify,
    /// Counts the times that changes were dropped.
    lagged: Option<IntCounter>,
}

#[derive(Default)]
struct Queue {
    changes: VecDeque<Change>,
    /// The next change is a snapshot: at the start, and when changes were dropped.
    lagged: bool,
}

impl Table {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State { entries: BTreeMap::new(), feeds: Vec::new(), closed: false }),
        })
    }

    /// Whether `owner` may put `record`: no other worker under its id, no later incarnation, room for it.
    pub(super) fn admit(&self, record: &Record, owner: OwnerId) -> Result<(), DiscoveryError> {
        let state = self.state.lock();
        if state.closed {
            return Err(DiscoveryError::Closed);
        }
        let incarnation = record.incarnation();
        if let Record::Endpoint(endpoint) = record {
            state.refuse_other_name(incarnation.worker_id, &endpoint.worker_name)?;
        }
        match state.entries.get(&record.key()) {
            Some(found) if found.owner != owner && found.record.incarnation().epoch >= incarnation.epoch => {
                Err(DiscoveryError::Superseded {
                    id: incarnation.worker_id,
                    ours: incarnation.epoch,
                    found: found.record.incarnation().epoch,
                })
            }
            None if state.entries.len() >= MAX_RECORDS => Err(DiscoveryError::Full { limit: MAX_RECORDS }),
            _ => Ok(()),
        }
    }

    /// The latest epoch on record for a worker, or a collision when the worker has another name.
    pub(super) fn latest_epoch(&self, id: WorkerId, name: &str) -> Result<Option<Epoch>, DiscoveryError> {
        let state = self.state.lock();
        state.refuse_other_name(id, name)?;
        let of_worker = state.entries.values().map(|entry| entry.record.incarnation());
        Ok(of_worker.filter(|found| found.worker_id == id).map(|found| found.epoch).max())
    }

    /// Puts a record, if it is new or differs by value.
    pub(super) fn put(&self, entry: Entry) {
        self.state.lock().put(entry);
    }

    /// Removes a record, if `owner` holds it.
    pub(super) fn remove(&self, key: &RecordKey, owner: OwnerId) {
        let mut state = self.state.lock();
        if state.entries.get(key).is_some_and(|entry| entry.owner == owner) {
            state.remove(key);
        }
    }

    /// Makes `entries` all that is known; watches see the difference.
    pub(super) fn replace(&self, entries: BTreeMap<RecordKey, Entry>) {
        let mut state = self.state.lock();
        let gone: Vec<RecordKey> =
            state.entries.keys().filter(|key| !entries.contains_key(key)).cloned().collect();
        for key in gone {
            state.remove(&key);
        }
        for entry in entries.into_values() {
            state.put(entry);
        }
    }

    pub(super) fn list(&self, query: &Query) -> Vec<Record> {
        self.state.lock().matching(query)
    }

    pub(super) fn watch(self: &Arc<Self>, query: Query, lagged: Option<IntCounter>) -> Watch {
        let queue = Mutex::new(Queue { changes: VecDeque::new(), lagged: true });
        let feed = Arc::new(Feed { query, queue, ready: Notify::new(), lagged });
        let mut state = self.state.lock();
        state.feeds.retain(|feed| feed.strong_count() > 0);
        state.feeds.push(Arc::downgrade(&feed));
        drop(state);
        Watch { table: self.clone(), feed }
    }

    /// Ends every watch, now and later, once it has seen what is pending.
    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        for feed in state.feeds.drain(..).filter_map(|feed| feed.upgrade()) {
            feed.ready.notify_one();
        }
    }
}

impl State {
    fn refuse_other_name(&self, id: WorkerId, name: &str) -> Result<(), DiscoveryError> {
        for entry in self.entries.values() {
            if let Record::Endpoint(found) = &entry.record
                && found.incarnation.worker_id == id
                && found.worker_name != name
            {
                let (ours, theirs) = (name.to_owned(), found.worker_name.clone());
                return Err(DiscoveryError::Collision { id, ours, theirs });
            }
        }
        Ok(())
    }

    fn matching(&self, query: &Query) -> Vec<Record> {
        let matching = self.entries.iter().filter(|(key, _)| query.matches(key));
        matching.map(|(_, entry)| entry.record.clone()).collect()
    }

    fn put(&mut self, entry: Entry) {
        let key = entry.record.key();
        match self.entries.get_mut(&key) {
            Some(known) if known.record == entry.record => known.owner = entry.owner,
            _ => {
                self.tell(&key, || Change::Put(entry.record.clone()));
                self.entries.insert(key, entry);
            }
        }
    }

    fn remove(&mut self, key: &RecordKey) {
        if self.entries.remove(key).is_some() {
            self.tell(key, || Change::Removed(key.clone()));
        }
    }

    fn tell(&self, key: &RecordKey, change: impl Fn() -> Change) {
        for feed in self.feeds.iter().filter_map(Weak::upgrade) {
            if feed.query.matches(key) {
                if feed.queue.lock().push(change()) == Pushed::Lagged
                    && let Some(lagged) = &feed.lagged
                {
                    lagged.inc();
                }
                feed.ready.notify_one();
            }
        }
    }
}

#[derive(PartialEq)]
enum Pushed {
    Kept,
    /// The queue was full; a snapshot takes the place of what was in it.
    Lagged,
}

impl Queue {
    fn push(&mut self, change: Change) -> Pushed {
        if self.lagged {
            // A snapshot is due already, and will hold it.
            return Pushed::Kept;
        }
        if self.changes.len() >= MAX_PENDING_CHANGES {
            self.changes.clear();
            self.lagged = true;
            return Pushed::Lagged;
        }
        self.changes.push_back(change);
        Pushed::Kept
    }
}

/// A level-triggered view of what a query finds. The first change is a snapshot; changes come in order, and one that
/// was missed is made up for by another snapshot.
pub struct Watch {
    table: Arc<Table>,
    feed: Arc<Feed>,
}

impl Watch {
    /// The next change, or none when discovery was closed. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Change> {
        loop {
            if let Some(change) = self.take() {
                return Some(change);
            }
            if self.table.state.lock().closed {
                // What came between the look above and the closing.
                return self.take();
            }
            self.feed.ready.notified().await;
        }
    }

    fn take(&mut self) -> Option<Change> {
        // In the order of the locks everywhere: the table, then the queue. Holding the table makes the snapshot and
        // the start of the changes after it one moment.
        let state = self.table.state.lock();
        let mut queue = self.feed.queue.lock();
        if queue.lagged {
            queue.lagged = false;
            queue.changes.clear();
            return Some(Change::Snapshot(state.matching(&self.feed.query)));
        }
        queue.changes.pop_front()
    }
}
