//! One child process with its output in files.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

/// A binary of this build that is running; killed when dropped.
pub struct Process {
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

/// The folder with this build's binaries: tests lie in `deps` below it.
fn binaries() -> PathBuf {
    let own = std::env::current_exe().expect("a test binary has a path");
    own.ancestors().nth(2).expect("target/<profile>/deps/<test>").to_owned()
}

impl Process {
    /// Starts `binary` with output going to `<folder>/<name>.out` and `.log`.
    pub fn start(
        binary: &str,
        arguments: &[&str],
        environment: &[(&str, &str)],
        folder: &Path,
        name: &str,
    ) -> Self {
        let path = binaries().join(binary);
        assert!(path.exists(), "{} is missing: cargo build --workspace --bins", path.display());
        let (stdout, stderr) = (folder.join(format!("{name}.out")), folder.join(format!("{name}.log")));
        let create = |path: &Path| Stdio::from(fs::File::create(path).expect("a file in the test's folder"));
        let child = Command::new(path)
            .args(arguments)
            .env_remove("DYN_LOG")
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(create(&stdout))
            .stderr(create(&stderr))
            .spawn()
            .expect("the binary starts");
        Self { child, stdout, stderr }
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it printed so far.
    pub fn output(&self) -> String {
        fs::read_to_string(&self.stdout).unwrap_or_default()
    }

    /// What it logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.stderr).unwrap_or_default()
    }

    /// The first text between `prefix` and the end of its line in the output, waiting for it.
    pub fn wait_for_output(&mut self, prefix: &str, limit: Duration) -> String {
        let deadline = Instant::now() + limit;
        loop {
            let output = self.output();
            if let Some(found) = output.lines().find_map(|line| Some(line.split_once(prefix)?.1)) {
                return found.trim().to_owned();
            }
            if let Some(status) = self.child.try_wait().expect("the child can be waited for") {
                panic!("ended with {status} before printing {prefix:?}\n{output}\n{}", self.log());
            }
            assert!(Instant::now() < deadline, "no {prefix:?} within {limit:?}\n{output}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id() as i32).expect("a child's id is positive");
        let _ = kill_process(pid, signal);
    }

    /// Stops it, and waits until none of its threads runs any more: on a loaded machine that takes a moment.
    pub fn stop(&self) {
        self.signal(Signal::STOP);
        let tasks = PathBuf::from(format!("/proc/{}/task", self.id()));
        let stopped = |task: &Path| {
            let stat = fs::read_to_string(task.join("stat")).unwrap_or_default();
            stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
        };
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let mut threads = fs::read_dir(&tasks).expect("it has threads");
            if threads.all(|task| task.is_ok_and(|task| stopped(&task.path()))) {
                return;
            }
            assert!(Instant::now() < deadline, "it does not stop");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The exit status, if it ends within the limit.
    pub fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait().expect("the child can be waited for") {
                return Some(status);
            }
            if Instant::now() >= deadline {
                return None;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("the child can be waited for").is_none()
    }

    /// Resident memory in bytes.
    pub fn resident_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or("0 kB");
        line.split_whitespace().next().and_then(|number| number.parse::<u64>().ok()).unwrap_or(0) * 1024
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("-- {}\n{}\n{}", self.stderr.display(), self.output(), tail(&self.log()));
        }
    }
}

fn tail(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines[lines.len().saturating_sub(40)..].join("\n")
}
