//! Workers in processes of their own.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::*;

const ROOT: &str = "TEST_WORKER_ROOT";

/// The process of a worker: serves until it is killed.
#[tokio::test]
#[ignore = "is the worker process of other tests"]
async fn worker_process() {
    let Ok(root) = std::env::var(ROOT) else { return };
    let mut cluster = Cluster::new();
    cluster.config.discovery = DiscoveryConfig::File { root: root.into() };
    let (_worker, _served) = cluster.worker().await;
    println!("serving");
    std::future::pending::<()>().await;
}

/// Kills the process when the test ends, however it does.
struct Worker(Child);

impl Worker {
    fn start(root: &Path) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "distributed::tests::processes::worker_process", "--ignored", "--nocapture"])
            .env(ROOT, root)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        assert!(output.lines().any(|line| line.unwrap().contains("serving")), "the worker serves");
        Self(child)
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may be dead already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn killing_a_worker_process_fails_no_request_that_comes_after() {
    let root = tempfile::tempdir().unwrap();
    let (mut victim, _survivor) = (Worker::start(root.path()), Worker::start(root.path()));
    let mut cluster = Cluster::new();
    cluster.config.discovery = DiscoveryConfig::File { root: root.path().to_owned() };
    let client = cluster.member().await.client(endpoint());
    wait_for(&client, |all| all.len() == 2).await;
    for _ in 0..4 {
        answer(client.round_robin(request()).await.unwrap()).await;
    }
    victim.kill();
    for _ in 0..50 {
        answer(client.round_robin(request()).await.unwrap()).await;
    }
    // It did not drain: in doubt, and used no more while another is left.
    wait_for(&client, |all| all.iter().filter(|(_, state)| *state == InstanceState::Ready).count() == 1)
        .await;
    answer(client.round_robin(request()).await.unwrap()).await;
}
