//! Streams that are held open while the load runs.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use serde::Serialize;
use tokio::{sync::Notify, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    client::Client,
    connection::Connection,
    error::BenchError,
    failure::Failure,
    meter::{Meter, Served},
    report::FailureCount,
    workload::Workload,
};

/// The streams. Dropping it closes them.
pub(crate) struct Population {
    tasks: JoinSet<()>,
    state: Arc<State>,
    asked: u32,
}

struct State {
    opened: AtomicU64,
    settled: AtomicU64,
    /// Opened ones that are over.
    ended: AtomicU64,
    changed: Notify,
    meter: Meter,
}

/// What became of the streams held open.
#[derive(Clone, Debug, Serialize)]
pub struct OpenStreams {
    /// How many were asked for.
    pub asked: u32,
    /// How many were answered.
    pub opened: u64,
    /// How many were still open when the load ended.
    pub open_at_end: u64,
    /// How many came to their end before the load did.
    pub ended_early: u64,
    /// Their events.
    pub events: u64,
    /// How many failed, at the start or later, and how.
    pub failed: Vec<FailureCount>,
}

impl Population {
    /// Opens the streams at a rate, and waits until each was answered or failed, at most for `patience` after the last.
    pub(crate) async fn open(
        client: &Arc<Client>,
        workload: Workload,
        asked: u32,
        rate: f64,
        patience: Duration,
        stop: &CancellationToken,
    ) -> Result<Self, BenchError> {
        let start = Instant::now();
        let state = Arc::new(State {
            opened: AtomicU64::new(0),
            settled: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            changed: Notify::new(),
            meter: Meter::new(start, None),
        });
        let workload = Arc::new(workload);
        let mut population = Self { tasks: JoinSet::new(), state, asked };
        for index in 0..u64::from(asked) {
            let due = start + Duration::from_secs_f64(index as f64 / rate);
            tokio::select! {
                () = tokio::time::sleep_until(due.into()) => {}
                () = stop.cancelled() => return Ok(population),
            }
            let (client, workload, state) = (client.clone(), workload.clone(), population.state.clone());
            population.tasks.spawn(async move { hold(&client, &workload, index, &state).await });
        }
        let deadline = Instant::now() + patience;
        while population.state.settled.load(Ordering::Relaxed) < u64::from(asked) {
            tokio::select! {
                () = population.state.changed.notified() => {}
                () = tokio::time::sleep_until(deadline.into()) => break,
                () = stop.cancelled() => break,
            }
        }
        if population.state.opened.load(Ordering::Relaxed) == 0 && !stop.is_cancelled() {
            let failures = FailureCount::list(&population.state.meter);
            let why = failures.first().map_or_else(
                || format!("no answer within {patience:?}"),
                |first| format!("{}: {}", first.kind, first.examples.join("; ")),
            );
            return Err(BenchError::NoOpenStream { asked, why });
        }
        Ok(population)
    }

    /// What became of them so far.
    pub(crate) fn look(&self) -> OpenStreams {
        let opened = self.state.opened.load(Ordering::Relaxed);
        let failed = FailureCount::list(&self.state.meter);
        let open_at_end = opened - self.state.ended.load(Ordering::Relaxed);
        let (ended_early, events) = self.state.meter.with(|counts| (counts.ok, counts.events));
        OpenStreams { asked: self.asked, opened, open_at_end, ended_early, events, failed }
    }

    /// Closes them all.
    pub(crate) async fn close(mut self) {
        self.tasks.shutdown().await;
    }
}

async fn hold(client: &Client, workload: &Workload, index: u64, state: &State) {
    let mut opened = false;
    let settle = || {
        state.settled.fetch_add(1, Ordering::Relaxed);
        state.changed.notify_one();
    };
    let ended: Result<Served, Failure> = async {
        let mut connection = Connection::open(client.address, false).await?;
        let tokens = workload.output_tokens(index);
        let Connection { body, out, .. } = &mut connection;
        client.template.write(workload, index, tokens, body, out);
        let origin = Instant::now();
        let answer = connection.exchange(&state.meter, origin, || {
            opened = true;
            state.opened.fetch_add(1, Ordering::Relaxed);
            settle();
        });
        answer.await
    }
    .await;
    if opened {
        state.ended.fetch_add(1, Ordering::Relaxed);
    } else {
        settle();
    }
    match ended {
        Ok(served) => state.meter.served(state.meter.start, &served),
        Err(failure) => state.meter.failed(failure),
    }
}
