//! Other indexers.

use parking_lot::Mutex;

use super::peer_client::{PeerUrl, PeerUrlError};

/// Peers at most: each is asked in turn at a start.
const MAX_PEERS: usize = 256;

/// The list of peers, in the order in which they came.
#[derive(Default)]
pub(super) struct Peers(Mutex<Vec<String>>);

/// Why a peer was not taken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum PeerError {
    #[error(transparent)]
    Url(#[from] PeerUrlError),
    #[error("this indexer has {MAX_PEERS} peers: deregister some")]
    TooMany,
}

impl Peers {
    /// Adds one; one that is there stays.
    pub(super) fn add(&self, url: &str) -> Result<(), PeerError> {
        PeerUrl::parse(url)?;
        let mut peers = self.0.lock();
        if peers.iter().any(|known| known == url) {
            return Ok(());
        }
        if peers.len() >= MAX_PEERS {
            return Err(PeerError::TooMany);
        }
        peers.push(url.to_owned());
        Ok(())
    }

    /// Removes one; `false` if it is not there.
    pub(super) fn remove(&self, url: &str) -> bool {
        let mut peers = self.0.lock();
        let before = peers.len();
        peers.retain(|known| known != url);
        peers.len() < before
    }

    /// All of them.
    pub(super) fn list(&self) -> Vec<String> {
        self.0.lock().clone()
    }
}
