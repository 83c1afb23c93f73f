//! LoRA adapters: models of their own names on the workers that have them.

use std::{collections::BTreeSet, time::Duration};

use dynamo_tests::{Answer, Frontend, Stack, Worker, WorkerOptions, delete, eventually, get, post};
use rustix::process::Signal;
use serde_json::{Value, json};

const PATIENCE: Duration = Duration::from_secs(30);

fn with(flags: &[&str]) -> WorkerOptions {
    WorkerOptions { more: flags.iter().map(|&flag| flag.to_owned()).collect(), ..WorkerOptions::default() }
}

fn models(frontend: &Frontend) -> Vec<String> {
    let list = get(&frontend.address, "/v1/models").expect("the frontend answers").json();
    let ids = list["data"].as_array().expect("a list").iter();
    ids.map(|model| model["id"].as_str().expect("a name").to_owned()).collect()
}

fn until_models(frontend: &Frontend, expected: &[&str]) {
    eventually("the models are there", PATIENCE, || (models(frontend) == expected).then_some(()));
}

fn ask(frontend: &Frontend, model: &str, prompt: &str) -> Answer {
    let messages = json!([{"role": "user", "content": prompt}]);
    let body = json!({"model": model, "max_tokens": 2, "messages": messages});
    post(&frontend.address, "/v1/chat/completions", &body).expect("an answer")
}

/// How many requests a worker has had.
fn served(worker: &Worker) -> f64 {
    worker.metrics().sum("dynamo_component_requests_total", &["dynamo_endpoint=\"generate\""])
}

fn cached(answer: &Value) -> u64 {
    answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap_or(0)
}

#[test]
fn an_adapters_requests_go_to_its_worker_and_it_goes_with_it() {
    let mut stack = Stack::new();
    let frontend = stack.frontend(&["--router-mode", "kv"]);
    let plain = stack.worker(&WorkerOptions::default());
    let adapted = stack.worker(&with(&["--lora", "sql"]));
    until_models(&frontend, &["sql", "tiny"]);
    eventually("both workers are there", PATIENCE, || {
        let health = get(&frontend.address, "/health").ok()?.json();
        let of_generate = |it: &&Value| it["endpoint"] == "generate";
        (health["instances"].as_array()?.iter().filter(of_generate).count() == 2).then_some(())
    });
    for number in 0..12 {
        let answer = ask(&frontend, "sql", &format!("{number} is the prompt of an adapter"));
        assert_eq!((answer.status, &answer.json()["model"]), (200, &json!("sql")));
    }
    assert_eq!((served(&plain), served(&adapted)), (0.0, 12.0));
    for number in 0..30 {
        assert_eq!(ask(&frontend, "tiny", &format!("{number} is a prompt of the base")).status, 200);
    }
    let of_plain = served(&plain);
    assert!(of_plain > 5.0 && served(&adapted) > 17.0, "{of_plain} and {}", served(&adapted));
    // What is cached for the one is not cached for the other, and one index knows both.
    let long = "a prompt with so many words that it takes some blocks ".repeat(20);
    assert_eq!(cached(&ask(&frontend, "sql", &long).json()), 0);
    let again = eventually("it is found again", PATIENCE, || {
        let answer = ask(&frontend, "sql", &long).json();
        (cached(&answer) > 100).then_some(cached(&answer))
    });
    for _ in 0..2 {
        let workers = [&plain, &adapted].map(served);
        let answer = ask(&frontend, "tiny", &long).json();
        if served(&adapted) > workers[1] {
            assert!(cached(&answer) < again);
        }
    }
    let metrics = frontend.metrics();
    assert_eq!(metrics.sum("dynamo_frontend_model_context_length", &["model=\"sql\""]), 8192.0);
    assert!(metrics.sum("dynamo_kvrouter_index_blocks", &["model=\"tiny\""]) > 0.0);
    assert_eq!(
        metrics.sum("dynamo_kvrouter_index_blocks", &["model=\"sql\""]),
        0.0,
        "it has no index of its own"
    );
    // A model that nobody has is no model.
    assert_eq!(ask(&frontend, "nobody's", "hello").status, 404);
    adapted.process.signal(Signal::KILL);
    eventually("the adapter is gone", PATIENCE, || {
        (ask(&frontend, "sql", "hello").status == 404).then_some(())
    });
    until_models(&frontend, &["tiny"]);
    assert_eq!(ask(&frontend, "tiny", "hello").status, 200);
    assert_eq!(frontend.metrics().sum("dynamo_frontend_model_context_length", &["model=\"sql\""]), 0.0);
}

#[test]
fn adapters_are_loaded_and_unloaded_while_a_worker_runs() {
    let mut stack = Stack::new();
    stack.set("DYN_LORA_ENABLED", "true");
    let frontend = stack.frontend(&["--router-mode", "round-robin"]);
    let options = WorkerOptions { workers: 2, ..with(&["--lora", "first,second", "--lora", "third"]) };
    let worker = stack.worker(&options);
    until_models(&frontend, &["first", "second", "third", "tiny"]);
    let names = || -> BTreeSet<String> {
        let list = get(&worker.system, "/v1/loras").expect("an answer").json();
        list["loras"].as_object().expect("adapters by name").keys().cloned().collect()
    };
    assert_eq!(names(), ["first", "second", "third"].map(str::to_owned).into());
    let load = json!({"lora_name": "org/new", "source": {"uri": "hf://org/new"}});
    let answer = post(&worker.system, "/v1/loras", &load).expect("an answer");
    assert_eq!((answer.status, &answer.json()["status"]), (200, &json!("success")));
    until_models(&frontend, &["first", "org/new", "second", "third", "tiny"]);
    assert_eq!(ask(&frontend, "org/new", "hello").status, 200);
    let answer = delete(&worker.system, "/v1/loras/org/new").expect("an answer");
    assert_eq!((answer.status, &answer.json()["lora_name"]), (200, &json!("org/new")));
    assert_eq!(delete(&worker.system, "/v1/loras/org/new").expect("an answer").status, 500);
    eventually("it is gone", PATIENCE, || (ask(&frontend, "org/new", "hello").status == 404).then_some(()));
    until_models(&frontend, &["first", "second", "third", "tiny"]);
    assert_eq!(ask(&frontend, "second", "hello").status, 200);
}
