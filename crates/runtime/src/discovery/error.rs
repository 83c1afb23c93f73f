//! What can go wrong in discovery.

use std::path::PathBuf;

use crate::identity::{Epoch, WorkerId};

/// Why a discovery operation failed.
#[derive(Debug, thiserror::Error)]
pub enum DiscoveryError {
    /// Another worker holds this id.
    #[error(
        "worker id {id:x} of {ours:?} is already held by {theirs:?}; give one of them another name or let its id be random"
    )]
    Collision {
        /// The id both claim.
        id: WorkerId,
        /// Our worker's name.
        ours: String,
        /// The name in the record found.
        theirs: String,
    },
    /// A later incarnation of the same worker has registered.
    #[error(
        "a later incarnation of worker {id:x} (epoch {found:?}) replaced this one (epoch {ours:?}); start it anew"
    )]
    Superseded {
        /// The worker.
        id: WorkerId,
        /// Our epoch.
        ours: Epoch,
        /// The epoch found.
        found: Epoch,
    },
    /// This process holds a registration under the same key.
    #[error("{key} is registered by this runtime already; update or drop that registration first")]
    AlreadyRegistered {
        /// The path of the key.
        key: String,
    },
    /// An update named another thing than the registration.
    #[error("an update must keep its key: registered as {registered}, updated as {updated}")]
    KeyChanged {
        /// The path that was registered.
        registered: String,
        /// The path of the update.
        updated: String,
    },
    /// The store is at its bound.
    #[error(
        "discovery holds its most records ({limit}); remove some, or use a store of its own for each deployment"
    )]
    Full {
        /// The bound, in records.
        limit: usize,
    },
    /// A record is larger than the bound.
    #[error("the record of {key} has {size} bytes, more than {limit}; make it smaller")]
    TooLarge {
        /// The path of the key.
        key: String,
        /// Its size in bytes.
        size: usize,
        /// The bound in bytes.
        limit: usize,
    },
    /// The store was closed.
    #[error("discovery is closed")]
    Closed,
    /// The file root cannot be trusted.
    #[error(
        "discovery root {} belongs to user {owner}, not to us ({ours}); set DYN_FILE_KV to a directory of your own",
        path.display()
    )]
    ForeignRoot {
        /// The root.
        path: PathBuf,
        /// Who owns it.
        owner: u32,
        /// Our user.
        ours: u32,
    },
    /// Another process holds the mutation lock for too long.
    #[error("the lock {} is held by another process for more than {seconds} s; is it stopped?", path.display())]
    Busy {
        /// The lock file.
        path: PathBuf,
        /// How long we waited.
        seconds: u64,
    },
    /// The file system refused.
    #[error("discovery cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A record could not be written as JSON.
    #[error("the record of {key} is not valid JSON: {source}")]
    Encode {
        /// The path of the key.
        key: String,
        /// Why not.
        source: serde_json::Error,
    },
}

impl DiscoveryError {
    pub(super) fn io(
        action: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(std::io::Error) -> DiscoveryError {
        let path = path.into();
        move |source| DiscoveryError::Io { action, path, source }
    }
}
