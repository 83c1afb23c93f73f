//! What is served.

use std::{
    collections::HashMap,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use parking_lot::RwLock;

use super::{Handler, StreamError};

struct Served {
    handler: Arc<dyn Handler>,
    mount: u64,
}

/// Handlers by path. As many as the program mounts.
pub(super) struct Paths {
    served: RwLock<HashMap<Arc<str>, Served>>,
    mounts: AtomicU64,
    admitting: AtomicBool,
}

impl Paths {
    pub(super) fn new() -> Self {
        Self { served: RwLock::default(), mounts: AtomicU64::new(0), admitting: AtomicBool::new(true) }
    }

    pub(super) fn find(&self, path: &str) -> Result<Arc<dyn Handler>, StreamError> {
        if !self.admitting.load(Ordering::Acquire) {
            return Err(StreamError::Unavailable("the process is going away".to_owned()));
        }
        match self.served.read().get(path) {
            Some(served) => Ok(served.handler.clone()),
            None => Err(StreamError::Unavailable(format!("nothing is served at {path}"))),
        }
    }

    pub(super) fn stop_admitting(&self) {
        self.admitting.store(false, Ordering::Release);
    }

    /// The mount's number, and whether the path was served before.
    fn mount(&self, path: &str, handler: Arc<dyn Handler>) -> (u64, bool) {
        let mount = self.mounts.fetch_add(1, Ordering::Relaxed);
        let before = self.served.write().insert(path.into(), Served { handler, mount });
        (mount, before.is_some())
    }

    /// Whether the path is no longer served; it still is if it was mounted again since.
    fn unmount(&self, path: &str, mount: u64) -> bool {
        let mut served = self.served.write();
        let current = served.get(path).is_some_and(|served| served.mount == mount);
        if current {
            served.remove(path);
        }
        current
    }
}

/// Who tells the peers which paths come and go.
pub(super) trait Announce: Send + Sync {
    fn paths(&self) -> &Paths;
    fn announce(&self, path: &str, back: bool);
}

/// Keeps a path served. Dropping it refuses new requests there and tells all peers; running ones go on.
pub struct ServeGuard {
    plane: Weak<dyn Announce>,
    path: String,
    mount: u64,
}

impl ServeGuard {
    pub(super) fn new(plane: &Arc<impl Announce + 'static>, path: &str, handler: Arc<dyn Handler>) -> Self {
        let (mount, _) = plane.paths().mount(path, handler);
        plane.announce(path, true);
        let plane: Arc<dyn Announce> = plane.clone();
        Self { plane: Arc::downgrade(&plane), path: path.to_owned(), mount }
    }

    /// What is served.
    pub fn path(&self) -> &str {
        &self.path
    }
}

impl Drop for ServeGuard {
    fn drop(&mut self) {
        if let Some(plane) = self.plane.upgrade()
            && plane.paths().unmount(&self.path, self.mount)
        {
            plane.announce(&self.path, false);
        }
    }
}
