use super::super::inbox::Inbox;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use tokio::sync::oneshot;

/// Resolves with the address bound, or with libzmq's refusal.
pub(super) type Reply<T> = oneshot::Sender<Result<T, String>>;

/// Which sockets there should be. Bounded by the publishers and subscriptions that are held, and by discovery.
#[derive(Default)]
pub(super) struct Desired {
    /// Grows with every change.
    pub(super) version: u64,
    pub(super) closed: bool,
    next_id: u64,
    pub(super) publishers: BTreeMap<u64, Publisher>,
    pub(super) subscriptions: BTreeMap<u64, Subscription>,
}

pub(super) struct Publisher {
    pub(super) host: IpAddr,
    /// Taken by the thread when it makes the socket.
    pub(super) reply: Option<Reply<String>>,
}

pub(super) struct Subscription {
    pub(super) inbox: Arc<Inbox>,
    pub(super) addresses: BTreeSet<String>,
    /// Taken by the thread when it makes the socket.
    pub(super) reply: Option<Reply<()>>,
}

impl Desired {
    pub(super) fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }
}
