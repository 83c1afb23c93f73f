use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::time::{Instant, sleep, timeout};

use super::{Participant, Phase, PhaseFuture, ShutdownLimits, ShutdownReason};
use crate::runtime::Runtime;

const LIMITS: ShutdownLimits = ShutdownLimits {
    grace: Duration::from_secs(1),
    drain: Duration::from_secs(10),
    cancel: Duration::from_secs(2),
    close: Duration::from_secs(3),
};

fn runtime() -> Runtime {
    Runtime::with_limits(Handle::current(), LIMITS)
}

/// Writes down what it is told, and when, in milliseconds since the start.
struct Recorder {
    start: Instant,
    calls: Mutex<Vec<(&'static str, u128)>>,
    open: AtomicUsize,
}

impl Recorder {
    fn new(open: usize) -> Arc<Self> {
        Arc::new(Self { start: Instant::now(), calls: Mutex::default(), open: AtomicUsize::new(open) })
    }

    fn join(self: &Arc<Self>, runtime: &Runtime) -> Arc<dyn Participant> {
        let participant: Arc<dyn Participant> = self.clone();
        runtime.on_shutdown(&participant);
        participant
    }

    fn note(&self, call: &'static str) {
        self.calls.lock().push((call, self.start.elapsed().as_millis()));
    }
}

impl Participant for Recorder {
    fn leave(&self) -> PhaseFuture<'_> {
        Box::pin(async {
            self.note("leave");
            sleep(Duration::from_millis(100)).await;
        })
    }

    fn stop_admitting(&self) {
        self.note("stop admitting");
    }

    fn open_work(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    fn close(&self) -> PhaseFuture<'_> {
        Box::pin(async { self.note("close") })
    }
}

#[tokio::test(start_paused = true)]
async fn phases_come_in_order_and_wait_for_work() {
    let runtime = runtime();
    let recorder = Recorder::new(1);
    let _held = recorder.join(&runtime);
    let guard = runtime.work();
    let started = Instant::now();
    runtime.shutdown(ShutdownReason::Requested);
    assert!(runtime.is_shutting_down());
    sleep(Duration::from_millis(3500)).await;
    assert_eq!(*runtime.phase().borrow(), Phase::Draining);
    drop(guard);
    sleep(Duration::from_millis(500)).await;
    assert_eq!(*runtime.phase().borrow(), Phase::Draining, "a stream is still open");
    recorder.open.store(0, Ordering::Relaxed);
    runtime.closed().await;
    let took = started.elapsed();
    assert!(took >= Duration::from_secs(4) && took < Duration::from_millis(4100), "{took:?}");
    let calls = recorder.calls.lock().clone();
    assert_eq!(calls.iter().map(|(call, _)| *call).collect::<Vec<_>>(), ["leave", "stop admitting", "close"]);
    assert_eq!((calls[0].1, calls[1].1), (0, 1000), "stragglers are admitted for the grace");
}

#[tokio::test(start_paused = true)]
async fn idle_runtimes_close_after_the_grace() {
    let runtime = runtime();
    let started = Instant::now();
    runtime.shutdown(ShutdownReason::Signal("SIGTERM"));
    runtime.closed().await;
    assert!(started.elapsed() < Duration::from_millis(1100), "{:?}", started.elapsed());
}

#[tokio::test(start_paused = true)]
async fn work_that_does_not_drain_is_cancelled_at_the_deadline() {
    let runtime = runtime();
    let scope = runtime.scope().clone();
    let guard = runtime.work();
    let ended = runtime.scope().spawn("work", async move {
        scope.cancelled().await;
        drop(guard);
        Instant::now()
    });
    let started = Instant::now();
    runtime.shutdown(ShutdownReason::Requested);
    runtime.closed().await;
    assert_eq!((ended.await.unwrap() - started).as_secs(), 11, "a second of grace and ten to drain");
}

#[tokio::test(start_paused = true)]
async fn work_that_ignores_cancelling_does_not_hold_up_the_end() {
    let runtime = runtime();
    let _guard = runtime.work();
    let started = Instant::now();
    runtime.shutdown(ShutdownReason::Requested);
    runtime.closed().await;
    assert_eq!(started.elapsed().as_secs(), 13, "grace, drain and two seconds of cancelling");
}

#[tokio::test(start_paused = true)]
async fn a_second_shutdown_does_not_wait() {
    let runtime = runtime();
    let recorder = Recorder::new(3);
    let _held = recorder.join(&runtime);
    let scope = runtime.scope().clone();
    let task = runtime.scope().spawn("work", async move { scope.cancelled().await });
    runtime.shutdown(ShutdownReason::Requested);
    sleep(Duration::from_millis(200)).await;
    let second = Instant::now();
    runtime.shutdown(ShutdownReason::Signal("SIGINT"));
    runtime.closed().await;
    task.await.unwrap();
    assert!(second.elapsed() < Duration::from_millis(100), "{:?}", second.elapsed());
    let calls: Vec<_> = recorder.calls.lock().iter().map(|(call, _)| *call).collect();
    assert_eq!(calls, ["leave", "stop admitting", "close"], "every phase is still told");
}

#[tokio::test(start_paused = true)]
async fn planes_outlive_work() {
    let runtime = runtime();
    let (work, planes) = (runtime.scope().clone(), runtime.planes_scope().clone());
    let order = Arc::new(Mutex::new(Vec::new()));
    for (name, scope, pause) in [("work", work, 1500), ("planes", planes, 0)] {
        let order = order.clone();
        scope.clone().spawn(name, async move {
            scope.cancelled().await;
            sleep(Duration::from_millis(pause)).await;
            order.lock().push(name);
        });
    }
    runtime.shutdown(ShutdownReason::Requested);
    runtime.closed().await;
    assert_eq!(*order.lock(), ["work", "planes"], "planes are cancelled when work has ended");
}

#[tokio::test(start_paused = true)]
async fn dropping_the_last_clone_cancels_its_tasks() {
    let runtime = runtime();
    let scope = runtime.scope().clone();
    let task = runtime.scope().spawn("work", {
        let scope = scope.clone();
        async move { scope.cancelled().await }
    });
    drop(runtime);
    timeout(Duration::from_secs(1), task).await.unwrap().unwrap();
    assert!(scope.is_cancelled());
}
