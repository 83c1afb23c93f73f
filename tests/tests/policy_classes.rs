//! Classes of requests in the frontend's queue.

use std::{
    fs,
    time::{Duration, Instant},
};

use dynamo_tests::{Stack, WorkerOptions, eventually, post, stream_chat};
use serde_json::{Value, json};

const CLASSES: &str = "
classes:
  chat: {weight: 4}
  batch: {request_limit: 0}
rules:
  - {class: batch, priority: {min: 7}}
";

/// While the one worker is busy, chat waits for it and batch is refused; each is counted by its class.
#[test]
fn classes_wait_or_are_refused_each_by_its_own_settings() {
    let mut stack = Stack::new();
    let file = stack.discovery().with_file_name("classes.yaml");
    fs::write(&file, CLASSES).expect("a file");
    let flags = ["--router-mode", "kv", "--router-queue-threshold", "0", "--trust-routing-headers"];
    let path = file.to_str().expect("a plain path");
    let frontend = stack.frontend(&[&flags[..], &["--router-policy-config", path]].concat());
    // The first prompt takes many seconds, the others two.
    let _worker = stack.worker(&WorkerOptions { speedup: 0.02, ..WorkerOptions::default() });
    frontend.wait_for_workers(1);
    let of = |family: &str, class: &str, more: &str| {
        let labels = [format!("policy_class=\"{class}\""), more.to_owned()];
        let family = format!("dynamo_frontend_router_{family}");
        frontend.metrics().sum(&family, &labels.each_ref().map(String::as_str))
    };
    let address = frontend.address.clone();
    let first = std::thread::spawn(move || {
        let prompt = "the first has many words ".repeat(200);
        let mut stream = stream_chat(&address, &prompt, 1, &json!({})).expect("a stream");
        (stream.first_token().expect("an answer"), Instant::now())
    });
    let patience = Duration::from_secs(20);
    eventually("the worker computes a prompt", patience, || {
        (frontend.metrics().sum("dynamo_frontend_worker_active_prefill_tokens", &[]) > 0.0).then_some(())
    });
    let address = frontend.address.clone();
    let chat = std::thread::spawn(move || {
        let hints = json!({"nvext": {"agent_hints": {"policy_class": "chat"}}});
        let mut stream = stream_chat(&address, "the second", 1, &hints).expect("a stream");
        (stream.first_token().expect("an answer"), Instant::now())
    });
    eventually("chat waits", patience, || (of("queue_pending_requests", "chat", "") == 1.0).then_some(()));
    assert!(of("queue_pending_isl_tokens", "chat", "") > 0.0);
    let ask = |hints: Value| {
        let messages = json!([{"role": "user", "content": "the third"}]);
        let body =
            json!({"model": "tiny", "max_tokens": 1, "messages": messages, "nvext": {"agent_hints": hints}});
        post(&frontend.address, "/v1/chat/completions", &body).expect("an answer").status
    };
    let refused = ask(json!({"policy_class": "batch"}));
    assert!(refused == 529 || refused == 503, "{refused}");
    assert_eq!(ask(json!({"priority": 7})), refused, "by a rule");
    assert_eq!(of("queue_backpressure_total", "batch", "reason=\"request_limit\""), 2.0);
    assert_eq!(of("admission_rejected_total", "batch", ""), 2.0);
    let (answered, first) = first.join().expect("the first thread");
    assert!(answered);
    let (answered, second) = chat.join().expect("the second thread");
    assert!(answered && second > first);
    assert_eq!(of("admission_received_total", "chat", ""), 1.0);
    assert_eq!(ask(json!({"policy_class": "nobody's"})), 200);
    assert_eq!(frontend.metrics().sum("dynamo_kvrouter_unknown_policy_class_total", &[]), 1.0);
    assert_eq!(of("admission_received_total", "default", ""), 2.0);
}
