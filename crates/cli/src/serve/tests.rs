use dynamo_mocker::MockerConfig;
use dynamo_runtime::EndpointId;

use super::*;

fn workers_at(endpoint: &str) -> WorkerConfig {
    WorkerConfig {
        model_path: "model".into(),
        model_name: None,
        endpoint: EndpointId::parse(endpoint),
        custom_template: None,
        context_length: None,
        num_workers: 1,
        wire_ports: Vec::new(),
        taints: Vec::new(),
        loras: Vec::new(),
        engine: MockerConfig::default(),
    }
}

#[test]
fn a_stack_has_one_namespace() {
    let workers = workers_at("dyn://b.backend.generate");
    assert!(one_namespace(None, &workers).is_ok());
    assert!(one_namespace(Some("b"), &workers).is_ok());
    let error = one_namespace(Some("a"), &workers).unwrap_err().to_string();
    assert!(error.contains("--namespace a and --endpoint dyn://b.backend.generate"), "{error}");
}
