//! One index for several routers: a frontend that keeps none asks `dynamo router`, and goes on without it.

use std::time::{Duration, Instant};

use dynamo_kv_router::{IndexQuery, RankMatches};
use dynamo_tests::{Frontend, PlaneClient, RouterProcess, Stack, WorkerOptions, eventually, get, post};
use dynamo_tokens::{BlockSize, LocalBlockHash};
use rustix::process::Signal;
use serde_json::{Value, json};

const PROMPTS: u32 = 8;
const WORKERS: u32 = 4;
const QUERIES: &str = "dynamo_kvrouter_remote_index_queries_total";

fn content(prompt: u32) -> String {
    format!("prompt number {prompt}: ") + &"the same words again and again ".repeat(40)
}

/// Tokens of a prompt, and those that its worker had cached.
fn ask(frontend: &Frontend, prompt: u32) -> (u64, u64) {
    let body = json!({
        "model": "tiny",
        "max_tokens": 4,
        "messages": [{"role": "user", "content": content(prompt)}],
    });
    let answer = post(&frontend.address, "/v1/chat/completions", &body).expect("an answer");
    assert_eq!(answer.status, 200, "{}", answer.body);
    let usage = &answer.json()["usage"];
    let number = |value: &Value| value.as_u64().unwrap_or_else(|| panic!("{usage}"));
    (number(&usage["prompt_tokens"]), number(&usage["prompt_tokens_details"]["cached_tokens"]))
}

/// The share of the prompts that workers have cached.
fn cached_share(frontend: &Frontend) -> f64 {
    let (mut all, mut cached) = (0, 0);
    for _ in 0..3 {
        for prompt in 0..PROMPTS {
            let (tokens, hit) = ask(frontend, prompt);
            all += tokens;
            cached += hit;
        }
    }
    cached as f64 / all as f64
}

fn serving(stack: &mut Stack) -> RouterProcess {
    let router = stack.router(&["router", "--endpoint", "dyn://dynamo.backend.generate", "--serve-indexer"]);
    router.wait_until_ready();
    router
}

fn sees_the_index(frontend: &Frontend) -> bool {
    let health = get(&frontend.address, "/health").expect("an answer").json();
    let mut instances = health["instances"].as_array().expect("instances").iter();
    instances.any(|instance| instance["endpoint"] == "kv_index")
}

fn queries(frontend: &Frontend, status: &str) -> f64 {
    frontend.metrics().sum(QUERIES, &[&format!("status=\"{status}\"")])
}

#[test]
fn a_frontend_without_an_index_finds_as_much_by_one_that_is_served_and_goes_on_without_it() {
    let mut stack = Stack::new();
    let _workers = stack.worker(&WorkerOptions { workers: WORKERS, ..WorkerOptions::default() });
    let mut router = serving(&mut stack);
    let own = stack.frontend(&["--router-mode", "kv"]);
    let asking = stack.frontend(&["--router-mode", "kv", "--use-remote-indexer"]);
    for frontend in [&own, &asking] {
        // The router serves `generate` too.
        frontend.wait_for_workers(WORKERS as usize + 1);
    }
    eventually("the index is found", Duration::from_secs(10), || sees_the_index(&asking).then_some(()));
    for prompt in 0..PROMPTS {
        let (tokens, cached) = ask(&asking, prompt);
        assert!(cached < tokens / 2, "nobody has it yet but for what all prompts begin with");
    }
    let blocks = |metrics: dynamo_tests::Metrics, family: &str| metrics.sum(family, &[]);
    eventually("both indexes have the prompts", Duration::from_secs(10), || {
        let (served, owned) = (
            blocks(router.metrics(), "dynamo_component_router_index_blocks"),
            blocks(own.metrics(), "dynamo_kvrouter_index_blocks"),
        );
        (served > f64::from(PROMPTS) * 10.0 && served == owned).then_some(())
    });
    let (with_own, with_served) = (cached_share(&own), cached_share(&asking));
    assert!(with_served > 0.9 && with_served >= with_own - 0.05, "{with_served} beside {with_own}");
    assert_eq!(blocks(asking.metrics(), "dynamo_kvrouter_index_blocks"), 0.0, "it has none");
    assert_eq!(blocks(asking.metrics(), "dynamo_kvrouter_kv_cache_events_applied"), 0.0);
    let asked = f64::from(4 * PROMPTS);
    let ok = queries(&asking, "ok");
    // On a machine that does much else an answer may be late.
    assert!(ok >= 0.9 * asked && ok <= asked, "{ok}");
    assert_eq!(blocks(asking.metrics(), QUERIES), asked, "each request asks once");
    let answered = router.metrics().sum("dynamo_kvrouter_served_index_queries_total", &["status=\"ok\""]);
    assert!(answered >= ok, "{answered}");

    router.process.signal(Signal::KILL);
    router.process.wait(Duration::from_secs(10)).expect("it dies");
    for prompt in 0..PROMPTS {
        ask(&asking, prompt);
    }
    let metrics = asking.metrics();
    assert_eq!(blocks(asking.metrics(), QUERIES), asked + f64::from(PROMPTS), "each one counts");
    assert_eq!(metrics.sum(QUERIES, &["status=\"ok\""]), ok);
    assert!(asking.process.log().contains("requests are routed as if nothing were"));

    let again = serving(&mut stack);
    eventually("it is found again", Duration::from_secs(30), || {
        let before = queries(&asking, "ok");
        ask(&asking, 0);
        (queries(&asking, "ok") > before).then_some(())
    });
    eventually("it has the prompts", Duration::from_secs(10), || {
        (blocks(again.metrics(), "dynamo_component_router_index_blocks") > f64::from(PROMPTS) * 10.0)
            .then_some(())
    });
    let again = cached_share(&asking);
    assert!(again > 0.9, "{again}");
}

#[test]
fn a_server_that_hangs_holds_nobody_up_for_long() {
    let mut stack = Stack::new();
    let _workers = stack.worker(&WorkerOptions { workers: 2, ..WorkerOptions::default() });
    // One frontend serves what another asks for.
    let serving = stack.frontend(&["--router-mode", "kv", "--serve-indexer"]);
    let asking = stack.frontend(&["--router-mode", "kv", "--use-remote-indexer"]);
    asking.wait_for_workers(2);
    eventually("the index is found", Duration::from_secs(10), || sees_the_index(&asking).then_some(()));
    eventually("it answers", Duration::from_secs(10), || {
        ask(&asking, 0);
        (queries(&asking, "ok") > 0.0).then_some(())
    });
    let before = queries(&asking, "ok");
    serving.process.stop();
    for prompt in 0..40 {
        ask(&asking, prompt % PROMPTS);
    }
    let (waited, others) = (queries(&asking, "timeout"), queries(&asking, "no_server"));
    // Each time the pause until the next try doubles.
    assert!(waited >= 1.0 && others >= 20.0, "{waited} waited, {others} did not");
    serving.process.signal(Signal::CONT);
    eventually("it is asked again", Duration::from_secs(30), || {
        ask(&asking, 1);
        (queries(&asking, "ok") > before).then_some(())
    });
}

#[test]
fn a_question_is_answered_at_once() {
    let mut stack = Stack::new();
    let _workers = stack.worker(&WorkerOptions { workers: 8, ..WorkerOptions::default() });
    let _router = serving(&mut stack);
    let client = PlaneClient::join(&stack);
    // 100,000 tokens.
    let blocks: Vec<_> = (0..6_250).map(LocalBlockHash).collect();
    let query = IndexQuery::new(BlockSize::new(16).expect("a size"), &blocks);
    let question = rmp_serde::to_vec_named(&query).expect("a question serializes");
    let mut times = Vec::new();
    for _ in 0..2_000 {
        let start = Instant::now();
        let answer = client.ask("dyn://dynamo.backend.kv_index", None, question.clone()).expect("an answer");
        times.push(start.elapsed());
        let answer: RankMatches = rmp_serde::from_slice(&answer.concat()).expect("an answer that reads");
        assert_eq!(answer.len(), 8);
    }
    times.sort_unstable();
    let (median, high) = (times[times.len() / 2], times[times.len() * 99 / 100]);
    println!("a question of {} bytes: p50 {median:?}, p99 {high:?}", question.len());
    assert!(median < Duration::from_millis(10), "{median:?}, {high:?}");
}
