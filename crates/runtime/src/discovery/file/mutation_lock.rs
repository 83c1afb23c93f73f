//! One writer at a time, across processes.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

use super::liveness::is_at;
use super::root::Root;
use crate::discovery::DiscoveryError;

/// How long a writer waits for another: a change takes well under a millisecond, so whoever holds the lock this long is
/// stopped.
const PATIENCE: Duration = Duration::from_secs(2);

/// How long between two tries.
const RETRY: Duration = Duration::from_millis(1);

pub(super) struct MutationLock {
    file: File,
}

/// Nobody else writes while this is held.
pub(super) struct Held {
    /// The same open file as the lock's, so that unlocking needs no borrow of it.
    file: File,
}

impl MutationLock {
    pub(super) fn open(root: &Root) -> Result<Self, DiscoveryError> {
        let path = root.mutation_lock();
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(DiscoveryError::io("open", &path))?;
        Ok(Self { file })
    }

    pub(super) fn acquire(&mut self, root: &Root) -> Result<Held, DiscoveryError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(held) = self.try_acquire(root)? {
                return Ok(held);
            }
            if Instant::now() >= deadline {
                return Err(DiscoveryError::Busy { path: root.mutation_lock(), seconds: PATIENCE.as_secs() });
            }
            std::thread::sleep(RETRY);
        }
    }

    pub(super) fn try_acquire(&mut self, root: &Root) -> Result<Option<Held>, DiscoveryError> {
        let failed = DiscoveryError::io("lock", root.mutation_lock());
        if !is_at(&self.file, &root.mutation_lock()) {
            // The root was emptied under us; the lock of the old file would exclude nobody.
            root.make()?;
            *self = Self::open(root)?;
        }
        match flock(&self.file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => self.file.try_clone().map(|file| Some(Held { file })).map_err(failed),
            Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) => Ok(None),
            Err(errno) => Err(failed(errno.into())),
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // Cannot fail on an open file; and the lock goes with the file.
        let _ = flock(&self.file, FlockOperation::Unlock);
    }
}
