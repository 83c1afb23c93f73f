//! The indexer as a process: it hears engines on their own wire, and a restart loses nothing.

use std::{
    collections::BTreeSet,
    net::TcpListener,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Duration,
};

use dynamo_engine_api::{KvCacheEventData, PreprocessedRequest, StopConditions};
use dynamo_tests::{
    HeldBlock, Indexer, PlaneClient, Stack, Worker, WorkerOptions, eventually, get, held_blocks, post,
};
use rustix::process::Signal;
use serde_json::{Value, json};

const GENERATE: &str = "dyn://dynamo.backend.generate";

/// Two ports that were free a moment ago.
fn free_ports() -> [u16; 2] {
    let held = [0, 0].map(|_| TcpListener::bind("127.0.0.1:0").expect("a free port"));
    held.map(|listener| listener.local_addr().expect("it is bound").port())
}

/// A worker whose engine publishes on its own wire: its events and its replay address.
fn engine(stack: &mut Stack) -> (Worker, String, String) {
    let [events, replay] = free_ports();
    let more = ["--zmq-kv-events-ports", &events.to_string(), "--zmq-replay-ports", &replay.to_string()];
    // Small caches, so that blocks come and go all the time.
    let blocks = ["--num-gpu-blocks-override", "600"];
    let more = more.iter().chain(&blocks).map(|flag| (*flag).to_owned()).collect();
    let worker = stack.worker(&WorkerOptions { more, ..WorkerOptions::default() });
    (worker, format!("tcp://127.0.0.1:{events}"), format!("tcp://127.0.0.1:{replay}"))
}

fn prompt(seed: u32, tokens: u32) -> PreprocessedRequest {
    PreprocessedRequest {
        model: "tiny".into(),
        token_ids: (0..tokens).map(|place| 5 + (seed * 31 + place * 7) % 90).collect(),
        stop_conditions: StopConditions { max_tokens: Some(8), ignore_eos: Some(true), ..Default::default() },
        ..PreprocessedRequest::default()
    }
}

/// What the indexer's dump says that instance 7 holds.
fn indexer_holds(indexer: &Indexer) -> BTreeSet<HeldBlock> {
    let dump = get(&indexer.address, "/dump").expect("a dump").json();
    let events = dump["m:default"]["events"].as_array().cloned().unwrap_or_default();
    let data = |event: &Value| -> KvCacheEventData {
        serde_json::from_value(event["event"]["data"].clone()).expect("an event")
    };
    let events: Vec<KvCacheEventData> =
        events.iter().filter(|event| event["worker_id"] == 7).map(data).collect();
    held_blocks(&events)
}

fn register(indexer: &Indexer, events: &str, replay: Option<&str>) {
    let engine = json!({
        "instance_id": 7, "endpoint": events, "replay_endpoint": replay, "model_name": "m", "block_size": 16,
    });
    let answer = post(&indexer.address, "/register", &engine).expect("an answer");
    assert_eq!(answer.status, 201, "{}", answer.body);
}

#[test]
fn what_an_engine_publishes_is_found_and_what_it_published_before_is_replayed() {
    let mut stack = Stack::new();
    let (_worker, events, replay) = engine(&mut stack);
    let client = PlaneClient::join(&stack);
    let worker = client.workers(GENERATE)[0];
    let request = prompt(1, 160);
    client.generate(GENERATE, None, &request).unwrap();
    let late = stack.indexer(&[]);
    late.wait_until_ready();
    register(&late, &events, Some(&replay));
    let query = json!({"token_ids": request.token_ids, "model_name": "m"});
    let tokens = |indexer: &Indexer| {
        post(&indexer.address, "/query", &query).unwrap().json()["scores"]["7"]["0"].as_u64()
    };
    eventually("what was published before is there", Duration::from_secs(20), || {
        (tokens(&late) == Some(160)).then_some(())
    });
    client.generate(GENERATE, None, &prompt(2, 320)).unwrap();
    eventually("the index is what the engine holds", Duration::from_secs(20), || {
        (indexer_holds(&late) == client.worker_holds(worker, 0).0).then_some(())
    });
    let metrics = get(&late.address, "/metrics").unwrap().body;
    assert!(metrics.contains("dynamo_kvindexer_listeners{status=\"active\"} 1"), "{metrics}");
    let gone = json!({"instance_id": 7, "model_name": "m"});
    assert_eq!(post(&late.address, "/unregister", &gone).unwrap().status, 200);
    assert_eq!(post(&late.address, "/query", &query).unwrap().status, 404);
}

#[test]
fn an_indexer_killed_under_load_takes_over_from_its_peer() {
    let mut stack = Stack::new();
    let (process, events, _) = engine(&mut stack);
    let client = PlaneClient::join(&stack);
    let worker = client.workers(GENERATE)[0];
    let list = format!("7={events}");
    let flags = ["--workers", &list, "--block-size", "16", "--model-name", "m"];
    let peer = stack.indexer(&flags);
    let mut killed = stack.indexer(&flags);
    for indexer in [&peer, &killed] {
        indexer.wait_until_ready();
        // A subscription takes a moment to reach the engine.
        let mut number = 0;
        eventually("it hears the engine", Duration::from_secs(20), || {
            number += 1;
            client.generate(GENERATE, None, &prompt(number, 320)).unwrap();
            (!indexer_holds(indexer).is_empty()).then_some(())
        });
    }
    // What was published before is not to be had any more: all begin with nothing.
    assert_eq!(post(&process.system, "/engine/clear_kv_blocks", &json!({})).unwrap().status, 200);
    for indexer in [&peer, &killed] {
        eventually("the caches are empty", Duration::from_secs(20), || {
            (indexer_holds(indexer).is_empty() && client.worker_holds(worker, 0).0.is_empty()).then_some(())
        });
    }
    let (stop, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    let back = std::thread::scope(|scope| {
        let load = |lane: u32| {
            let (client, stop, served) = (&client, &stop, &served);
            move || {
                let mut number = 100 + lane;
                while !stop.load(Ordering::Relaxed) {
                    let request = prompt(number, 64 + number % 7 * 48);
                    client.generate(GENERATE, None, &request).unwrap();
                    served.fetch_add(1, Ordering::Relaxed);
                    number += 2;
                }
            }
        };
        let lanes: Vec<_> = (0..2).map(|lane| scope.spawn(load(lane))).collect();
        let more = |count: usize| {
            let target = served.load(Ordering::Relaxed) + count;
            eventually("the load goes on", Duration::from_secs(60), || {
                (served.load(Ordering::Relaxed) >= target).then_some(())
            });
        };
        more(200);
        killed.process.signal(Signal::KILL);
        killed.process.wait(Duration::from_secs(10)).expect("it dies");
        more(50);
        // It knows of no engine but through its peer.
        let back = stack.indexer(&["--peers", &format!("http://{}", peer.address)]);
        back.wait_until_ready();
        more(200);
        stop.store(true, Ordering::Relaxed);
        for lane in lanes {
            lane.join().expect("the load runs to its end");
        }
        back
    });
    // The worker hears its engine over the same wire, and so a moment later too.
    let wanted = || client.worker_holds(worker, 0).0;
    for (name, indexer) in [("first", &peer), ("restarted", &back)] {
        let same = || (indexer_holds(indexer) == wanted()).then_some(());
        eventually(
            &format!("the index of the {name} one is what the engine holds"),
            Duration::from_secs(10),
            same,
        );
    }
    assert!(wanted().len() > 300, "the cache is in use");
}
