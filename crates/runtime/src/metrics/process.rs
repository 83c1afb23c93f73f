use super::{Metrics, MetricsError};
use std::time::Instant;

/// What only the binary, or the owner of the task scopes, can tell about the process.
pub struct ProcessSources {
    /// When the process, or this part of it, started.
    pub started: Instant,
    /// Tasks alive.
    pub tasks: Box<dyn Fn() -> usize + Send + Sync>,
    /// Allocations since the start, if the binary's global allocator counts them.
    pub allocations: Option<fn() -> u64>,
}

/// Registers `dynamo_component_uptime_seconds`, `dynamo_process_tasks`, `dynamo_process_allocations_total` (where
/// counted) and, on Linux, `process_resident_memory_bytes`, `process_open_fds` and `process_cpu_seconds_total`. They
/// are read at each scrape.
pub fn register_process_metrics(metrics: &Metrics, sources: ProcessSources) -> Result<(), MetricsError> {
    let ProcessSources { started, tasks, allocations } = sources;
    let uptime = metrics.float_gauge("dynamo_component_uptime_seconds", "Seconds since the start")?;
    let alive = metrics.gauge("dynamo_process_tasks", "Asynchronous tasks alive")?;
    metrics.on_scrape(move || {
        uptime.set(started.elapsed().as_secs_f64());
        alive.set(to_gauge(tasks()));
    });
    if let Some(count) = allocations {
        let family =
            metrics.counter("dynamo_process_allocations_total", "Heap allocations since the start")?;
        metrics.on_scrape(move || family.inc_by(count().saturating_sub(family.get())));
    }
    #[cfg(target_os = "linux")]
    linux::register(metrics)?;
    Ok(())
}

fn to_gauge(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

#[cfg(target_os = "linux")]
mod linux {
    use super::{Metrics, MetricsError, to_gauge};
    use rustix::time::{ClockId, clock_gettime};

    pub(super) fn register(metrics: &Metrics) -> Result<(), MetricsError> {
        let rss = metrics.gauge("process_resident_memory_bytes", "Resident memory of the process")?;
        let descriptors = metrics.gauge("process_open_fds", "Open file descriptors")?;
        let cpu = metrics.float_gauge("process_cpu_seconds_total", "User and system time of the process")?;
        metrics.on_scrape(move || {
            if let Some(bytes) = resident_bytes() {
                rss.set(bytes);
            }
            if let Ok(entries) = std::fs::read_dir("/proc/self/fd") {
                // The listing itself holds one.
                descriptors.set(to_gauge(entries.count().saturating_sub(1)));
            }
            let time = clock_gettime(ClockId::ProcessCPUTime);
            cpu.set(time.tv_sec as f64 + time.tv_nsec as f64 / 1e9);
        });
        Ok(())
    }

    fn resident_bytes() -> Option<i64> {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        let kibibytes: i64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
        Some(kibibytes * 1024)
    }
}
