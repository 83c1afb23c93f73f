//! The KV mode: repeats of a prompt go to the worker that has it.

use std::{collections::BTreeSet, time::Duration};

use dynamo_tests::{Frontend, Stack, WorkerOptions, eventually, get, post};
use rustix::process::Signal;
use serde_json::{Value, json};

#[test]
fn repeats_of_a_prompt_go_to_one_worker_with_cached_tokens() {
    repeats(&[]);
}

#[test]
fn so_they_do_when_engines_publish_on_sockets_of_their_own() {
    repeats(&["--zmq-kv-events-ports", "0,0,0,0"]);
}

#[test]
fn workers_without_events_get_repeats_of_what_they_were_sent_for_a_while() {
    let mut stack = Stack::new();
    let patient = stack.frontend(&["--router-mode", "kv", "--no-router-kv-events"]);
    stack.set("DYN_ROUTER_USE_KV_EVENTS", "false");
    let forgetful = stack.frontend(&["--router-mode", "kv", "--router-ttl-secs", "0.5"]);
    // An engine that caches nothing has no events: what the routers know is what they sent.
    let more = vec!["--no-enable-prefix-caching".to_owned()];
    let _workers = stack.worker(&WorkerOptions { workers: 4, more, ..WorkerOptions::default() });
    let known = |frontend: &Frontend| frontend.metrics().sum("dynamo_kvrouter_sent_blocks", &[]);
    let hits = |frontend: &Frontend| frontend.metrics().sum("dynamo_component_router_kv_hit_rate_sum", &[]);
    patient.wait_for_workers(4);
    let mut chosen = BTreeSet::new();
    for prompt in 0..6 {
        let content = format!("{prompt} is the number. ") + &"the same words again and again ".repeat(40);
        let (worker, prompt_tokens, _) = ask(&patient, &content);
        let before = hits(&patient);
        for _ in 0..5 {
            let (again, _, cached) = ask(&patient, &content);
            assert_eq!((again, cached), (worker, 0));
        }
        let least = 5.0 * (prompt_tokens - 16) as f64 / prompt_tokens as f64;
        assert!(hits(&patient) - before >= least, "{} of 5 prompts", hits(&patient) - before);
        chosen.insert(worker);
    }
    assert!(chosen.len() > 1, "other prompts go to others: {chosen:?}");
    assert!(known(&patient) > 6.0);
    assert!(patient.metrics().sum("dynamo_kvrouter_sent_bytes", &[]) > 0.0);
    forgetful.wait_for_workers(4);
    let content = "once and once more, much later ".repeat(40);
    for _ in 0..2 {
        ask(&forgetful, &content);
        eventually("it forgets what it sent", Duration::from_secs(10), || {
            (known(&forgetful) == 0.0).then_some(())
        });
        assert_eq!(hits(&forgetful), 0.0);
    }
    for frontend in [&patient, &forgetful] {
        assert_eq!(frontend.metrics().sum("dynamo_kvrouter_kv_cache_events_applied", &[]), 0.0);
    }
}

#[test]
fn a_worker_that_leaves_takes_what_it_was_sent_with_it() {
    let mut stack = Stack::new();
    let flags = ["--no-router-kv-events", "--router-approximate-cache-policy", "lru"];
    let frontend = stack.frontend(&[&["--router-mode", "kv"], &flags[..]].concat());
    let first = stack.worker(&WorkerOptions::default());
    frontend.wait_for_workers(1);
    let content = "the same words again and again ".repeat(40);
    let (worker, _, _) = ask(&frontend, &content);
    let _second = stack.worker(&WorkerOptions::default());
    frontend.wait_for_workers(2);
    let (again, prompt_tokens, cached) = ask(&frontend, &content);
    assert_eq!(again, worker);
    assert!(cached + 16 >= prompt_tokens - prompt_tokens % 16, "{cached} of {prompt_tokens}");
    first.process.signal(Signal::TERM);
    eventually("what was sent is forgotten", Duration::from_secs(30), || {
        (frontend.metrics().sum("dynamo_kvrouter_sent_blocks", &[]) == 0.0).then_some(())
    });
    assert_ne!(ask(&frontend, &content).0, worker);
}

#[test]
fn a_repeat_counts_before_its_events_come() {
    let mut stack = Stack::new();
    let frontend = stack.frontend(&["--router-mode", "kv", "--router-predicted-ttl-secs", "60"]);
    let _workers = stack.worker(&WorkerOptions { workers: 4, ..WorkerOptions::default() });
    frontend.wait_for_workers(4);
    let content = "the same words again and again ".repeat(40);
    let (worker, prompt_tokens, _) = ask(&frontend, &content);
    // The events may be on their way still: nobody waits for them.
    assert_eq!(ask(&frontend, &content).0, worker);
    let hits = frontend.metrics().sum("dynamo_component_router_kv_hit_rate_sum", &[]);
    assert!(hits >= (prompt_tokens - 16) as f64 / prompt_tokens as f64, "{hits}");
    eventually("the events come all the same", Duration::from_secs(10), || {
        let metrics = frontend.metrics();
        let of = |family| metrics.sum(family, &[]);
        (of("dynamo_kvrouter_index_blocks") >= of("dynamo_kvrouter_sent_blocks")).then_some(())
    });
}

#[test]
fn a_model_is_there_when_enough_workers_are() {
    let mut stack = Stack::new();
    let frontend = stack.frontend(&["--router-min-initial-workers", "2"]);
    let _first = stack.worker(&WorkerOptions::default());
    let body = json!({"model": "tiny", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 4});
    let status = || post(&frontend.address, "/v1/chat/completions", &body).expect("an answer").status;
    eventually("the frontend could route to the first", Duration::from_secs(30), || {
        frontend.process.log().contains("worker is routed to").then_some(())
    });
    assert_eq!(status(), 503);
    let models =
        || get(&frontend.address, "/v1/models").expect("an answer").json()["data"].as_array().map(Vec::len);
    assert_eq!(models(), Some(0));
    let _second = stack.worker(&WorkerOptions::default());
    frontend.wait_for_workers(2);
    assert_eq!(status(), 200);
}

#[test]
fn a_request_that_needs_a_taint_goes_to_the_worker_that_has_it_or_nowhere() {
    let mut stack = Stack::new();
    let frontends =
        ["kv", "round-robin", "least-loaded"].map(|mode| stack.frontend(&["--router-mode", mode]));
    let _plain = stack.worker(&WorkerOptions { workers: 2, ..WorkerOptions::default() });
    let more = ["--worker-taints", "zone=b, fast"].map(str::to_owned).to_vec();
    let ids = |frontend: &Frontend| -> BTreeSet<u64> {
        let health = get(&frontend.address, "/health").expect("an answer").json();
        let instances = health["instances"].as_array().expect("instances").iter();
        instances.filter_map(|instance| instance["instance_id"].as_u64()).collect()
    };
    frontends[0].wait_for_workers(2);
    let plain = ids(&frontends[0]);
    let tainted = stack.worker(&WorkerOptions { more, ..WorkerOptions::default() });
    let request = |prompt: u32, taints: &[&str]| {
        json!({
            "model": "tiny",
            "max_tokens": 4,
            "messages": [{"role": "user", "content": format!("prompt number {prompt}")}],
            "nvext": {"extra_fields": ["worker_id"], "routing_constraints": {"required_taints": taints}},
        })
    };
    let worker_of = |frontend: &Frontend, body: &Value| {
        let answer = post(&frontend.address, "/v1/chat/completions", body).expect("an answer");
        (answer.status, answer.json()["nvext"]["worker_id"]["decode_worker_id"].as_u64())
    };
    for frontend in &frontends {
        frontend.wait_for_workers(3);
        let own: Vec<u64> = ids(frontend).difference(&plain).copied().collect();
        for taints in [&["zone=b"][..], &["fast", "zone=b"]] {
            for prompt in 0..8 {
                assert_eq!(worker_of(frontend, &request(prompt, taints)), (200, Some(own[0])));
            }
        }
        for taints in [&["zone=c"][..], &["zone=b", "slow"]] {
            assert_eq!(worker_of(frontend, &request(0, taints)), (503, None));
        }
        // Whoever needs none goes to the others too.
        let anyone: BTreeSet<u64> =
            (0..30).filter_map(|prompt| worker_of(frontend, &request(prompt, &[])).1).collect();
        assert!(anyone.intersection(&plain).next().is_some(), "{anyone:?}");
    }
    tainted.process.signal(Signal::TERM);
    for frontend in &frontends {
        eventually("nobody has it any more", Duration::from_secs(30), || {
            (worker_of(frontend, &request(0, &["zone=b"])).0 == 503).then_some(())
        });
        assert_eq!(worker_of(frontend, &request(0, &[])).0, 200);
    }
}

/// The worker that served a prompt, the prompt's tokens, and those that the worker had cached.
fn ask(frontend: &Frontend, content: &str) -> (u64, u64, u64) {
    let body = json!({
        "model": "tiny",
        "max_tokens": 8,
        "messages": [{"role": "user", "content": content}],
        "nvext": {"extra_fields": ["worker_id"]},
    });
    let answer = post(&frontend.address, "/v1/chat/completions", &body).expect("an answer").json();
    let usage = &answer["usage"];
    let number = |value: &Value| value.as_u64().unwrap_or_else(|| panic!("{answer}"));
    (
        number(&answer["nvext"]["worker_id"]["decode_worker_id"]),
        number(&usage["prompt_tokens"]),
        number(&usage["prompt_tokens_details"]["cached_tokens"]),
    )
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
        let ask = || ask(&frontend, &content);
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
