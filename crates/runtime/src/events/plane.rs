use super::inbox::Inbox;
use super::metrics::EventMetrics;
use super::publisher::{EventPublisher, Outlet, Shared};
use super::zmq_direct::ZmqDirect;
use super::{EventHub, EventPlaneConfig, EventPlaneError, EventPlaneKind, EventSubscriber};
use crate::discovery::{Discovery, EventScope};
use crate::identity::Incarnation;
use crate::scope::TaskScope;
use std::collections::HashMap;
use std::sync::{Arc, Weak};

/// The longest topic, in bytes: it travels with every event.
const MAX_TOPIC: usize = 255;

/// One runtime's access to events. Clones are the same plane.
#[derive(Clone)]
pub struct EventPlane {
    inner: Arc<Inner>,
}

struct Inner {
    incarnation: Incarnation,
    subscriber_queue: usize,
    metrics: EventMetrics,
    transport: Transport,
    /// Open publishers: a scope and topic has one numbering, however often it is asked for.
    publishers: tokio::sync::Mutex<Publishers>,
}

type Publishers = HashMap<(EventScope, Arc<str>), Weak<Shared>>;

enum Transport {
    Hub(EventHub),
    Zmq(ZmqDirect),
}

impl EventPlane {
    /// A plane among those that share `hub`, in this process.
    pub fn in_process(
        hub: EventHub,
        incarnation: Incarnation,
        config: &EventPlaneConfig,
        metrics: EventMetrics,
    ) -> Self {
        Self::over(Transport::Hub(hub), incarnation, config, metrics)
    }

    /// A plane over ZeroMQ. Publishers register as `incarnation` in `discovery`, where subscriptions find them. When `scope`
    /// is cancelled, what waits is sent, sockets are closed and subscriptions end.
    pub fn zmq(
        scope: TaskScope,
        discovery: Discovery,
        incarnation: Incarnation,
        config: &EventPlaneConfig,
        metrics: EventMetrics,
    ) -> Self {
        let zmq = ZmqDirect::new(scope, discovery, config.clone(), metrics.publish_queue.clone());
        Self::over(Transport::Zmq(zmq), incarnation, config, metrics)
    }

    /// The plane that `config` names.
    pub fn start(
        config: &EventPlaneConfig,
        hub: EventHub,
        scope: TaskScope,
        discovery: Discovery,
        incarnation: Incarnation,
        metrics: EventMetrics,
    ) -> Self {
        match config.kind {
            EventPlaneKind::InProcess => Self::in_process(hub, incarnation, config, metrics),
            EventPlaneKind::Zmq => Self::zmq(scope, discovery, incarnation, config, metrics),
        }
    }

    fn over(
        transport: Transport,
        incarnation: Incarnation,
        config: &EventPlaneConfig,
        metrics: EventMetrics,
    ) -> Self {
        let subscriber_queue = config.subscriber_queue;
        let publishers = tokio::sync::Mutex::default();
        Self { inner: Arc::new(Inner { incarnation, subscriber_queue, metrics, transport, publishers }) }
    }

    /// The publisher of `topic` about `scope`. Asking again while it is held gives the same one.
    pub async fn publisher(&self, scope: EventScope, topic: &str) -> Result<EventPublisher, EventPlaneError> {
        let topic = checked(topic)?;
        let inner = &*self.inner;
        let mut publishers = inner.publishers.lock().await;
        publishers.retain(|_, shared| shared.strong_count() > 0);
        let key = (scope.clone(), topic.clone());
        if let Some(shared) = publishers.get(&key).and_then(Weak::upgrade) {
            return Ok(EventPublisher { shared });
        }
        let outlet: Box<dyn Outlet> = match &inner.transport {
            Transport::Hub(hub) => Box::new(hub.publish(scope, topic.clone(), inner.incarnation)),
            Transport::Zmq(zmq) => Box::new(zmq.publish(scope, topic.clone(), inner.incarnation).await?),
        };
        let (published, open) = (inner.metrics.published(&topic), inner.metrics.publishers.clone());
        let publisher = EventPublisher::new(inner.incarnation, topic, published, open, outlet);
        publishers.insert(key, Arc::downgrade(&publisher.shared));
        Ok(publisher)
    }

    /// Subscribes to `topic` about exactly `scope`, from whoever publishes it, now or later.
    pub async fn subscribe(
        &self,
        scope: EventScope,
        topic: &str,
    ) -> Result<EventSubscriber, EventPlaneError> {
        let topic = checked(topic)?;
        let inner = &*self.inner;
        let metrics = inner.metrics.of_topic(&topic);
        let dropped = inner.metrics.subscriber_queue.clone();
        let inbox = Inbox::new(topic, metrics, dropped, inner.subscriber_queue);
        let transport = match &inner.transport {
            Transport::Hub(hub) => hub.subscribe(scope, inbox.clone()),
            Transport::Zmq(zmq) => zmq.subscribe(scope, inbox.clone()).await?,
        };
        Ok(EventSubscriber::new(inbox, inner.metrics.subscriptions.clone(), transport))
    }

    /// The name of the transport.
    pub fn kind(&self) -> EventPlaneKind {
        match self.inner.transport {
            Transport::Hub(_) => EventPlaneKind::InProcess,
            Transport::Zmq(_) => EventPlaneKind::Zmq,
        }
    }
}

fn checked(topic: &str) -> Result<Arc<str>, EventPlaneError> {
    if topic.is_empty() || topic.len() > MAX_TOPIC {
        return Err(EventPlaneError::Topic { topic: topic.chars().take(MAX_TOPIC).collect() });
    }
    Ok(topic.into())
}
