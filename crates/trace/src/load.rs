//! The loops that send: closed, open, and the timer that tells how late this process runs.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{sync::Semaphore, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    alarm::Alarm,
    arrival::Arrivals,
    client::{Ask, Client},
    error::BenchError,
    meter::Meter,
    workload::Workload,
};

/// How often the timer's lag is sampled: often enough for a 99th percentile of a second, at a thousandth of a core.
const LAG_PERIOD: Duration = Duration::from_millis(5);

/// What all loops need.
#[derive(Clone)]
pub(crate) struct Load {
    pub(crate) client: Arc<Client>,
    pub(crate) workload: Arc<Workload>,
    pub(crate) meter: Arc<Meter>,
    pub(crate) stop: CancellationToken,
}

/// How many requests, and for how long.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Limit {
    pub(crate) requests: Option<u64>,
    pub(crate) duration: Option<Duration>,
}

/// So many streams; each sends its next request when the last is answered.
pub(crate) async fn closed_loop(load: &Load, concurrency: u32, limit: Limit) -> Result<(), BenchError> {
    let next = Arc::new(AtomicU64::new(0));
    let most = limit.requests.unwrap_or(u64::MAX).min(load.workload.len().unwrap_or(u64::MAX));
    let end = limit.duration.map(|duration| load.meter.start + duration);
    let mut streams = JoinSet::new();
    for _ in 0..u64::from(concurrency).min(most) {
        let (load, next) = (load.clone(), next.clone());
        streams.spawn(async move {
            while !load.stop.is_cancelled() && end.is_none_or(|end| Instant::now() < end) {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= most {
                    break;
                }
                load.client.ask(&load.meter, Ask { workload: &load.workload, index, due: None }).await;
            }
        });
    }
    join(&mut streams).await
}

/// Sends each request when it is due, whether or not others are answered. With `max_in_flight` of them out, the next waits
/// for one to end: nothing is dropped, and its lateness counts. Returns how many were due.
pub(crate) async fn open_loop(
    load: &Load,
    arrivals: Arrivals<'_>,
    max_in_flight: u32,
    limit: Limit,
) -> Result<u64, BenchError> {
    let room = Arc::new(Semaphore::new(max_in_flight as usize));
    let most = limit.requests.unwrap_or(u64::MAX).min(load.workload.len().unwrap_or(u64::MAX));
    let (mut requests, alarm) = (JoinSet::new(), Alarm::new());
    let mut due_count = 0;
    for (index, after) in (0..most).zip(arrivals) {
        if limit.duration.is_some_and(|duration| after >= duration) {
            break;
        }
        let due = load.meter.start + after;
        if due > Instant::now() {
            tokio::select! {
                () = alarm.until(due) => {}
                () = load.stop.cancelled() => break,
            }
        }
        due_count += 1;
        // The semaphore is never closed.
        let Ok(permit) = room.clone().acquire_owned().await else { break };
        if load.stop.is_cancelled() {
            break;
        }
        while let Some(ended) = requests.try_join_next() {
            ended?;
        }
        let load = load.clone();
        requests.spawn(async move {
            let _permit = permit;
            load.client.ask(&load.meter, Ask { workload: &load.workload, index, due: Some(due) }).await;
        });
    }
    join(&mut requests).await?;
    Ok(due_count)
}

/// Measures how late timers fire here, until dropped.
pub(crate) async fn watch_timer(meter: &Meter) -> ! {
    loop {
        let due = Instant::now() + LAG_PERIOD;
        tokio::time::sleep_until(due.into()).await;
        let lag = due.elapsed().as_micros() as u64;
        meter.with(|counts| counts.timer_lag.saturating_record(lag));
    }
}

async fn join(tasks: &mut JoinSet<()>) -> Result<(), BenchError> {
    while let Some(ended) = tasks.join_next().await {
        ended?;
    }
    Ok(())
}
