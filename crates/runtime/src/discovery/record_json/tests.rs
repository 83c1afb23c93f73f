use serde_json::json;

use super::{decode, encode};
use crate::discovery::owner::OwnerId;
use crate::discovery::test_records::{channel, endpoint, model};
use crate::discovery::{Record, RecordState};

#[test]
fn an_endpoint_has_the_shape_that_tools_read() {
    let Record::Endpoint(mut record) = endpoint("ns/comp/ep", 0x2a) else { unreachable!() };
    record.state = RecordState::Draining;
    let json = encode(&Record::Endpoint(record), OwnerId::from_bits(7)).unwrap();
    let value: serde_json::Value = serde_json::from_slice(&json).unwrap();
    assert_eq!(
        value,
        json!({
            "type": "Endpoint", "namespace": "ns", "component": "comp", "endpoint": "ep", "instance_id": 42,
            "transport": {"tcp": "127.0.0.1:9000/2a/ns/comp/ep"},
            "worker_name": "worker-2a", "epoch": 1000, "state": "draining", "owner": "7",
        })
    );
}

#[test]
fn records_come_back_as_they_were() {
    for record in [endpoint("ns/comp/ep", 1), model("ns/comp/ep", 2, None), channel("ns", "kv-events", 3)] {
        let (read, owner) = decode(&encode(&record, OwnerId::from_bits(0xfe)).unwrap()).unwrap();
        assert_eq!((read, owner), (record, Some(OwnerId::from_bits(0xfe))));
    }
    let adapter = model("ns/comp/ep", 2, Some("adapter"));
    assert_eq!(decode(&encode(&adapter, OwnerId::from_bits(1)).unwrap()).unwrap().0, adapter);
}

#[test]
fn records_of_other_software_are_read_with_defaults() {
    let json = json!({
        "type": "Endpoint", "namespace": "ns", "component": "comp", "endpoint": "ep", "instance_id": 42,
        "transport": {"tcp": "10.0.0.1:9000/2a/ns/comp/ep"}, "device_type": "cpu",
    });
    let (Record::Endpoint(record), None) = decode(json.to_string().as_bytes()).unwrap() else { panic!() };
    assert_eq!((record.state, record.incarnation.epoch.get()), (RecordState::Ready, 0));
    assert!(decode(br#"{"type":"Endpoint","instance_id":"x"}"#).is_err());
    assert!(decode(b"{").is_err());
}
