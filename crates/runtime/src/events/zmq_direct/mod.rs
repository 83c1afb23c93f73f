//! Events between processes: a PUB socket per publisher, a SUB socket per subscription, found through discovery.
//!
//! libzmq's sockets block and are not shared between threads, so all of a plane's live on one thread of their own
//! ([`sockets`]). It is told what to hold as a state ([`desired`]), not by commands: whatever the order or number of changes,
//! it does the difference between what it has and what is wanted.

mod desired;
mod follow;
mod handle;
mod sockets;

use super::envelope::Arrival;
use super::inbox::Inbox;
use super::publisher::Outlet;
use super::{EventPlaneConfig, EventPlaneError, PublishError};
use crate::discovery::{Discovery, EventChannelRecord, EventScope, Query, Record, Registration};
use crate::identity::Incarnation;
use crate::metrics::IntCounter;
use crate::scope::TaskScope;
use follow::follow;
use handle::{Binding, Reactor};
use parking_lot::Mutex;
use std::sync::Arc;
use tokio_util::sync::{CancellationToken, DropGuard};

/// The ZeroMQ side of an event plane. Its thread starts with the first publisher or subscription.
pub(super) struct ZmqDirect {
    scope: TaskScope,
    discovery: Discovery,
    config: EventPlaneConfig,
    publish_queue: IntCounter,
    reactor: Mutex<Option<Arc<Reactor>>>,
}

impl ZmqDirect {
    pub(super) fn new(
        scope: TaskScope,
        discovery: Discovery,
        config: EventPlaneConfig,
        publish_queue: IntCounter,
    ) -> Self {
        Self { scope, discovery, config, publish_queue, reactor: Mutex::new(None) }
    }

    pub(super) async fn publish(
        &self,
        scope: EventScope,
        topic: Arc<str>,
        incarnation: Incarnation,
    ) -> Result<impl Outlet + use<>, EventPlaneError> {
        let host = self.config.host;
        if host.is_unspecified() {
            return Err(EventPlaneError::WildcardHost(host));
        }
        let binding = self.reactor()?.bind(host).await?;
        let address = binding.address().to_owned();
        let record = EventChannelRecord { scope, topic: topic.to_string(), incarnation, address };
        let registration = self.discovery.register(Record::EventChannel(record)).await?;
        Ok(ZmqOutlet { _registration: registration, binding })
    }

    pub(super) async fn subscribe(
        &self,
        scope: EventScope,
        inbox: Arc<Inbox>,
    ) -> Result<Box<dyn Send + Sync>, EventPlaneError> {
        let subscription = self.reactor()?.subscribe(inbox.clone()).await?;
        let query =
            Query::EventChannels { namespace: Some(scope.namespace.clone()), topic: inbox.topic.to_string() };
        let watch = self.discovery.watch(query);
        let stop = CancellationToken::new();
        let until = {
            let (stop, scope) = (stop.clone(), self.scope.clone());
            async move {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = scope.cancelled() => {}
                }
            }
        };
        self.scope.spawn("follow event channels", follow(watch, scope, inbox, subscription, until));
        Ok(Box::new(Following { _stop: stop.drop_guard() }))
    }

    fn reactor(&self) -> Result<Arc<Reactor>, EventPlaneError> {
        let mut reactor = self.reactor.lock();
        if let Some(reactor) = &*reactor {
            return Ok(reactor.clone());
        }
        if self.scope.is_cancelled() {
            return Err(EventPlaneError::Closed);
        }
        let (started, mut ended) = Reactor::start(self.config.io_threads, self.publish_queue.clone())?;
        let started = Arc::new(started);
        let weak = Arc::downgrade(&started);
        let scope = self.scope.clone();
        self.scope.spawn("event sockets", async move {
            tokio::select! {
                () = scope.cancelled() => {}
                _ = &mut ended => return,
            }
            if let Some(reactor) = weak.upgrade() {
                reactor.close();
            }
            // The sender is dropped when the thread is through.
            let _ = ended.await;
        });
        *reactor = Some(started.clone());
        Ok(started)
    }
}

/// Leaves discovery first, then closes the socket: fields are dropped in this order.
struct ZmqOutlet {
    _registration: Registration,
    binding: Binding,
}

impl Outlet for ZmqOutlet {
    fn send(&self, arrival: Arrival) -> Result<(), PublishError> {
        self.binding.send(arrival)
    }
}

struct Following {
    _stop: DropGuard,
}
