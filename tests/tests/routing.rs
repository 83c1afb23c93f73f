//! The KV mode: repeats of a prompt go to the worker that has it.

use dynamo_tests::{Stack, WorkerOptions, eventually, post};
use serde_json::json;
use std::time::Duration;

#[test]
fn repeats_of_a_prompt_go_to_one_worker_with_cached_tokens() {
    repeats(&[]);
}

#[test]
fn so_they_do_when_engines_publish_on_sockets_of_their_own() {
    repeats(&["--zmq-kv-events-ports", "0,0,0,0"]);
}

/// Asks six prompts six times each.
fn repeats(more: &[&str]) {
    let mut stack = Stack::new();
    let frontend = stack.frontend(&["--router-mode", "kv"]);
    let workers = {
        let more = more.iter().map(|&flag| flag.to_owned()).collect();
        stack.worker(&WorkerOptions { workers: 4, more, ..WorkerOptions::default() })
    };
    frontend.wait_for_workers(4);
    for prompt in 0..6 {
        let content = format!("prompt number {prompt}: ") + &"the same words again and again ".repeat(40);
        let ask = || {
            let body = json!({
                "model": "tiny",
                "max_tokens": 8,
                "messages": [{"role": "user", "content": content}],
                "nvext": {"extra_fields": ["worker_id"]},
            });
            let answer = post(&frontend.address, "/v1/chat/completions", &body).expect("an answer").json();
            let usage = &answer["usage"];
            let number = |value: &serde_json::Value| value.as_u64().unwrap_or_else(|| panic!("{answer}"));
            (
                number(&answer["nvext"]["worker_id"]["decode_worker_id"]),
                number(&usage["prompt_tokens"]),
                number(&usage["prompt_tokens_details"]["cached_tokens"]),
            )
        };
        let blocks = || frontend.metrics().sum("dynamo_kvrouter_index_blocks", &[]);
        let before = blocks();
        let (worker, prompt_tokens, cached) = ask();
        assert!(cached < 32, "nobody has it yet but for what all prompts begin with");
        // The worker's events reach the router a moment after the answer. Until then another worker is as good.
        let stored = ((prompt_tokens - cached) / 16) as f64;
        eventually("the router knows who has the prompt", Duration::from_secs(5), || {
            (blocks() >= before + stored).then_some(())
        });
        for _ in 0..5 {
            let (again, _, cached) = ask();
            assert_eq!(again, worker);
            assert!(cached >= prompt_tokens - prompt_tokens % 16 - 16, "{cached} of {prompt_tokens}");
        }
    }
    let over_the_wire = workers.metrics().sum("dynamo_component_kv_publisher_zmq_events_accepted_total", &[]);
    assert_eq!(
        over_the_wire > 0.0,
        !more.is_empty(),
        "{over_the_wire} events came over the engines' sockets"
    );
}
