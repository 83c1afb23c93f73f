//! Prompts that workers of their own compute.

use std::time::Duration;

use dynamo_tests::{Answer, Frontend, Stack, Worker, WorkerOptions, eventually, get, post};
use rustix::process::Signal;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(30);

fn with(flags: &[&str]) -> WorkerOptions {
    WorkerOptions { more: flags.iter().map(|&flag| flag.to_owned()).collect(), ..WorkerOptions::default() }
}

/// A prompt of some hundred tokens; each number has its own.
fn ask(frontend: &Frontend, number: u32) -> Answer {
    let prompt = format!("{number} is a prompt with so many words that it takes some blocks ").repeat(20);
    let body = json!({
        "model": "tiny", "max_tokens": 8, "messages": [{"role": "user", "content": prompt}],
        "nvext": {"extra_fields": ["worker_id"]}
    });
    post(&frontend.address, "/v1/chat/completions", &body).expect("an answer")
}

fn text(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"].as_str().expect("an answer has a text")
}

/// Whether two workers served it.
fn is_apart(answer: &Value) -> bool {
    let ids = &answer["nvext"]["worker_id"];
    ids["prefill_worker_id"] != ids["decode_worker_id"]
}

fn until_apart(frontend: &Frontend, number: u32) {
    eventually("prompts are computed elsewhere", PATIENCE, || {
        is_apart(&ask(frontend, number).json()).then_some(())
    });
}

fn cached(answer: &Value) -> u64 {
    answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or(0)
}

/// How many requests a worker has had.
fn served(worker: &Worker) -> f64 {
    worker.metrics().sum("dynamo_component_requests_total", &["dynamo_endpoint=\"generate\""])
}

fn prefills(frontend: &Frontend, by: &str) -> f64 {
    frontend.metrics().sum("dynamo_kvrouter_prefills_total", &[&format!("by=\"{by}\"")])
}

#[test]
fn a_prompt_computed_elsewhere_has_the_same_answer_and_survives_its_workers() {
    let mut stack = Stack::new();
    let frontend = stack.frontend(&["--router-mode", "kv"]);
    let decode = stack.worker(&with(&["--disaggregation-mode", "decode"]));
    frontend.wait_for_workers(1);
    // The simulated tokens depend on all tokens before them.
    let alone: Vec<Value> = (0..8).map(|number| ask(&frontend, number).json()).collect();
    assert!(alone.iter().all(|answer| !is_apart(answer)));
    let prefill = stack.worker(&with(&["--is-prefill-worker"]));
    until_apart(&frontend, 100);
    let (before, begun) = (served(&prefill), served(&decode));
    for (number, alone) in (0..).zip(&alone) {
        let answer = ask(&frontend, number).json();
        assert_eq!(text(&answer), text(alone), "{number}");
        assert!(is_apart(&answer) && cached(&answer) == 0, "it is new to the prefill worker: {answer}");
    }
    assert_eq!((served(&prefill) - before, served(&decode) - begun), (8.0, 8.0));
    // The second time the prefill worker has it, and says so.
    eventually("it is found again", PATIENCE, || (cached(&ask(&frontend, 3).json()) > 100).then_some(()));
    let metrics = frontend.metrics();
    for worker_type in ["prefill", "decode"] {
        let label = format!("worker_type=\"{worker_type}\"");
        assert!(metrics.sum("dynamo_component_router_requests_total", &[&label]) >= 9.0, "{worker_type}");
    }
    let last = |what: &str, worker_type: &str| {
        let label = format!("worker_type=\"{worker_type}\"");
        metrics.count(&format!("dynamo_frontend_worker_last_{what}"), &[&label])
    };
    assert_eq!(
        (last("time_to_first_token_seconds", "prefill"), last("inter_token_latency_seconds", "prefill")),
        (1, 0)
    );
    assert_eq!(last("inter_token_latency_seconds", "decode"), 1);
    let listed = get(&frontend.address, "/v1/models").expect("an answer").json();
    assert_eq!(listed["data"].as_array().expect("a list").len(), 1, "it is one model: {listed}");
    // Its worker dies: nobody is told.
    prefill.process.signal(Signal::KILL);
    for number in 200..230 {
        let answer = ask(&frontend, number);
        assert_eq!(answer.status, 200, "{}", answer.body);
    }
    assert!(!is_apart(&ask(&frontend, 300).json()));
    let _again = stack.worker(&with(&["--disaggregation-mode", "prefill"]));
    until_apart(&frontend, 400);
}

#[test]
fn prompts_that_are_mostly_cached_stay_where_they_are() {
    let mut stack = Stack::new();
    let frontend = stack.frontend(&["--router-mode", "kv", "--router-conditional-disagg"]);
    let _decode = stack.worker(&WorkerOptions::default());
    let _prefill = stack.worker(&with(&["--disaggregation-mode", "prefill"]));
    frontend.wait_for_workers(2);
    until_apart(&frontend, 1);
    let apart = prefills(&frontend, "prefill");
    // The worker that answered has the prompt now: its blocks were handed over.
    eventually("the prompt stays", PATIENCE, || (!is_apart(&ask(&frontend, 1).json())).then_some(()));
    assert!(prefills(&frontend, "decode") >= 1.0);
    assert!(is_apart(&ask(&frontend, 2).json()), "it is new");
    assert!(prefills(&frontend, "prefill") > apart);
    assert_eq!(prefills(&frontend, "fallback"), 0.0);
}

#[test]
fn where_it_is_enforced_nobody_else_computes_prompts() {
    let mut stack = Stack::new();
    let frontend = stack.frontend(&["--enforce-disagg"]);
    let _decode = stack.worker(&WorkerOptions::default());
    frontend.wait_for_workers(1);
    assert_eq!(ask(&frontend, 1).status, 503);
    let _prefill = stack.worker(&with(&["--disaggregation-mode", "prefill"]));
    eventually("it is computed", PATIENCE, || (ask(&frontend, 1).status == 200).then_some(()));
    assert!(is_apart(&ask(&frontend, 2).json()));
}
