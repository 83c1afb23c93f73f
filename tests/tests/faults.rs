//! Processes that die, drain, come and go, and clients that leave or stop reading.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use dynamo_tests::{
    ChatStream, Frontend, Metrics, Stack, Worker, WorkerOptions, eventually, get, post, stream_chat,
};
use rustix::process::Signal;
use serde_json::{Value, json};

/// About 25 ms from token to token.
const PACED: f64 = 0.25;

fn paced() -> WorkerOptions {
    WorkerOptions { speedup: PACED, ..WorkerOptions::default() }
}

fn with_worker_id() -> Value {
    json!({"nvext": {"extra_fields": ["worker_id"]}})
}

fn ask(frontend: &Frontend, prompt: &str) -> dynamo_tests::Answer {
    let body = json!({"model": "tiny", "max_tokens": 4, "messages": [{"role": "user", "content": prompt}]});
    post(&frontend.address, "/v1/chat/completions", &body).expect("an answer")
}

/// What a stream's events say of its end: the last event, and the error's message if one came.
fn end_of(stream: &mut ChatStream) -> (String, Option<Value>) {
    let events = stream.rest().expect("a complete body");
    let error = events.iter().find_map(|event| {
        let value: Value = serde_json::from_str(&event.data).ok()?;
        value.get("error").cloned()
    });
    (events.last().map(|event| event.data.clone()).unwrap_or_default(), error)
}

/// Nothing may be left when nobody asks: streams, reservations, blocks.
fn assert_nothing_left(frontend: &Frontend, workers: &[&Worker]) {
    eventually("the frontend's gauges return to zero", Duration::from_secs(5), || {
        let metrics = frontend.metrics();
        let left = metrics.sum("dynamo_frontend_inflight_requests", &[])
            + metrics.sum("dynamo_frontend_worker_active_decode_blocks", &[])
            + metrics.sum("dynamo_frontend_worker_active_prefill_tokens", &[])
            + metrics.sum("dynamo_request_plane_open_streams", &[]);
        (left == 0.0).then_some(())
    });
    for worker in workers {
        eventually("the worker's gauges return to zero", Duration::from_secs(5), || {
            (busy(&worker.metrics()) == 0.0).then_some(())
        });
    }
}

fn busy(metrics: &Metrics) -> f64 {
    metrics.sum("dynamo_component_running_requests", &[])
        + metrics.sum("dynamo_component_waiting_requests", &[])
        + metrics.sum("dynamo_component_active_blocks", &[])
        + metrics.sum("dynamo_request_plane_open_streams", &[])
}

#[test]
fn a_killed_worker_ends_its_streams_with_an_error_and_harms_no_other() {
    let mut stack = Stack::new();
    let frontend = stack.frontend(&["--router-mode", "round-robin"]);
    let doomed = stack.worker(&paced());
    let healthy = stack.worker(&paced());
    frontend.wait_for_workers(2);
    let mut streams: Vec<ChatStream> = (0..8)
        .map(|number| stream_chat(&frontend.address, &format!("prompt {number}"), 200, &json!({})).unwrap())
        .collect();
    for stream in &mut streams {
        assert!(stream.first_token().unwrap());
    }
    let on_doomed = doomed.metrics().sum("dynamo_component_running_requests", &[]) as usize;
    assert_eq!(on_doomed, 4, "round-robin deals them out evenly");
    doomed.process.signal(Signal::KILL);
    let killed = Instant::now();
    let readers: Vec<_> = streams
        .into_iter()
        .map(|mut stream| thread::spawn(move || (end_of(&mut stream), Instant::now())))
        .collect();
    // While they end, new requests go elsewhere, and none fails.
    for number in 0..20 {
        let answer = ask(&frontend, &format!("after the fact {number}"));
        assert_eq!(answer.status, 200, "{}", answer.body);
    }
    let mut broken = 0;
    for reader in readers {
        let ((last, error), at) = reader.join().unwrap();
        assert_eq!(last, "[DONE]");
        if let Some(error) = error {
            broken += 1;
            assert!(at - killed < Duration::from_secs(2), "the error came after {:?}", at - killed);
            assert!(error["message"].as_str().is_some() && error["type"].as_str().is_some(), "{error}");
        }
    }
    assert_eq!(broken, on_doomed);
    assert_nothing_left(&frontend, &[&healthy]);

    // A worker that comes later takes its share.
    let late = stack.worker(&paced());
    frontend.wait_for_workers(2);
    for number in 0..10 {
        assert_eq!(ask(&frontend, &format!("and later {number}")).status, 200);
    }
    assert!(late.metrics().sum("dynamo_component_requests_total", &[r#"dynamo_endpoint="generate""#]) >= 4.0);
}

#[test]
fn a_client_that_goes_away_stops_its_request_in_the_engine_within_100_ms() {
    let mut stack = Stack::new();
    let frontend = stack.frontend(&[]);
    let worker = stack.worker(&paced());
    frontend.wait_for_workers(1);
    let mut stream = stream_chat(&frontend.address, "a long story", 4000, &json!({})).unwrap();
    assert!(stream.first_token().unwrap());
    assert_eq!(worker.metrics().sum("dynamo_component_running_requests", &[]), 1.0);
    drop(stream);
    let left = Instant::now();
    eventually("the engine stops", Duration::from_millis(100), || {
        (worker.metrics().sum("dynamo_component_running_requests", &[]) == 0.0).then_some(())
    });
    println!("stopped after {:?}", left.elapsed());
    assert_nothing_left(&frontend, &[&worker]);
    assert_eq!(frontend.metrics().sum("dynamo_frontend_disconnected_clients", &[]), 1.0);
}

#[test]
fn sigterm_drains_streams_to_their_end_and_a_second_one_does_not_wait() {
    let mut stack = Stack::new();
    let frontend = stack.frontend(&[]);
    let mut worker = stack.worker(&paced());
    frontend.wait_for_workers(1);
    let mut stream = stream_chat(&frontend.address, "drain me", 100, &json!({})).unwrap();
    assert!(stream.first_token().unwrap());
    worker.process.signal(Signal::TERM);
    let (last, error) = end_of(&mut stream);
    assert_eq!((last.as_str(), error), ("[DONE]", None), "the stream reaches its end");
    let status = worker.process.wait(Duration::from_secs(10)).expect("it exits when it is drained");
    assert!(status.success(), "{status}");

    let mut impatient = stack.worker(&paced());
    frontend.wait_for_workers(1);
    let mut stream = stream_chat(&frontend.address, "do not wait for me", 4000, &json!({})).unwrap();
    assert!(stream.first_token().unwrap());
    impatient.process.signal(Signal::TERM);
    thread::sleep(Duration::from_millis(300));
    assert!(impatient.process.is_running(), "it drains");
    impatient.process.signal(Signal::TERM);
    assert!(impatient.process.wait(Duration::from_secs(3)).is_some(), "a second signal does not wait");
    assert!(end_of(&mut stream).1.is_some());
}

#[test]
fn a_frontend_drains_too() {
    let mut stack = Stack::new();
    let mut frontend = stack.frontend(&[]);
    let _worker = stack.worker(&paced());
    frontend.wait_for_workers(1);
    let mut stream = stream_chat(&frontend.address, "drain me", 100, &json!({})).unwrap();
    assert!(stream.first_token().unwrap());
    frontend.process.signal(Signal::TERM);
    let (last, error) = end_of(&mut stream);
    assert_eq!((last.as_str(), error), ("[DONE]", None));
    assert!(frontend.process.wait(Duration::from_secs(15)).expect("it exits").success());
}

#[test]
fn a_frontend_may_start_first_or_again() {
    let mut stack = Stack::new();
    let first = stack.frontend(&[]);
    assert_eq!(ask(&first, "nobody there yet").status, 404);
    let _worker = stack.worker(&WorkerOptions::default());
    first.wait_for_workers(1);
    assert_eq!(ask(&first, "hello").status, 200);
    first.process.signal(Signal::KILL);
    let second = stack.frontend(&[]);
    second.wait_for_workers(1);
    assert_eq!(ask(&second, "hello again").status, 200);
}

#[test]
fn restarting_every_worker_in_turn_fails_no_request() {
    let mut stack = Stack::new();
    let frontend = stack.frontend(&["--router-mode", "kv"]);
    let options = WorkerOptions { speedup: 5.0, ..WorkerOptions::default() };
    let mut workers: Vec<Worker> = (0..3).map(|_| stack.worker(&options)).collect();
    frontend.wait_for_workers(3);
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..8)
        .map(|client| {
            let (address, stop) = (frontend.address.clone(), stop.clone());
            thread::spawn(move || {
                let mut served = 0;
                while !stop.load(Ordering::Relaxed) {
                    let prompt = format!("client {client} asks for the {served}th time");
                    let mut stream = stream_chat(&address, &prompt, 20, &json!({})).unwrap();
                    assert_eq!(stream.status, 200);
                    let (last, error) = end_of(&mut stream);
                    assert_eq!((last.as_str(), error), ("[DONE]", None));
                    served += 1;
                }
                served
            })
        })
        .collect();
    for worker in &mut workers {
        let replacement = stack.worker(&options);
        let mut leaving = std::mem::replace(worker, replacement);
        leaving.process.signal(Signal::TERM);
        let status = leaving.process.wait(Duration::from_secs(20)).expect("it drains and exits");
        assert!(status.success(), "{status}");
    }
    stop.store(true, Ordering::Relaxed);
    let served: usize = clients.into_iter().map(|client| client.join().unwrap()).sum();
    assert!(served > 100, "only {served} requests were served meanwhile");
    assert_nothing_left(&frontend, &workers.iter().collect::<Vec<_>>());
}

/// What a load balancer does: asks each frontend's health over and over, and sends to those that say they are ready.
struct Balancer {
    addresses: Mutex<Vec<String>>,
    ready: Mutex<Vec<String>>,
    turns: AtomicUsize,
    stopped: AtomicBool,
}

impl Balancer {
    fn over(frontends: &[&Frontend]) -> Arc<Self> {
        let addresses: Vec<_> = frontends.iter().map(|frontend| frontend.address.clone()).collect();
        Arc::new(Self {
            ready: Mutex::new(addresses.clone()),
            addresses: Mutex::new(addresses),
            turns: AtomicUsize::new(0),
            stopped: AtomicBool::new(false),
        })
    }

    fn watch(self: Arc<Self>) -> thread::JoinHandle<()> {
        thread::spawn(move || {
            while !self.stopped.load(Ordering::Relaxed) {
                let mut ready = self.addresses.lock().expect("nobody panics with it").clone();
                ready.retain(|address| get(address, "/health").is_ok_and(|answer| answer.status == 200));
                *self.ready.lock().expect("nobody panics with it") = ready;
                thread::sleep(Duration::from_millis(20));
            }
        })
    }

    fn next(&self) -> String {
        let ready = self.ready.lock().expect("nobody panics with it");
        assert!(!ready.is_empty(), "no frontend is ready");
        ready[self.turns.fetch_add(1, Ordering::Relaxed) % ready.len()].clone()
    }
}

#[test]
fn restarting_each_frontend_behind_a_second_one_fails_no_request() {
    let mut stack = Stack::new();
    // Longer than a health check may take on a busy machine.
    stack.set("DYN_GRACEFUL_SHUTDOWN_GRACE_PERIOD_SECS", "3");
    let flags = ["--router-mode", "kv"];
    let worker = stack.worker(&WorkerOptions { workers: 2, speedup: 5.0, ..WorkerOptions::default() });
    let mut frontends = [stack.frontend(&flags), stack.frontend(&flags)];
    frontends.iter().for_each(|frontend| frontend.wait_for_workers(2));
    let balancer = Balancer::over(&frontends.each_ref());
    let watching = balancer.clone().watch();
    let clients: Vec<_> = (0..8)
        .map(|client| {
            let balancer = balancer.clone();
            thread::spawn(move || {
                let mut served = 0;
                while !balancer.stopped.load(Ordering::Relaxed) {
                    let prompt = format!("client {client} asks for the {served}th time");
                    let mut stream = stream_chat(&balancer.next(), &prompt, 20, &json!({})).unwrap();
                    assert_eq!(stream.status, 200);
                    let (last, error) = end_of(&mut stream);
                    assert_eq!((last.as_str(), error), ("[DONE]", None));
                    served += 1;
                }
                served
            })
        })
        .collect();
    for frontend in &mut frontends {
        frontend.process.signal(Signal::TERM);
        let status = frontend.process.wait(Duration::from_secs(30)).expect("it drains and exits");
        assert!(status.success(), "{status}");
        let gone = std::mem::replace(frontend, stack.frontend(&flags)).address;
        frontend.wait_for_workers(2);
        let mut addresses = balancer.addresses.lock().unwrap();
        addresses.retain(|address| *address != gone);
        addresses.push(frontend.address.clone());
        drop(addresses);
        eventually("the balancer takes it on", Duration::from_secs(10), || {
            balancer.ready.lock().unwrap().contains(&frontend.address).then_some(())
        });
    }
    balancer.stopped.store(true, Ordering::Relaxed);
    watching.join().unwrap();
    let served: usize = clients.into_iter().map(|client| client.join().unwrap()).sum();
    assert!(served > 100, "only {served} requests were served meanwhile");
    frontends.iter().for_each(|frontend| assert_nothing_left(frontend, &[&worker]));
}

#[test]
fn a_client_that_stops_reading_is_cancelled_and_delays_nobody() {
    let mut stack = Stack::new();
    let frontend = stack.frontend(&["--http-stall-limit-secs", "3"]);
    let worker = stack.worker(&WorkerOptions {
        more: ["--model-context-length", "8000"].map(str::to_owned).to_vec(),
        ..WorkerOptions::default()
    });
    frontend.wait_for_workers(1);
    let before = frontend.process.resident_bytes();
    // Never read: far more text than socket buffers hold, in many streams, so that memory would show.
    let stuck: Vec<ChatStream> = (0..20)
        .map(|number| {
            stream_chat(&frontend.address, &format!("unread {number}"), 7000, &json!({"logit_bias": {}}))
                .unwrap()
        })
        .collect();
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(2) {
        let asked = Instant::now();
        assert_eq!(ask(&frontend, "meanwhile").status, 200);
        assert!(asked.elapsed() < Duration::from_millis(500), "delayed by {:?}", asked.elapsed());
    }
    let held = frontend.process.resident_bytes().saturating_sub(before) / stuck.len() as u64;
    println!("{held} bytes held per stream that is not read");
    assert!(held < 1 << 20, "{held} bytes per stream");
    drop(stuck);
    assert_nothing_left(&frontend, &[&worker]);
}

#[test]
fn streams_name_their_worker_when_asked() {
    let mut stack = Stack::new();
    let frontend = stack.frontend(&[]);
    let _worker = stack.worker(&WorkerOptions::default());
    frontend.wait_for_workers(1);
    let mut stream = stream_chat(&frontend.address, "who are you", 3, &with_worker_id()).unwrap();
    let events = stream.rest().unwrap();
    assert!(events.iter().any(|event| event.data.contains("decode_worker_id")), "{events:?}");
}
