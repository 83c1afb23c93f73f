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

#[test]
fn prefill_workers_are_like_the_others_but_for_their_role_and_place() {
    let mut workers = workers_at("dyn://b.backend.generate");
    assert!(prefill_workers(&workers, 0).unwrap().is_none());
    let prefill = prefill_workers(&workers, 3).unwrap().unwrap();
    assert_eq!(prefill.engine.disaggregation_mode, DisaggregationMode::Prefill);
    assert_eq!(prefill.endpoint, EndpointId::parse("dyn://b.prefill.generate"));
    assert_eq!((prefill.num_workers, prefill.wire_ports.len()), (3, 0));
    workers.wire_ports = vec![WirePorts { events: 5557, replay: 0 }];
    let prefill = prefill_workers(&workers, 3).unwrap().unwrap();
    assert_eq!(prefill.wire_ports, [WirePorts::default(); 3], "the given port is the other worker's");
}

#[test]
fn a_stack_has_somebody_who_answers_and_prefill_workers_elsewhere() {
    let refusal = |workers: &WorkerConfig, number| prefill_workers(workers, number).unwrap_err().to_string();
    let mut workers = workers_at("dyn://b.prefill.generate");
    assert!(refusal(&workers, 1).contains("give another component"));
    assert!(refusal(&workers, 2000).contains("from 0 to 1024"));
    workers.engine.disaggregation_mode = DisaggregationMode::Prefill;
    assert!(refusal(&workers, 0).contains("--num-prefill-workers N"));
}
