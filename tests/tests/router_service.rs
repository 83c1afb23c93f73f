//! The router as a process of its own: it routes, it dies and comes back with what it knew, and it waits for nobody.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use dynamo_engine_api::{KvCacheEventData, PreprocessedRequest, StopConditions};
use dynamo_kv_router::RankEvent;
use dynamo_tests::{
    HeldBlock, PlaneClient, RouterProcess, Stack, WorkerOptions, eventually, held_blocks, post,
};
use rustix::process::Signal;
use serde_json::{Value, json};

const GENERATE: &str = "dyn://dynamo.router.generate";
const BEST: &str = "dyn://dynamo.router.best_worker";

fn prompt(seed: u32, tokens: u32) -> PreprocessedRequest {
    PreprocessedRequest {
        model: "tiny".into(),
        token_ids: (0..tokens).map(|place| 5 + (seed * 31 + place * 7) % 90).collect(),
        stop_conditions: StopConditions { max_tokens: Some(8), ignore_eos: Some(true), ..Default::default() },
        ..PreprocessedRequest::default()
    }
}

fn tokens(outputs: &[dynamo_engine_api::EngineOutput]) -> Vec<u32> {
    outputs.iter().flat_map(|output| output.token_ids.iter().copied()).collect()
}

/// What the router's index has, by worker.
fn router_holds(router: &RouterProcess) -> BTreeMap<u64, BTreeSet<HeldBlock>> {
    let dump = post(&router.system, "/engine/dump_kv_index", &json!({})).expect("a dump").json();
    let of = |rank: &Value| {
        let events: Vec<RankEvent> = serde_json::from_value(rank["events"].clone()).expect("events");
        let events: Vec<KvCacheEventData> = events.into_iter().map(|event| event.data).collect();
        (rank["worker_id"].as_u64().expect("an id"), held_blocks(&events))
    };
    dump["ranks"].as_array().expect("ranks").iter().map(of).collect()
}

#[test]
fn a_router_without_events_waits_for_its_workers_and_knows_what_it_sent() {
    let mut stack = Stack::new();
    let _first = stack.worker(&WorkerOptions { workers: 2, ..WorkerOptions::default() });
    let flags = ["--no-router-kv-events", "--router-min-initial-workers", "3"];
    let router =
        stack.router(&[&["router", "--endpoint", "dyn://dynamo.backend.generate"], &flags[..]].concat());
    let client = PlaneClient::join(&stack);
    eventually("it could route to the first two", Duration::from_secs(10), || {
        (router.process.log().matches("worker is routed to").count() == 2).then_some(())
    });
    assert!(!router.is_ready(), "two are not enough");
    let _second = stack.worker(&WorkerOptions::default());
    router.wait_until_ready();
    let request = prompt(2, 320);
    let _ = client.generate(GENERATE, None, &request).unwrap();
    // Nothing has to arrive for it to know.
    let best = client
        .ask_json("dyn://dynamo.router.best_worker_id", &json!({"token_ids": request.token_ids}))
        .unwrap();
    assert_eq!(best["overlap_blocks"], 20);
    let metrics = router.metrics();
    let of = |family: &str| metrics.sum(&format!("dynamo_component_router_{family}"), &[]);
    assert_eq!((of("sent_blocks"), of("index_blocks")), (20.0, 0.0));
    assert!(of("sent_bytes") > 0.0);
}

#[test]
fn a_router_chooses_who_has_the_prompt_and_keeps_books() {
    let mut stack = Stack::new();
    let _workers = stack.worker(&WorkerOptions { workers: 3, ..WorkerOptions::default() });
    let router = stack.router(&["router", "--endpoint", "dyn://dynamo.backend.generate"]);
    router.wait_until_ready();
    let client = PlaneClient::join(&stack);
    let request = prompt(1, 160);
    let first = client.generate(GENERATE, None, &request).unwrap();
    // The same tokens as without a router between.
    for worker in client.workers("dyn://dynamo.backend.generate") {
        let direct = client.generate("dyn://dynamo.backend.generate", Some(worker), &request).unwrap();
        assert_eq!(tokens(&direct), tokens(&first));
    }
    assert_eq!(tokens(&first).len(), 8);
    eventually("the router knows the blocks", Duration::from_secs(10), || {
        (router.metrics().sum("dynamo_component_router_index_blocks", &[]) >= 30.0).then_some(())
    });
    // A prompt that only one has.
    let request = prompt(2, 320);
    let _ = client.generate(GENERATE, None, &request).unwrap();
    let question = json!({"token_ids": request.token_ids});
    let best = eventually("somebody has it", Duration::from_secs(10), || {
        let best = client.ask_json("dyn://dynamo.router.best_worker_id", &question).unwrap();
        (best["overlap_blocks"] == 20).then_some(best)
    });
    let again = client.generate(GENERATE, None, &request).unwrap();
    let cached = again.iter().find_map(|output| output.completion_usage?.prompt_tokens_details);
    assert!(cached.unwrap().cached_tokens >= 304, "{cached:?}");
    // Books of requests that others send.
    let busy = || {
        let loads =
            client.ask_json(BEST, &json!({"method": "potential_loads", "tokens": [1, 2, 3]})).unwrap();
        assert_eq!((&loads["method"], &loads["pending_count"]), (&json!("potential_loads"), &json!(0)));
        let of = |load: &Value| (load["worker_id"].clone(), load["active_requests"].as_u64().unwrap());
        loads["loads"]
            .as_array()
            .unwrap()
            .iter()
            .map(of)
            .filter(|(_, requests)| *requests > 0)
            .collect::<Vec<_>>()
    };
    // The client has its answers a moment before the router has noted that they are over.
    eventually("its own requests are over", Duration::from_secs(10), || busy().is_empty().then_some(()));
    let new = json!({"method": "new", "tokens": request.token_ids, "request_id": "r1"});
    let booked = client.ask_json(BEST, &new).unwrap();
    assert_eq!((&booked["method"], &booked["worker_id"]), (&json!("new"), &best["worker_id"]));
    assert_eq!(busy(), [(best["worker_id"].clone(), 1)]);
    let mark =
        |method: &str, id: &str| client.ask_json(BEST, &json!({"method": method, "request_id": id})).unwrap();
    assert_eq!(mark("mark_prefill", "r1"), json!({"method": "prefill_marked", "success": true}));
    assert_eq!(mark("mark_prefill", "r2"), json!({"method": "prefill_marked", "success": false}));
    assert_eq!(mark("mark_free", "r1"), json!({"method": "free_marked", "success": true}));
    assert_eq!(mark("mark_free", "r1"), json!({"method": "free_marked", "success": false}));
    assert_eq!(busy(), []);
    let metrics = router.metrics();
    // Three that it sent, and one that it booked.
    assert_eq!(metrics.sum("dynamo_component_router_requests_total", &[]), 4.0);
    assert_eq!(metrics.sum("dynamo_component_router_requests_failed_total", &[]), 0.0);
}

#[test]
fn requests_that_others_send_say_who_may_serve_them_and_wait_in_their_place() {
    let mut stack = Stack::new();
    let _plain = stack.worker(&WorkerOptions { workers: 2, ..WorkerOptions::default() });
    let more = ["--worker-taints", "zone=b"].map(str::to_owned).to_vec();
    let _tainted = stack.worker(&WorkerOptions { more, ..WorkerOptions::default() });
    // Whatever is outstanding on a worker keeps the next one waiting.
    let router =
        stack.router(&["router", "--router-queue-threshold", "0", "--router-min-initial-workers", "3"]);
    router.wait_until_ready();
    let client = PlaneClient::join(&stack);
    let book = |id: &str, hints: Value| {
        let mut new = json!({"method": "new", "tokens": prompt(1, 160).token_ids, "request_id": id});
        new.as_object_mut().unwrap().extend(hints.as_object().unwrap().clone());
        client.ask_json(BEST, &new).map(|booked| booked["worker_id"].as_u64().expect("a worker"))
    };
    let mark = |method: &str, id: &str| {
        let marked = client.ask_json(BEST, &json!({"method": method, "request_id": id})).unwrap();
        assert_eq!(marked["success"], true, "{id}");
    };
    let zone = json!({"routing_constraints": {"required_taints": ["zone=b"]}});
    let tainted = book("tainted", zone).unwrap();
    let workers = client.workers("dyn://dynamo.backend.generate");
    let plain: Vec<u64> = workers.into_iter().filter(|worker| *worker != tainted).collect();
    assert_eq!(book("allowed", json!({"allowed_worker_ids": [tainted, plain[0]]})), Ok(plain[0]));
    assert_eq!(book("pinned", json!({"worker_id": plain[1], "dp_rank": 0})), Ok(plain[1]));
    let refused = book("odd", json!({"router_config_override": {"router_temperature": -1}})).unwrap_err();
    assert!(refused.contains("router_temperature must be 0 or more"), "{refused}");
    // All three are busy now.
    let began = Instant::now();
    let late = book("late", json!({"deadline_ms": 100})).unwrap_err();
    assert!(late.contains("in time") && began.elapsed() < Duration::from_secs(10), "{late}");
    let waiting = || client.ask_json(BEST, &json!({"method": "potential_loads", "tokens": [1]})).unwrap();
    let order = std::sync::Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        let (book, mark, order) = (&book, &mark, &order);
        let hints = [
            ("plain", json!({})),
            ("early", json!({"priority": 1000})),
            ("strict", json!({"strict_priority": 2, "policy_class": "unheard-of"})),
            ("bound", json!({"worker_id": plain[0], "strict_priority": 9})),
        ];
        for (count, (id, hints)) in (1..).zip(hints) {
            scope.spawn(move || {
                let worker = book(id, hints).unwrap();
                order.lock().unwrap().push((id, worker));
                mark("mark_prefill", id);
            });
            eventually("it waits", Duration::from_secs(10), || {
                (waiting()["pending_count"] == count).then_some(())
            });
        }
        // One worker is free: the bound one stays.
        mark("mark_prefill", "tainted");
        eventually("three went there", Duration::from_secs(10), || {
            (order.lock().unwrap().len() == 3).then_some(())
        });
        mark("mark_prefill", "allowed");
    });
    let order = order.into_inner().unwrap();
    let ids: Vec<&str> = order.iter().map(|(id, _)| *id).collect();
    assert_eq!(ids, ["strict", "early", "plain", "bound"]);
    assert_eq!(
        order.iter().map(|(_, worker)| *worker).collect::<Vec<_>>(),
        [tainted, tainted, tainted, plain[0]]
    );
}

#[test]
fn a_router_killed_under_load_has_the_same_index_when_it_is_back() {
    let mut stack = Stack::new();
    let options = WorkerOptions {
        workers: 2,
        // Small caches, so that blocks come and go all the time.
        more: vec!["--num-gpu-blocks-override".into(), "600".into()],
        ..WorkerOptions::default()
    };
    let _workers = stack.worker(&options);
    let command = ["router", "--endpoint", "dyn://dynamo.backend.generate"];
    let mut router = stack.router(&command);
    router.wait_until_ready();
    let client = PlaneClient::join(&stack);
    let workers = client.workers("dyn://dynamo.backend.generate");
    let (stop, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    let router = std::thread::scope(|scope| {
        let load = |lane: u32| {
            let (client, workers, stop, served) = (&client, &workers, &stop, &served);
            move || {
                let mut number = lane;
                while !stop.load(Ordering::Relaxed) {
                    // Around the router, so that the load does not stop with it.
                    let worker = workers[number as usize % workers.len()];
                    let request = prompt(number, 64 + number % 7 * 48);
                    client.generate("dyn://dynamo.backend.generate", Some(worker), &request).unwrap();
                    served.fetch_add(1, Ordering::Relaxed);
                    number += 4;
                }
            }
        };
        let lanes: Vec<_> = (0..4).map(|lane| scope.spawn(load(lane))).collect();
        let more = |count: usize| {
            let target = served.load(Ordering::Relaxed) + count;
            eventually("the load goes on", Duration::from_secs(60), || {
                (served.load(Ordering::Relaxed) >= target).then_some(())
            });
        };
        more(300);
        router.process.signal(Signal::KILL);
        router.process.wait(Duration::from_secs(10)).expect("it dies");
        more(100);
        let router = stack.router(&command);
        router.wait_until_ready();
        more(300);
        stop.store(true, Ordering::Relaxed);
        for lane in lanes {
            lane.join().expect("the load runs to its end");
        }
        router
    });
    let held = |worker: &u64| (*worker, client.worker_holds(*worker, 0).0);
    let wanted: BTreeMap<u64, BTreeSet<HeldBlock>> = workers.iter().map(held).collect();
    assert!(wanted.values().all(|held| held.len() > 300), "the caches are in use");
    eventually("the index is what the workers hold", Duration::from_secs(10), || {
        (router_holds(&router) == wanted).then_some(())
    });
    // The client may know only the one that was killed for a moment more.
    let restarted = eventually("the client finds the new router", Duration::from_secs(10), || {
        client.generate(GENERATE, None, &prompt(3, 64)).ok()
    });
    assert_eq!(tokens(&restarted).len(), 8);
}

#[test]
fn a_worker_whose_dump_does_not_come_is_cold_and_keeps_nobody_waiting() {
    let mut stack = Stack::new();
    let silent = stack.worker(&WorkerOptions::default());
    let _other = stack.worker(&WorkerOptions::default());
    silent.process.stop();
    let began = Instant::now();
    let router = stack.router(&["router", "--router-dump-timeout-secs", "2"]);
    // It knows of the silent worker and waits for it first.
    assert!(!router.is_ready());
    router.wait_until_ready();
    let waited = began.elapsed();
    assert!(waited >= Duration::from_secs(2) && waited < Duration::from_secs(12), "{waited:?}");
    let metrics = router.metrics();
    assert_eq!(metrics.sum("dynamo_component_router_cold_workers", &[]), 1.0);
    assert_eq!(metrics.sum("dynamo_component_router_late_dumps_total", &[]), 1.0);
    silent.process.signal(Signal::CONT);
    eventually("the dump comes at last", Duration::from_secs(30), || {
        (router.metrics().sum("dynamo_component_router_cold_workers", &[]) == 0.0).then_some(())
    });
}

#[test]
fn blocks_of_another_size_are_not_used() {
    let mut stack = Stack::new();
    let worker = |block_size| WorkerOptions { block_size, ..WorkerOptions::default() };
    let _wrong = stack.worker(&worker(32));
    let router = stack.router(&["router", "--router-block-size", "16"]);
    eventually("the mismatch is told", Duration::from_secs(10), || {
        (router.metrics().sum("dynamo_component_router_mismatched_workers", &[]) == 1.0).then_some(())
    });
    assert!(!router.is_ready());
    let _right = stack.worker(&worker(16));
    router.wait_until_ready();
    let client = PlaneClient::join(&stack);
    assert_eq!(client.generate(GENERATE, None, &prompt(1, 64)).map(|it| tokens(&it).len()), Ok(8));
}

#[test]
fn a_global_router_sends_requests_to_the_pool_of_their_length_and_past_pools_that_are_down() {
    let mut stack = Stack::new();
    let mut pools = Vec::new();
    for pool in ["short", "long"] {
        let more = vec!["--endpoint".into(), format!("dyn://{pool}.backend.generate")];
        let worker = stack.worker(&WorkerOptions { more, ..WorkerOptions::default() });
        let endpoint = format!("dyn://{pool}.backend.generate");
        let router = stack.router(&["router", "--endpoint", &endpoint]);
        router.wait_until_ready();
        pools.push((worker, router));
    }
    let file = stack.discovery().with_file_name("pools.json");
    let config = json!({
        "num_agg_pools": 2, "agg_pool_dynamo_namespaces": ["short", "long"],
        "agg_pool_selection_strategy": {
            "isl_min": 0, "isl_max": 200, "isl_resolution": 2,
            "ttft_min": 0, "ttft_max": 1000, "ttft_resolution": 1,
            "itl_min": 0, "itl_max": 100, "itl_resolution": 1,
            "agg_pool_mapping": [[[0]], [[1]]],
        },
    });
    std::fs::write(&file, config.to_string()).unwrap();
    let global = stack.router(&["global-router", "--config", file.to_str().unwrap(), "--model-name", "tiny"]);
    global.wait_until_ready();
    // A frontend of the global router's namespace sees it as the model's one worker.
    let frontend = stack.frontend(&["--namespace", "dynamo"]);
    eventually("the frontend has the model", Duration::from_secs(30), || {
        let models = dynamo_tests::get(&frontend.address, "/v1/models").ok()?.json();
        (models["data"].as_array()?.len() == 1).then_some(())
    });
    let ask = |words: usize| {
        let content = "word ".repeat(words);
        let body =
            json!({"model": "tiny", "max_tokens": 4, "messages": [{"role": "user", "content": content}]});
        let answer = post(&frontend.address, "/v1/chat/completions", &body).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.body);
    };
    let accepted = |pool: &str| {
        let label = format!("pool=\"{pool}\"");
        global.metrics().sum("dynamo_component_global_router_requests_total", &[&label])
    };
    ask(2);
    assert_eq!((accepted("short"), accepted("long")), (1.0, 0.0));
    ask(300);
    assert_eq!((accepted("short"), accepted("long")), (1.0, 1.0));
    let (_, router) = &mut pools[0];
    router.process.signal(Signal::KILL);
    router.process.wait(Duration::from_secs(10)).expect("it dies");
    ask(2);
    assert_eq!((accepted("short"), accepted("long")), (1.0, 2.0));
    let skipped = global.metrics();
    assert_eq!(skipped.sum("dynamo_component_global_router_pool_skipped_total", &["pool=\"short\""]), 1.0);
}
