//! What discovery knows: records, their keys, and what can be asked for.

use crate::identity::{EndpointId, Incarnation, WorkerId};

/// One fact that a worker published about itself.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// An endpoint of the request plane.
    Endpoint(EndpointRecord),
    /// A model served behind an endpoint.
    Model(ModelRecord),
    /// A source of events.
    EventChannel(EventChannelRecord),
}

/// Whether new work may be sent to a worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RecordState {
    /// Takes requests.
    #[default]
    Ready,
    /// Finishes what it has and takes nothing new; followed by the removal of the record.
    Draining,
}

/// An endpoint and where it is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointRecord {
    /// Its name.
    pub endpoint: EndpointId,
    /// Who serves it.
    pub incarnation: Incarnation,
    /// The name of the worker, which tells two workers with one id apart.
    pub worker_name: String,
    /// `host:port/<path>` on the request plane.
    pub address: String,
    /// Whether it takes requests.
    pub state: RecordState,
}

/// A model card behind an endpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelRecord {
    /// The endpoint that serves the model.
    pub endpoint: EndpointId,
    /// Who serves it.
    pub incarnation: Incarnation,
    /// The adapter's slug when the card is that of a LoRA adapter; none for a base model.
    pub suffix: Option<String>,
    /// The model card, opaque here.
    pub card: serde_json::Value,
}

/// A publisher of events on a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventChannelRecord {
    /// What the events are about.
    pub scope: EventScope,
    /// Their topic, e.g. `kv-events`.
    pub topic: String,
    /// Who publishes.
    pub incarnation: Incarnation,
    /// Where to subscribe, e.g. `tcp://127.0.0.1:41234`.
    pub address: String,
}

/// What events are about. Scopes are exact: a namespace is not a match for a component in it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EventScope {
    /// The namespace.
    pub namespace: String,
    /// A component in it; none means the namespace itself.
    pub component: Option<String>,
}

impl EventScope {
    /// Events about a namespace.
    pub fn namespace(namespace: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), component: None }
    }

    /// Events about a component.
    pub fn component(namespace: impl Into<String>, component: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), component: Some(component.into()) }
    }
}

/// What a record is found by. Two records with one key are versions of one thing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RecordKey {
    /// Of an [`EndpointRecord`].
    Endpoint(EndpointId, WorkerId),
    /// Of a [`ModelRecord`], with its suffix.
    Model(EndpointId, WorkerId, Option<String>),
    /// Of an [`EventChannelRecord`], with its topic.
    EventChannel(EventScope, String, WorkerId),
}

/// What to list or watch. Names match whole, never by prefix: `ns/a` does not find `ns/ab`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Query {
    /// Every endpoint.
    AllEndpoints,
    /// The instances of one endpoint.
    Endpoint(EndpointId),
    /// Every model.
    AllModels,
    /// Event channels of a topic: of one namespace and the components in it, or of all.
    EventChannels {
        /// Only channels whose scope lies in this namespace.
        namespace: Option<String>,
        /// Only channels of this topic.
        topic: String,
    },
}

/// What a watch reports.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Everything that matches, replacing all that was known. The first change is always one.
    Snapshot(Vec<Record>),
    /// A record that is new or whose value changed.
    Put(Record),
    /// A record that is gone.
    Removed(RecordKey),
}

impl Record {
    /// What the record is found by.
    pub fn key(&self) -> RecordKey {
        match self {
            Record::Endpoint(r) => RecordKey::Endpoint(r.endpoint.clone(), r.incarnation.worker_id),
            Record::Model(r) => {
                RecordKey::Model(r.endpoint.clone(), r.incarnation.worker_id, r.suffix.clone())
            }
            Record::EventChannel(r) => {
                RecordKey::EventChannel(r.scope.clone(), r.topic.clone(), r.incarnation.worker_id)
            }
        }
    }

    /// Who published the record.
    pub fn incarnation(&self) -> Incarnation {
        match self {
            Record::Endpoint(r) => r.incarnation,
            Record::Model(r) => r.incarnation,
            Record::EventChannel(r) => r.incarnation,
        }
    }
}

impl RecordKey {
    /// The worker whose record it is.
    pub fn worker_id(&self) -> WorkerId {
        match self {
            RecordKey::Endpoint(_, id) | RecordKey::Model(_, id, _) | RecordKey::EventChannel(_, _, id) => {
                *id
            }
        }
    }
}

impl Query {
    /// Whether a record with this key answers the query.
    pub fn matches(&self, key: &RecordKey) -> bool {
        match (self, key) {
            (Query::AllEndpoints, RecordKey::Endpoint(..)) | (Query::AllModels, RecordKey::Model(..)) => true,
            (Query::Endpoint(wanted), RecordKey::Endpoint(endpoint, _)) => wanted == endpoint,
            (Query::EventChannels { namespace, topic }, RecordKey::EventChannel(scope, of, _)) => {
                topic == of && namespace.as_ref().is_none_or(|namespace| *namespace == scope.namespace)
            }
            _ => false,
        }
    }
}
