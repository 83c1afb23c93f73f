//! Records as JSON: the tagged form that tools of the field read, with what it lacks (name, epoch, state, owner) added
//! as further fields.

use serde::{Deserialize, Serialize};

use super::owner::OwnerId;
use crate::discovery::{EndpointRecord, EventChannelRecord, EventScope, ModelRecord, Record, RecordState};
use crate::identity::{EndpointId, Epoch, Incarnation, WorkerId};

#[cfg(test)]
mod tests;

#[derive(Serialize, Deserialize)]
struct Envelope {
    #[serde(flatten)]
    body: Body,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    owner: Option<OwnerId>,
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "type")]
enum Body {
    Endpoint {
        namespace: String,
        component: String,
        endpoint: String,
        instance_id: u64,
        transport: Transport,
        #[serde(default)]
        worker_name: String,
        #[serde(default)]
        epoch: Epoch,
        #[serde(default)]
        state: State,
    },
    Model {
        namespace: String,
        component: String,
        endpoint: String,
        instance_id: u64,
        card_json: serde_json::Value,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        model_suffix: Option<String>,
        #[serde(default)]
        epoch: Epoch,
    },
    EventChannel {
        scope: Scope,
        topic: String,
        instance_id: u64,
        transport: EventTransport,
        #[serde(default)]
        epoch: Epoch,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Transport {
    Tcp(String),
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "kind", content = "config")]
enum EventTransport {
    Zmq { endpoint: String },
}

#[derive(Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum State {
    #[default]
    Ready,
    Draining,
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum Scope {
    Namespace { name: String },
    Component { namespace: String, component: String },
}

/// The JSON of `record`, held by `owner`.
pub(super) fn encode(record: &Record, owner: OwnerId) -> Result<Vec<u8>, serde_json::Error> {
    serde_json::to_vec(&Envelope { body: body(record.clone()), owner: Some(owner) })
}

/// Reads a record and its owner; records of other software have none.
pub(super) fn decode(json: &[u8]) -> Result<(Record, Option<OwnerId>), serde_json::Error> {
    let envelope: Envelope = serde_json::from_slice(json)?;
    Ok((record(envelope.body), envelope.owner))
}

fn body(record: Record) -> Body {
    match record {
        Record::Endpoint(r) => Body::Endpoint {
            namespace: r.endpoint.namespace,
            component: r.endpoint.component,
            endpoint: r.endpoint.endpoint,
            instance_id: r.incarnation.worker_id.get(),
            transport: Transport::Tcp(r.address),
            worker_name: r.worker_name,
            epoch: r.incarnation.epoch,
            state: match r.state {
                RecordState::Ready => State::Ready,
                RecordState::Draining => State::Draining,
            },
        },
        Record::Model(r) => Body::Model {
            namespace: r.endpoint.namespace,
            component: r.endpoint.component,
            endpoint: r.endpoint.endpoint,
            instance_id: r.incarnation.worker_id.get(),
            card_json: r.card,
            model_suffix: r.suffix,
            epoch: r.incarnation.epoch,
        },
        Record::EventChannel(r) => Body::EventChannel {
            scope: match r.scope.component {
                Some(component) => Scope::Component { namespace: r.scope.namespace, component },
                None => Scope::Namespace { name: r.scope.namespace },
            },
            topic: r.topic,
            instance_id: r.incarnation.worker_id.get(),
            transport: EventTransport::Zmq { endpoint: r.address },
            epoch: r.incarnation.epoch,
        },
    }
}

fn record(body: Body) -> Record {
    let incarnation = |id, epoch| Incarnation { worker_id: WorkerId::from_bits(id), epoch };
    match body {
        Body::Endpoint {
            namespace,
            component,
            endpoint,
            instance_id,
            transport: Transport::Tcp(address),
            worker_name,
            epoch,
            state,
        } => Record::Endpoint(EndpointRecord {
            endpoint: EndpointId { namespace, component, endpoint },
            incarnation: incarnation(instance_id, epoch),
            worker_name,
            address,
            state: match state {
                State::Ready => RecordState::Ready,
                State::Draining => RecordState::Draining,
            },
        }),
        Body::Model { namespace, component, endpoint, instance_id, card_json, model_suffix, epoch } => {
            Record::Model(ModelRecord {
                endpoint: EndpointId { namespace, component, endpoint },
                incarnation: incarnation(instance_id, epoch),
                suffix: model_suffix,
                card: card_json,
            })
        }
        Body::EventChannel {
            scope,
            topic,
            instance_id,
            transport: EventTransport::Zmq { endpoint },
            epoch,
        } => Record::EventChannel(EventChannelRecord {
            scope: match scope {
                Scope::Namespace { name } => EventScope::namespace(name),
                Scope::Component { namespace, component } => EventScope::component(namespace, component),
            },
            topic,
            incarnation: incarnation(instance_id, epoch),
            address: endpoint,
        }),
    }
}
