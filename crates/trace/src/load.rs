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
    turns::TurnTime,
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

/// How many requests may still be sent, over all tasks.
struct Budget(AtomicU64);

impl Budget {
    fn take(&self) -> bool {
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok()
    }
}

/// So many streams; each sends its next request when the last is answered. A stream that began a session asks all its turns.
pub(crate) async fn closed_loop(load: &Load, concurrency: u32, limit: Limit) -> Result<(), BenchError> {
    let next = Arc::new(AtomicU64::new(0));
    let most = limit.requests.unwrap_or(u64::MAX).min(load.workload.len().unwrap_or(u64::MAX));
    let starts = load.workload.starts().unwrap_or(u64::MAX);
    let budget = Arc::new(Budget(AtomicU64::new(most)));
    let end = limit.duration.map(|duration| load.meter.start + duration);
    let mut streams = JoinSet::new();
    for _ in 0..u64::from(concurrency).min(most) {
        let (load, next, budget) = (load.clone(), next.clone(), budget.clone());
        streams.spawn(async move {
            let in_time = || !load.stop.is_cancelled() && end.is_none_or(|end| Instant::now() < end);
            loop {
                let place = next.fetch_add(1, Ordering::Relaxed);
                if place >= starts {
                    break;
                }
                let mut turn = Some((load.workload.start(place), None));
                while let Some((index, time)) = turn {
                    if let Some(time) = time {
                        wait_for_turn(&load, time).await;
                    }
                    if !in_time() || !budget.take() {
                        return;
                    }
                    load.client.ask(&load.meter, Ask { workload: &load.workload, index, due: None }).await;
                    turn = load.workload.next_turn(index).map(|(index, time)| (index, Some(time)));
                }
            }
        });
    }
    join(&mut streams).await
}

/// Sleeps until a later turn is due, and says when that was.
async fn wait_for_turn(load: &Load, time: TurnTime) -> Instant {
    let now = Instant::now();
    let due = match time {
        TurnTime::AfterPrevious(delay) => now + delay,
        TurnTime::FromStart(after) => (load.meter.start + after).max(now),
    };
    tokio::select! {
        () = tokio::time::sleep_until(due.into()) => {}
        () = load.stop.cancelled() => {}
    }
    due
}

/// Sends each request when it is due, whether or not others are answered. With `max_in_flight` of them out, the next waits
/// for one to end: nothing is dropped, and its lateness counts. Later turns of a session are due after the one before.
/// Returns how many were due.
pub(crate) async fn open_loop(
    load: &Load,
    arrivals: Arrivals<'_>,
    max_in_flight: u32,
    limit: Limit,
) -> Result<u64, BenchError> {
    let room = Arc::new(Semaphore::new(max_in_flight as usize));
    let most = limit.requests.unwrap_or(u64::MAX).min(load.workload.len().unwrap_or(u64::MAX));
    let starts = load.workload.starts().unwrap_or(u64::MAX);
    let budget = Arc::new(Budget(AtomicU64::new(most)));
    let end = limit.duration.map(|duration| load.meter.start + duration);
    let (mut requests, alarm) = (JoinSet::new(), Alarm::new());
    for (place, after) in (0..most.min(starts)).zip(arrivals) {
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
        if !budget.take() {
            break;
        }
        // The semaphore is never closed.
        let Ok(permit) = room.clone().acquire_owned().await else { break };
        if load.stop.is_cancelled() {
            break;
        }
        while let Some(ended) = requests.try_join_next() {
            ended?;
        }
        let (load, room, budget) = (load.clone(), room.clone(), budget.clone());
        requests.spawn(async move {
            let mut index = load.workload.start(place);
            load.client.ask(&load.meter, Ask { workload: &load.workload, index, due: Some(due) }).await;
            drop(permit);
            while let Some((next, time)) = load.workload.next_turn(index) {
                let due = wait_for_turn(&load, time).await;
                if load.stop.is_cancelled() || end.is_some_and(|end| due >= end) || !budget.take() {
                    break;
                }
                let Ok(_permit) = room.acquire().await else { break };
                index = next;
                load.client.ask(&load.meter, Ask { workload: &load.workload, index, due: Some(due) }).await;
            }
        });
    }
    join(&mut requests).await?;
    Ok(most - budget.0.load(Ordering::Relaxed))
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
