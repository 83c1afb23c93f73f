//! Discovery in files, for the processes of one user on one host.
//!
//! `<root>/v1/<bucket>/<percent-encoded key>` holds a record as JSON, mode 0600, written beside its place and renamed, so
//! that it is never seen half. `<root>/v1/owners/<owner>` is locked (flock) by the process that holds the records
//! naming that owner: whoever can take the lock knows that the owner is dead, whatever killed it, and cleans up. Changes
//! are made under the lock of `<root>/v1/lock`, so that a check and the change after it are one step. Names that start
//! with `.tmp_` are not there yet.
//!
//! A process that forks without exec shares its lock with the child: its records then live as long as either.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

mod bucket_view;
mod liveness;
mod mutation_lock;
mod root;
#[cfg(test)]
mod tests;

pub use root::default_root;

use bucket_view::BucketView;
use liveness::{OwnLock, Probes};
use mutation_lock::MutationLock;
use root::Root;

use super::DiscoveryError;
use super::key_path::Bucket;
use super::owner::OwnerId;
use super::record_json;
use super::table::{Entry, Table};
use crate::discovery::RecordKey;

/// Largest record, in bytes: a model card with its template and configuration.
const MAX_RECORD_BYTES: usize = 4 << 20;

/// Names that start so are written but not yet published.
const TEMPORARY: &str = ".tmp_";

/// One client of the files. Everything in it blocks, and is called on the blocking pool.
pub(super) struct FileStore {
    root: Root,
    owner: OwnerId,
    table: Arc<Table>,
    disk: Mutex<Disk>,
    /// Whether the last poll failed, so that a lasting failure is logged once.
    failing: AtomicBool,
}

/// What one client knows of the disk. Its mutex keeps the client's own changes and its scans apart.
struct Disk {
    mutation: MutationLock,
    own_lock: Option<OwnLock>,
    /// What this client holds: written again when someone deleted it.
    own: BTreeMap<RecordKey, Entry>,
    views: Vec<(Bucket, BucketView)>,
    probes: Probes,
    /// Who was found alive at the last scan; kept for its memory.
    alive: HashMap<OwnerId, bool>,
    /// Something found at the last scan was not put right.
    unfinished: bool,
}

impl FileStore {
    pub(super) fn open(root: &Path, owner: OwnerId) -> Result<Self, DiscoveryError> {
        let root = Root::open(root)?;
        liveness::sweep(&root);
        let disk = Disk {
            mutation: MutationLock::open(&root)?,
            own_lock: Some(OwnLock::take(&root, owner)?),
            own: BTreeMap::new(),
            views: Bucket::ALL.map(|bucket| (bucket, BucketView::default())).into(),
            probes: Probes::default(),
            alive: HashMap::new(),
            unfinished: false,
        };
        let store = Self {
            root,
            owner,
            table: Table::new(),
            disk: Mutex::new(disk),
            failing: AtomicBool::new(false),
        };
        store.refresh()?;
        Ok(store)
    }

    pub(super) fn table(&self) -> &Arc<Table> {
        &self.table
    }

    pub(super) fn root(&self) -> &Path {
        self.root.path()
    }

    /// Writes `entry` if, once nobody else can write, it is still wanted and may be.
    pub(super) fn publish(
        &self,
        entry: Entry,
        still_wanted: impl FnOnce() -> bool,
    ) -> Result<(), DiscoveryError> {
        let mut guard = self.disk.lock();
        let disk = &mut *guard;
        if disk.own_lock.is_none() {
            return Err(DiscoveryError::Closed);
        }
        let held = disk.mutation.acquire(&self.root)?;
        disk.views_refresh(&self.root, self.owner, &self.table)?;
        if still_wanted() {
            self.table.admit(&entry.record, entry.owner)?;
            self.root.write(&entry)?;
            disk.own.insert(entry.record.key(), entry.clone());
            self.table.put(entry);
        }
        drop(held);
        Ok(())
    }

    /// Deletes the record of `key` if it is still ours and unwanted.
    pub(super) fn remove(
        &self,
        key: &RecordKey,
        still_unwanted: impl FnOnce() -> bool,
    ) -> Result<(), DiscoveryError> {
        let mut disk = self.disk.lock();
        let held = disk.mutation.acquire(&self.root)?;
        if still_unwanted() {
            disk.own.remove(key);
            self.root.remove_if_owned(key, self.owner)?;
            self.table.remove(key, self.owner);
        }
        drop(held);
        Ok(())
    }

    /// Brings the table up to date with the disk, and the disk with what died and what we hold.
    pub(super) fn refresh(&self) -> Result<(), DiscoveryError> {
        let mut guard = self.disk.lock();
        let disk = &mut *guard;
        if disk.own_lock.is_none() {
            return Err(DiscoveryError::Closed);
        }
        let chores = disk.views_refresh(&self.root, self.owner, &self.table)?;
        if chores.is_empty() {
            return Ok(());
        }
        // Another process that holds the lock is likely at the same chores; they are looked at again at the next poll.
        let Some(held) = disk.mutation.try_acquire(&self.root)? else { return Ok(()) };
        if chores.lock_lost {
            disk.own_lock = Some(OwnLock::take(&self.root, self.owner)?);
        }
        for (key, owner) in &chores.orphans {
            self.root.remove_if_owned(key, *owner)?;
        }
        for owner in &chores.dead {
            liveness::forget(&self.root, *owner);
        }
        for key in &chores.lost {
            if let Some(entry) = disk.own.get(key) {
                self.root.write(entry)?;
                self.table.put(entry.clone());
            }
        }
        disk.unfinished = false;
        drop(held);
        Ok(())
    }

    /// [`refresh`](Self::refresh) whose failure is logged once, until it works again.
    pub(super) fn poll(&self) {
        match self.refresh() {
            Ok(()) => self.failing.store(false, Ordering::Relaxed),
            Err(DiscoveryError::Closed) => {}
            Err(error) => {
                if !self.failing.swap(true, Ordering::Relaxed) {
                    tracing::warn!(%error, "discovery files cannot be read; what was known stays in use");
                }
            }
        }
    }

    /// Deletes what this client holds and ends its watches. What cannot be deleted is cleaned up by others.
    pub(super) fn close(&self) {
        let mut guard = self.disk.lock();
        let disk = &mut *guard;
        if disk.own_lock.is_none() {
            return;
        }
        let own = std::mem::take(&mut disk.own);
        if let Ok(held) = disk.mutation.acquire(&self.root) {
            for key in own.keys() {
                // What stays is an orphan as soon as our lock goes, two lines below.
                let _ = self.root.remove_if_owned(key, self.owner);
            }
            liveness::forget(&self.root, self.owner);
            drop(held);
        }
        disk.own_lock = None;
        self.table.close();
    }
}

impl Drop for FileStore {
    fn drop(&mut self) {
        self.close();
    }
}

/// What a scan found to be put right.
#[derive(Default)]
struct Chores {
    /// Records whose owner is dead.
    orphans: Vec<(RecordKey, OwnerId)>,
    dead: Vec<OwnerId>,
    /// Records of ours that someone deleted.
    lost: Vec<RecordKey>,
    /// Our lock file was deleted.
    lock_lost: bool,
}

impl Chores {
    fn is_empty(&self) -> bool {
        self.orphans.is_empty() && self.lost.is_empty() && !self.lock_lost
    }
}

impl Disk {
    /// Scans what changed, asks which owners live, and shows the result in `table`.
    fn views_refresh(
        &mut self,
        root: &Root,
        owner: OwnerId,
        table: &Table,
    ) -> Result<Chores, DiscoveryError> {
        let mut looked = false;
        for (bucket, view) in &mut self.views {
            looked |= view.scan(root, *bucket)?;
        }
        let mut chores = Chores::default();
        // Bounded by the records there are.
        let alive = &mut self.alive;
        alive.clear();
        alive.insert(owner, true);
        for entry in self.views.iter().flat_map(|(_, view)| view.entries()) {
            alive.entry(entry.owner).or_insert_with(|| self.probes.is_alive(root, entry.owner));
        }
        self.probes.keep(|known| alive.contains_key(&known));
        chores.dead = alive.iter().filter(|(_, alive)| !**alive).map(|(owner, _)| *owner).collect();
        chores.lock_lost = self.own_lock.as_ref().is_some_and(|lock| lock.is_lost());
        if looked || self.unfinished || !chores.dead.is_empty() {
            let mut entries = BTreeMap::new();
            for entry in self.views.iter().flat_map(|(_, view)| view.entries()) {
                let key = entry.record.key();
                if alive.get(&entry.owner).copied().unwrap_or(false) {
                    entries.insert(key, entry.clone());
                } else {
                    chores.orphans.push((key, entry.owner));
                }
            }
            self.own.retain(|key, entry| match entries.get(key) {
                Some(found) if found.owner != owner => {
                    tracing::warn!(key = key.path(), "a later incarnation took over this record");
                    false
                }
                Some(_) => true,
                None => {
                    chores.lost.push(key.clone());
                    entries.insert(key.clone(), entry.clone());
                    true
                }
            });
            table.replace(entries);
        }
        self.unfinished |= !chores.is_empty();
        Ok(chores)
    }
}

/// Whether an error says that the file is not there.
fn is_missing(error: &std::io::Error) -> bool {
    error.kind() == ErrorKind::NotFound
}

/// Deletes a file that may be gone already.
fn unlink(path: &Path) -> Result<(), DiscoveryError> {
    match fs::remove_file(path) {
        Err(error) if !is_missing(&error) => Err(DiscoveryError::io("delete", path)(error)),
        _ => Ok(()),
    }
}
