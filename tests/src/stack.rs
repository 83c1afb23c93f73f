//! Frontends and workers that find each other through one discovery folder.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::{Metrics, Process, get};

/// How long a start may take on a loaded machine.
const START_LIMIT: Duration = Duration::from_secs(30);

/// A discovery folder with whatever was started in it.
pub struct Stack {
    folder: tempfile::TempDir,
    started: usize,
    environment: Vec<(&'static str, String)>,
}

/// A worker process's options.
#[derive(Clone, Debug)]
pub struct WorkerOptions {
    /// Simulated workers in the process.
    pub workers: u32,
    /// 0: instant.
    pub speedup: f64,
    /// Tokens per block.
    pub block_size: u32,
    /// More flags.
    pub more: Vec<String>,
}

impl Default for WorkerOptions {
    fn default() -> Self {
        Self { workers: 1, speedup: 0.0, block_size: 16, more: Vec::new() }
    }
}

/// A running frontend.
pub struct Frontend {
    /// Its process.
    pub process: Process,
    /// `127.0.0.1:port`.
    pub address: String,
}

/// A running worker process.
pub struct Worker {
    /// Its process.
    pub process: Process,
    /// Its system server, `127.0.0.1:port`.
    pub system: String,
}

/// A running router of any kind.
pub struct RouterProcess {
    /// Its process.
    pub process: Process,
    /// Its system server, `127.0.0.1:port`.
    pub system: String,
}

/// A running indexer.
pub struct Indexer {
    /// Its process.
    pub process: Process,
    /// `127.0.0.1:port`.
    pub address: String,
}

/// Tries until `attempt` gives something, for at most `limit`.
pub fn eventually<T>(what: &str, limit: Duration, mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = attempt() {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

impl Stack {
    /// Nothing runs yet.
    pub fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let discovery = folder.path().join("discovery").to_str().expect("a plain path").to_owned();
        let environment = vec![
            ("DYN_FILE_KV", discovery),
            ("DYN_SYSTEM_HOST", "127.0.0.1".to_owned()),
            ("DYN_SYSTEM_PORT", "0".to_owned()),
            ("DYN_LOG", "info".to_owned()),
        ];
        Self { folder, started: 0, environment }
    }

    /// Sets a variable for the processes started from now on.
    pub fn set(&mut self, name: &'static str, value: &str) {
        self.environment.push((name, value.to_owned()));
    }

    /// The tiny model's folder.
    pub fn model() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("data/tiny-llama")
    }

    fn start(&mut self, binary: &str, arguments: &[&str]) -> Process {
        self.started += 1;
        let environment: Vec<_> =
            self.environment.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let name = format!("{}-{}", self.started, binary);
        Process::start(binary, arguments, &environment, self.folder.path(), &name)
    }

    /// Starts a frontend and waits until it listens.
    pub fn frontend(&mut self, more: &[&str]) -> Frontend {
        let arguments = [&["--http-host", "127.0.0.1", "--http-port", "0"], more].concat();
        let mut process = self.start("dynamo-frontend", &arguments);
        let url = process.wait_for_output("http://", START_LIMIT);
        let address = url.split('/').next().unwrap_or_default().to_owned();
        Frontend { process, address }
    }

    /// Starts a worker process and waits until it has registered.
    pub fn worker(&mut self, options: &WorkerOptions) -> Worker {
        let model = Self::model();
        let (workers, speedup, block) =
            (options.workers.to_string(), options.speedup.to_string(), options.block_size.to_string());
        let mut arguments = vec!["worker", "--model-path", model.to_str().expect("a plain path")];
        arguments.extend(["--model-name", "tiny", "--num-workers", &workers, "--speedup-ratio", &speedup]);
        arguments.extend(["--block-size", &block]);
        arguments.extend(options.more.iter().map(String::as_str));
        let mut process = self.start("dynamo", &arguments);
        let system = process.wait_for_output("system     http://", START_LIMIT);
        process.wait_for_output("ready", START_LIMIT);
        Worker { process, system }
    }
}

impl Stack {
    /// Starts `dynamo router` or another command with a system server, and waits until that listens.
    pub fn router(&mut self, arguments: &[&str]) -> RouterProcess {
        let mut process = self.start("dynamo", arguments);
        let system = process.wait_for_output("system     http://", START_LIMIT);
        RouterProcess { process, system }
    }

    /// Starts an indexer on a free port, and waits until it listens.
    pub fn indexer(&mut self, more: &[&str]) -> Indexer {
        let mut process = self.start("dynamo", &[&["indexer", "--port", "0"], more].concat());
        let address = process.wait_for_output("address    http://", START_LIMIT);
        Indexer { process, address }
    }

    /// The discovery folder.
    pub fn discovery(&self) -> PathBuf {
        self.folder.path().join("discovery")
    }
}

impl Default for Stack {
    fn default() -> Self {
        Self::new()
    }
}

impl Frontend {
    /// Waits until the model can be asked for, with that many workers.
    pub fn wait_for_workers(&self, workers: usize) {
        eventually("the frontend sees the workers", START_LIMIT, || {
            let health = get(&self.address, "/health").ok()?.json();
            let endpoints = health["instances"].as_array()?;
            let generate = endpoints.iter().filter(|instance| instance["endpoint"] == "generate").count();
            let models = get(&self.address, "/v1/models").ok()?.json();
            (generate == workers && models["data"].as_array()?.len() == 1).then_some(())
        });
    }

    /// Its metrics now.
    pub fn metrics(&self) -> Metrics {
        Metrics::parse(&get(&self.address, "/metrics").expect("the frontend answers").body)
    }
}

impl Worker {
    /// Its metrics now.
    pub fn metrics(&self) -> Metrics {
        Metrics::parse(&get(&self.system, "/metrics").expect("the worker answers").body)
    }
}

impl RouterProcess {
    /// Whether it says that it is ready.
    pub fn is_ready(&self) -> bool {
        get(&self.system, "/health").is_ok_and(|answer| answer.status == 200)
    }

    /// Waits until it says that it is ready.
    pub fn wait_until_ready(&self) {
        eventually("the router is ready", START_LIMIT, || self.is_ready().then_some(()));
    }

    /// Its metrics now.
    pub fn metrics(&self) -> Metrics {
        Metrics::parse(&get(&self.system, "/metrics").expect("the router answers").body)
    }
}

impl Indexer {
    /// Waits until it has taken over from its peers, or has none.
    pub fn wait_until_ready(&self) {
        let ready = || get(&self.address, "/health").is_ok_and(|answer| answer.status == 200);
        eventually("the indexer is ready", START_LIMIT, || ready().then_some(()));
    }
}
