//! Who lives: an owner holds the lock of its file for as long as its process does.

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};

use super::root::{Root, temporary_in};
use super::{TEMPORARY, unlink};
use crate::discovery::DiscoveryError;
use crate::discovery::key_path::Bucket;
use crate::discovery::owner::OwnerId;

/// A temporary file this old belongs to a process that died while it wrote; writing takes milliseconds.
const STALE: Duration = Duration::from_secs(60);

/// Our own lock, held until dropped or until the process ends, however it does.
pub(super) struct OwnLock {
    file: File,
    path: PathBuf,
}

impl OwnLock {
    pub(super) fn take(root: &Root, owner: OwnerId) -> Result<Self, DiscoveryError> {
        // Locked before it has its name: nobody can find it free in between.
        let temporary = temporary_in(&root.owners());
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&temporary)
            .map_err(DiscoveryError::io("create", &temporary))?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)
            .map_err(|errno| DiscoveryError::io("lock", &temporary)(errno.into()))?;
        let place = root.owner_lock(owner);
        fs::rename(&temporary, &place).map_err(DiscoveryError::io("create", &place))?;
        Ok(Self { file, path: place })
    }

    /// Whether someone deleted the file, which makes us look dead.
    pub(super) fn is_lost(&self) -> bool {
        !is_at(&self.file, &self.path)
    }
}

/// Whether `path` still leads to the open `file`. (The link count of a deleted file is not to be relied on: some file
/// systems go on reporting one.)
pub(super) fn is_at(file: &File, path: &Path) -> bool {
    let (Ok(open), Ok(found)) = (file.metadata(), fs::metadata(path)) else { return false };
    (open.dev(), open.ino()) == (found.dev(), found.ino())
}

/// The lock files of others, kept open so that asking again is one call.
#[derive(Default)]
pub(super) struct Probes {
    files: HashMap<OwnerId, File>,
}

impl Probes {
    /// Whether the process that holds `owner`'s records lives.
    pub(super) fn is_alive(&mut self, root: &Root, owner: OwnerId) -> bool {
        if let Some(file) = self.files.get(&owner)
            && is_locked(file)
        {
            return true;
        }
        // The file we know may have been replaced by its owner.
        self.files.remove(&owner);
        match File::open(root.owner_lock(owner)) {
            Ok(file) if is_locked(&file) => {
                self.files.insert(owner, file);
                true
            }
            _ => false,
        }
    }

    pub(super) fn keep(&mut self, wanted: impl Fn(OwnerId) -> bool) {
        self.files.retain(|owner, _| wanted(*owner));
    }
}

fn is_locked(file: &File) -> bool {
    // Shared, so that two who ask at once do not take each other for the owner.
    match flock(file, FlockOperation::NonBlockingLockShared) {
        Ok(()) => {
            // Closing the file would do the same.
            let _ = flock(file, FlockOperation::Unlock);
            false
        }
        Err(_) => true,
    }
}

/// Deletes the lock file of an owner that is gone.
pub(super) fn forget(root: &Root, owner: OwnerId) {
    let path = root.owner_lock(owner);
    if let Err(error) = unlink(&path) {
        tracing::debug!(%error, "a lock file stays behind");
    }
}

/// Deletes what dead processes left behind: locks that nobody holds and temporary files. Best effort.
pub(super) fn sweep(root: &Root) {
    let owners = root.owners();
    let directories = Bucket::ALL.map(|bucket| root.bucket(bucket));
    for item in directories.into_iter().chain([&*owners]).filter_map(|path| fs::read_dir(path).ok()).flatten()
    {
        let Ok(item) = item else { continue };
        let temporary = item.file_name().as_encoded_bytes().starts_with(TEMPORARY.as_bytes());
        let dead = if temporary {
            let modified = item.metadata().and_then(|metadata| metadata.modified());
            modified.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > STALE))
        } else {
            item.path().starts_with(&owners) && File::open(item.path()).is_ok_and(|file| !is_locked(&file))
        };
        if dead {
            // Someone else may be sweeping.
            let _ = fs::remove_file(item.path());
        }
    }
}
