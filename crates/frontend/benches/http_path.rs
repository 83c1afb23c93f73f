//! What a token, a request and an open stream cost the service, over loopback and with scripted models behind it.
//!
//!     cargo bench -p dynamo-frontend --bench http_path [-- burst|batched|paced|requests|memory …]
//!
//! The service runs on one thread of its own; its CPU time is read from `/proc`, so the client's share is not in it.

#![allow(clippy::unwrap_used, reason = "a bench that can't run should stop")]

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use dynamo_frontend::{
    HttpConfig, HttpService, bind,
    fake::{FakeCatalog, FakeModel, Pace, Script},
};
use dynamo_runtime::{Metrics, Phase};
use tokio::sync::watch;

struct Server {
    address: SocketAddr,
    thread_id: String,
    _phase: watch::Sender<Phase>,
}

impl Server {
    fn start(script: Script) -> Self {
        let (phase, phases) = watch::channel(Phase::Running);
        let (tell, told) = mpsc::channel();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let config = HttpConfig::from_env(&|_| None).unwrap();
                let catalog = Arc::new(FakeCatalog::new(vec![FakeModel::new("tiny", script)]));
                let service = HttpService::new(config, catalog, Metrics::new(), phases).unwrap();
                let listener = bind("127.0.0.1", 0).await.unwrap();
                let link = fs::read_link("/proc/thread-self").unwrap();
                tell.send((listener.local_addr().unwrap(), link.display().to_string())).unwrap();
                service.serve(listener).await;
            });
        });
        let (address, thread_id) = told.recv().unwrap();
        Self { address, thread_id, _phase: phase }
    }

    /// Nanoseconds that the service's thread was on a core.
    fn cpu(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/schedstat", self.thread_id)).unwrap();
        stat.split(' ').next().unwrap().parse().unwrap()
    }
}

fn request(stream: bool, words: usize) -> Vec<u8> {
    let prompt = (0..words).map(|at| format!("word{at}")).collect::<Vec<_>>().join(" ");
    let body = format!(
        r#"{{"model":"tiny","messages":[{{"role":"user","content":"{prompt}"}}],"stream":{stream},"max_tokens":1000000}}"#
    );
    let length = body.len();
    format!("POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}")
        .into_bytes()
}

fn read_to(client: &mut TcpStream, end: &[u8], buffer: &mut [u8]) {
    let mut held = 0;
    loop {
        let count = client.read(&mut buffer[held..]).unwrap();
        assert!(count > 0, "the connection was lost");
        held += count;
        if buffer[..held].ends_with(end) {
            return;
        }
        let keep = held.min(end.len());
        buffer.copy_within(held - keep..held, 0);
        held = keep;
    }
}

fn script(tokens: u32, per_poll: u32, pace: Pace) -> Script {
    Script { tokens, per_poll, pace, ..Script::of(&[" some", " text", " it", "\n"]) }
}

/// `streams` answers at once on connections of their own; core-ns per token.
fn tokens(name: &str, streams: u32, script: Script) {
    let tokens = f64::from(script.tokens) * f64::from(streams);
    let server = Server::start(script);
    let (cpu, start) = (server.cpu(), Instant::now());
    let clients: Vec<_> = (0..streams)
        .map(|_| {
            let address = server.address;
            thread::spawn(move || {
                let mut client = TcpStream::connect(address).unwrap();
                client.write_all(&request(true, 256)).unwrap();
                read_to(&mut client, b"\r\n0\r\n\r\n", &mut vec![0; 64 << 10]);
            })
        })
        .collect();
    for client in clients {
        client.join().unwrap();
    }
    let (spent, took) = (server.cpu() - cpu, start.elapsed().as_secs_f64());
    println!("{name}: {:.0} core-ns per token, {:.0} tokens/s", spent as f64 / tokens, tokens / took);
}

/// One-token answers one after the other on one connection; core-µs per request.
fn requests() {
    const COUNT: u32 = 5000;
    let server = Server::start(script(1, 1, Pace::Burst));
    for (name, stream, end) in [("streamed", true, &b"\r\n0\r\n\r\n"[..]), ("whole", false, b"}")] {
        let mut client = TcpStream::connect(server.address).unwrap();
        let request = request(stream, 256);
        let mut buffer = vec![0; 64 << 10];
        let cpu = server.cpu();
        for _ in 0..COUNT {
            client.write_all(&request).unwrap();
            read_to(&mut client, end, &mut buffer);
        }
        let each = (server.cpu() - cpu) as f64 / f64::from(COUNT) / 1e3;
        println!("requests, {name}: {each:.1} core-µs each");
    }
}

/// Streams that are open and slow; resident bytes of this process (the clients' sockets hold none) per stream.
fn memory() {
    const STREAMS: usize = 9000;
    let resident = || {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap()
    };
    let server = Server::start(script(1000, 1, Pace::Every(Duration::from_secs(2))));
    let request = request(true, 256);
    let before = resident();
    let mut clients = Vec::with_capacity(STREAMS);
    let mut buffer = [0; 4096];
    for _ in 0..STREAMS {
        let mut client = TcpStream::connect(server.address).unwrap();
        client.write_all(&request).unwrap();
        let count = client.read(&mut buffer).unwrap();
        assert!(buffer[..count].starts_with(b"HTTP/1.1 200"));
        clients.push(client);
    }
    // Every stream has sent a few tokens.
    thread::sleep(Duration::from_secs(6));
    let after = resident();
    println!("memory: {:.1} KiB resident per open stream of {STREAMS}", (after - before) / STREAMS as f64);
}

fn main() {
    let asked: Vec<String> = std::env::args().skip(1).filter(|it| !it.starts_with('-')).collect();
    let wants = |name: &str| asked.is_empty() || asked.iter().any(|it| it == name);
    if wants("burst") {
        tokens("burst, one at a time", 1, script(2_000_000, 1, Pace::Burst));
    }
    if wants("batched") {
        tokens("64 streams, a token per ms each", 64, script(2000, 1, Pace::Every(Duration::from_millis(1))));
    }
    if wants("paced") {
        tokens("64 streams, 40 tokens/s each", 64, script(200, 1, Pace::Every(Duration::from_millis(25))));
    }
    if wants("requests") {
        requests();
    }
    if wants("memory") {
        memory();
    }
}
