//! The server's processes over a run.

use serde::Serialize;

use crate::{
    error::BenchError,
    process::{self, Reading},
};

/// The processes to watch.
#[derive(Clone, Debug)]
pub(crate) struct Watch(Vec<Watched>);

#[derive(Clone, Debug)]
struct Watched {
    name: String,
    pid: u32,
    start: Reading,
    now: Reading,
    highest_rss: u64,
    gone: bool,
}

/// What the processes of one name used; bytes and counts are sums over them.
#[derive(Clone, Debug, Default, Serialize)]
pub struct ServerUse {
    /// Their name, as given.
    pub name: String,
    /// Their ids.
    pub pids: Vec<u32>,
    /// User and system seconds in the measured phase.
    pub cpu_seconds: f64,
    /// Core-microseconds for each token of the answers, the requests' own cost included.
    pub us_per_token: Option<f64>,
    /// Core-milliseconds for each answered request, its tokens' cost included.
    pub ms_per_request: Option<f64>,
    /// Resident bytes before the load, and before any streams were opened.
    pub rss_start_bytes: u64,
    /// Resident bytes at the end of the load.
    pub rss_end_bytes: u64,
    /// The highest seen in the run (sampled once a second).
    pub rss_highest_bytes: u64,
    /// The highest since the processes started.
    pub rss_peak_bytes: u64,
    /// Descriptors before the load.
    pub descriptors_start: u64,
    /// Descriptors at the end of the load.
    pub descriptors_end: u64,
    /// Threads at the end.
    pub threads: u64,
    /// With streams held open: resident bytes that came with each, the load's own included.
    pub rss_per_open_stream_bytes: Option<f64>,
    /// Whether one of them ended during the run.
    pub gone: bool,
    /// Resident bytes after everything was closed and `--after` seconds.
    pub rss_after_bytes: Option<u64>,
    /// Descriptors then.
    pub descriptors_after: Option<u64>,
}

impl Watch {
    /// Parses `name=pid` flags and takes the first reading.
    pub(crate) fn new(flag_name: &'static str, flags: &[String]) -> Result<Self, BenchError> {
        let mut watched = Vec::new();
        for flag in flags {
            let bad = || BenchError::flag(flag_name, format!("{flag:?} is not of the form name=1234"));
            let (name, pid) = flag.split_once('=').ok_or_else(bad)?;
            let pid: u32 = pid.parse().map_err(|_| bad())?;
            if name.is_empty() || pid == 0 || pid > i32::MAX as u32 {
                return Err(bad());
            }
            let start = process::read_all(pid).map_err(|source| BenchError::Process {
                name: name.to_owned(),
                pid,
                source,
            })?;
            let (name, highest_rss) = (name.to_owned(), start.rss_bytes);
            watched.push(Watched { name, pid, start, now: start, highest_rss, gone: false });
        }
        Ok(Self(watched))
    }

    /// Starts over: memory and descriptors from here.
    pub(crate) fn restart(&mut self) {
        for one in &mut self.0 {
            one.take(process::read_all);
            (one.start, one.highest_rss) = (one.now, one.now.rss_bytes);
        }
    }

    /// CPU time counts from here; memory and descriptors keep their start.
    pub(crate) fn restart_cpu(&mut self) {
        for one in &mut self.0 {
            one.take(process::read_all);
            one.start.cpu = one.now.cpu;
        }
    }

    /// Looks at the memory.
    pub(crate) fn sample(&mut self) {
        for one in &mut self.0 {
            one.take(|pid| process::read(pid).map(|reading| Reading { descriptors: 0, ..reading }));
        }
    }

    /// The use since the start, by name in the order given.
    pub(crate) fn finish(&mut self, tokens: u64, requests: u64) -> Vec<ServerUse> {
        let mut uses: Vec<ServerUse> = Vec::new();
        for one in &mut self.0 {
            one.take(process::read_all);
            let at = uses.iter().position(|u| u.name == one.name).unwrap_or_else(|| {
                uses.push(ServerUse { name: one.name.clone(), ..ServerUse::default() });
                uses.len() - 1
            });
            let sum = &mut uses[at];
            sum.pids.push(one.pid);
            sum.cpu_seconds += one.now.cpu.saturating_sub(one.start.cpu).as_secs_f64();
            sum.rss_start_bytes += one.start.rss_bytes;
            sum.rss_end_bytes += one.now.rss_bytes;
            sum.rss_highest_bytes += one.highest_rss;
            sum.rss_peak_bytes += one.now.peak_rss_bytes;
            sum.descriptors_start += one.start.descriptors;
            sum.descriptors_end += one.now.descriptors;
            sum.threads += one.now.threads;
            sum.gone |= one.gone;
        }
        for sum in &mut uses {
            sum.us_per_token = (tokens > 0).then(|| sum.cpu_seconds * 1e6 / tokens as f64);
            sum.ms_per_request = (requests > 0).then(|| sum.cpu_seconds * 1e3 / requests as f64);
        }
        uses
    }

    /// Adds a last reading to what [`Self::finish`] gave.
    pub(crate) fn look_again(&mut self, uses: &mut [ServerUse]) {
        for one in &mut self.0 {
            one.take(process::read_all);
            if let Some(sum) = uses.iter_mut().find(|u| u.name == one.name) {
                *sum.rss_after_bytes.get_or_insert(0) += one.now.rss_bytes;
                *sum.descriptors_after.get_or_insert(0) += one.now.descriptors;
            }
        }
    }
}

impl Watched {
    fn take(&mut self, read: impl FnOnce(u32) -> std::io::Result<Reading>) {
        match read(self.pid) {
            Ok(reading) => {
                self.now = reading;
                self.highest_rss = self.highest_rss.max(reading.rss_bytes);
            }
            Err(_) => self.gone = true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_of_one_name_are_added_up() {
        let me = std::process::id();
        let flags = [format!("a={me}"), format!("b={me}"), format!("a={me}")];
        let mut watch = Watch::new("--server-pid", &flags).unwrap();
        let uses = watch.finish(1000, 10);
        assert_eq!(
            uses.iter().map(|u| (u.name.as_str(), u.pids.len())).collect::<Vec<_>>(),
            [("a", 2), ("b", 1)]
        );
        assert!(uses[0].rss_end_bytes >= 2 * uses[1].rss_end_bytes / 2 && uses[0].us_per_token.is_some());
        assert!(!uses[0].gone);
    }

    #[test]
    fn bad_flags_say_what_to_give() {
        for flag in ["x", "x=y", "=1", "x=0"] {
            assert!(
                matches!(Watch::new("--server-pid", &[flag.into()]), Err(BenchError::Flag { .. })),
                "{flag}"
            );
        }
        let gone = Watch::new("--server-pid", &["x=2147483647".into()]).unwrap_err();
        assert!(gone.to_string().contains("running process"), "{gone}");
    }
}
