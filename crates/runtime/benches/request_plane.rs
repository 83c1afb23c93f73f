//! What an item costs on the request plane: steps of small items on many streams, over loopback TCP.
//!
//! `cargo bench -p dynamo-runtime --bench request_plane -- [streams] [steps]` prints core-nanoseconds per item at each
//! end (one thread each for the engine, the serving runtime and the asking runtime) and system calls per step.
#![allow(clippy::unwrap_used, reason = "a bench may unwrap")]

use std::{
    collections::BTreeMap,
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::Poll,
    time::{Duration, Instant},
};

use dynamo_runtime::{
    TaskScope,
    metrics::Metrics,
    request_plane::{
        IncomingRequest, OutgoingRequest, PushState, RequestPlane, RequestPlaneConfig, RequestPlaneMetrics,
        Responder, StreamProgress, Target,
    },
};
use parking_lot::Mutex;
use tokio::runtime::Runtime;

fn main() {
    let mut arguments = std::env::args().skip(1).filter_map(|argument| argument.parse::<u64>().ok());
    let streams = arguments.next().unwrap_or(64);
    let steps = arguments.next().unwrap_or(20_000);
    println!(
        "{:<34} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
        "", "engine", "server", "client", "items/s", "writes", "reads"
    );
    run("as fast as they are read", streams, steps, None);
    run("40 steps/s", streams, 160, Some(Duration::from_millis(25)));
    run("400 steps/s", streams, 800, Some(Duration::from_micros(2500)));
}

fn runtime(name: &str) -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name(name)
        .enable_all()
        .build()
        .unwrap()
}

fn run(what: &'static str, streams: u64, steps: u64, pace: Option<Duration>) {
    let (server_runtime, client_runtime) = (runtime("server"), runtime("client"));
    let kept = Arc::new(Mutex::new(Vec::new()));
    let (server, server_metrics) = plane(&server_runtime);
    let (client, client_metrics) = plane(&client_runtime);
    let keeper = kept.clone();
    let _guard = server.serve(
        "bench",
        Arc::new(move |_: IncomingRequest, responder: Responder| keeper.lock().push(responder)),
    );
    let target = Target { address: server.address().to_string(), path: "bench".to_owned() };
    let read = Arc::new(AtomicU64::new(0));
    for n in 0..streams {
        let request = OutgoingRequest {
            id: n.to_string().into(),
            payload: "x".into(),
            time_left: None,
            metadata: Vec::new(),
        };
        let mut stream = client_runtime.block_on(client.open(&target, request)).unwrap();
        let read = read.clone();
        client_runtime.spawn(async move {
            loop {
                let mut count = 0;
                let progress = poll_fn(|cx| match stream.poll_items(cx, &mut |_| count += 1) {
                    Poll::Ready(progress) => Poll::Ready(progress),
                    Poll::Pending => Poll::Pending,
                })
                .await;
                read.fetch_add(count, Ordering::Relaxed);
                if progress != StreamProgress::More {
                    return;
                }
            }
        });
    }
    while kept.lock().len() < streams as usize {
        std::thread::yield_now();
    }
    let responders = std::mem::take(&mut *kept.lock());
    let engine = std::thread::Builder::new()
        .name("engine".to_owned())
        .spawn(move || {
            let (cpu, start) = (cpu(), Instant::now());
            let calls = calls(&server_metrics, &client_metrics);
            let responders = push(responders, streams, steps, pace, &read, start);
            let (cpu_after, took) = (self::cpu(), start.elapsed());
            let calls_after = self::calls(&server_metrics, &client_metrics);
            drop(responders);
            let items = (streams * steps) as f64;
            let of = |name: &str| {
                let before = cpu.get(name).copied().unwrap_or(0);
                (cpu_after.get(name).copied().unwrap_or(0) - before) as f64 / items
            };
            println!(
                "{what:<34} {:>6.0} ns {:>6.0} ns {:>6.0} ns {:>9.0} {:>9.2} {:>9.2}",
                of("engine"),
                of("server"),
                of("client"),
                items / took.as_secs_f64(),
                (calls_after.0 - calls.0) as f64 / steps as f64,
                (calls_after.1 - calls.1) as f64 / steps as f64,
            );
        })
        .unwrap();
    engine.join().unwrap();
    client_runtime.shutdown_background();
    server_runtime.shutdown_background();
}

fn push(
    mut responders: Vec<Responder>,
    streams: u64,
    steps: u64,
    pace: Option<Duration>,
    read: &AtomicU64,
    start: Instant,
) -> Vec<Responder> {
    for step in 1..=steps {
        for responder in &mut responders {
            assert_eq!(responder.push(&[0, 0x9f, 0x21]), PushState::Open);
        }
        responders[0].flush();
        // A few steps may be under way, as with clients that write to sockets of their own.
        let behind = if pace.is_some() || step == steps { 0 } else { 8 };
        while pace.is_none()
            && (step * streams).saturating_sub(read.load(Ordering::Relaxed)) > behind * streams
        {
            std::thread::sleep(Duration::from_micros(20));
        }
        if let Some(pace) = pace {
            std::thread::sleep((start + pace * step as u32).saturating_duration_since(Instant::now()));
        }
    }
    responders
}

fn plane(runtime: &Runtime) -> (RequestPlane, Metrics) {
    let metrics = Metrics::new();
    let families = RequestPlaneMetrics::new(&metrics).unwrap();
    let scope = TaskScope::root(runtime.handle().clone());
    let start = RequestPlane::start(scope, RequestPlaneConfig::standard("127.0.0.1:0"), families);
    (runtime.block_on(start).unwrap(), metrics)
}

/// Writes of the server and reads of the client.
fn calls(server: &Metrics, client: &Metrics) -> (u64, u64) {
    let value = |metrics: &Metrics, name: &str| {
        let mut text = String::new();
        metrics.encode_text(&mut text);
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    (value(server, "dynamo_transport_tcp_writes_total "), value(client, "dynamo_transport_tcp_reads_total "))
}

/// Nanoseconds on a processor by thread name, as the kernel counts them.
fn cpu() -> BTreeMap<String, u64> {
    let mut by_name = BTreeMap::new();
    for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
        let read = |file| std::fs::read_to_string(task.path().join(file)).unwrap_or_default();
        let nanoseconds = read("schedstat").split(' ').next().and_then(|text| text.parse::<u64>().ok());
        *by_name.entry(read("comm").trim().to_owned()).or_insert(0) += nanoseconds.unwrap_or(0);
    }
    by_name
}
