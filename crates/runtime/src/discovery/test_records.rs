//! Records for tests.

use serde_json::json;

use super::{EndpointRecord, EventChannelRecord, EventScope, ModelRecord, Record, RecordState};
use crate::identity::{EndpointId, Epoch, Incarnation, WorkerId};

pub(crate) fn incarnation(id: u64) -> Incarnation {
    Incarnation { worker_id: WorkerId::from_bits(id), epoch: Epoch::from_unix_ms(1000) }
}

pub(crate) fn endpoint(path: &str, id: u64) -> Record {
    Record::Endpoint(EndpointRecord {
        endpoint: EndpointId::parse(path),
        incarnation: incarnation(id),
        worker_name: format!("worker-{id:x}"),
        address: format!("127.0.0.1:9000/{id:x}/{path}"),
        state: RecordState::Ready,
    })
}

pub(crate) fn model(path: &str, id: u64, suffix: Option<&str>) -> Record {
    Record::Model(ModelRecord {
        endpoint: EndpointId::parse(path),
        incarnation: incarnation(id),
        suffix: suffix.map(str::to_owned),
        card: json!({"display_name": "m", "context_length": 4096}),
    })
}

pub(crate) fn channel(namespace: &str, topic: &str, id: u64) -> Record {
    Record::EventChannel(EventChannelRecord {
        scope: EventScope::component(namespace, "backend"),
        topic: topic.to_owned(),
        incarnation: incarnation(id),
        address: "tcp://127.0.0.1:5557".to_owned(),
    })
}
