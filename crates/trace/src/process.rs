//! CPU time, memory and descriptors of a process.

use std::{io, time::Duration};

use nix::{
    sys::resource::{UsageWho, getrusage},
    unistd::Pid,
};

/// A reading of a process.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Reading {
    /// User and system time since it started, threads that ended included.
    pub(crate) cpu: Duration,
    pub(crate) rss_bytes: u64,
    /// The highest since it started.
    pub(crate) peak_rss_bytes: u64,
    pub(crate) descriptors: u64,
    pub(crate) threads: u64,
}

/// Reads a process, all but its descriptors (listing ten thousand of them takes milliseconds).
pub(crate) fn read(pid: u32) -> io::Result<Reading> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
        line.and_then(|value| value.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0)
    };
    Ok(Reading {
        cpu: cpu(pid)?,
        rss_bytes: field("VmRSS") * 1024,
        peak_rss_bytes: field("VmHWM") * 1024,
        descriptors: 0,
        threads: field("Threads"),
    })
}

/// Reads a process, its descriptors included.
pub(crate) fn read_all(pid: u32) -> io::Result<Reading> {
    // Another user's process hides them: then they are unknown, which is no reason to fail.
    let descriptors =
        std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, |entries| entries.count() as u64);
    Ok(Reading { descriptors, ..read(pid)? })
}

#[cfg(target_os = "linux")]
fn cpu(pid: u32) -> io::Result<Duration> {
    // To the nanosecond, where /proc/<pid>/stat counts in hundredths of a second.
    let clock = nix::time::clock_getcpuclockid(Pid::from_raw(pid as i32))?;
    Ok(nix::time::clock_gettime(clock)?.into())
}

#[cfg(not(target_os = "linux"))]
fn cpu(_pid: u32) -> io::Result<Duration> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "processes can be watched on Linux only"))
}

/// User and system time of the generator: of this thread if everything runs on it, else of this process.
pub(crate) fn own_cpu() -> (Duration, Duration) {
    let time = |value: nix::sys::time::TimeVal| {
        Duration::from_micros(value.tv_sec() as u64 * 1_000_000 + value.tv_usec() as u64)
    };
    getrusage(own()).map_or((Duration::ZERO, Duration::ZERO), |usage| {
        (time(usage.user_time()), time(usage.system_time()))
    })
}

#[cfg(target_os = "linux")]
fn own() -> UsageWho {
    use tokio::runtime::{Handle, RuntimeFlavor};
    match Handle::current().runtime_flavor() {
        RuntimeFlavor::CurrentThread => UsageWho::RUSAGE_THREAD,
        _ => UsageWho::RUSAGE_SELF,
    }
}

#[cfg(not(target_os = "linux"))]
fn own() -> UsageWho {
    UsageWho::RUSAGE_SELF
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reading_of_this_process_is_plausible() {
        let before = read_all(std::process::id()).unwrap();
        let file = std::fs::File::open("/proc/self/status").unwrap();
        let until = std::time::Instant::now() + Duration::from_secs(5);
        let mut after = read_all(std::process::id()).unwrap();
        while after.cpu <= before.cpu && std::time::Instant::now() < until {
            after = read_all(std::process::id()).unwrap();
        }
        assert!(after.cpu > before.cpu);
        assert!(after.descriptors > 3 && after.threads >= 1);
        assert!(after.rss_bytes > 1 << 20 && after.peak_rss_bytes >= after.rss_bytes);
        drop(file);
    }

    #[test]
    fn a_process_that_is_not_there_is_an_error() {
        assert!(read(u32::MAX >> 1).is_err());
    }
}
