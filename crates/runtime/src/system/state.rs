use super::EngineRoutes;
use crate::shutdown::Phase;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Whether something can serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HealthStatus {
    /// It can.
    Ready,
    /// It cannot, or not yet.
    NotReady,
}

impl fmt::Display for HealthStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            HealthStatus::Ready => "ready",
            HealthStatus::NotReady => "notready",
        })
    }
}

impl FromStr for HealthStatus {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.to_ascii_lowercase().as_str() {
            "ready" => Ok(Self::Ready),
            "notready" => Ok(Self::NotReady),
            _ => Err("expected ready or notready"),
        }
    }
}

/// What the system server tells about the process, or about one runtime in it. Clones share it.
///
/// Ready means: the phase, if one is followed, is running; and every endpoint ready; without endpoints, the status set by
/// [`set_status`](SystemState::set_status).
#[derive(Clone)]
pub struct SystemState {
    inner: Arc<Inner>,
}

type Metadata = Box<dyn Fn() -> Value + Send + Sync>;

struct Inner {
    started: Instant,
    phase: Mutex<Option<watch::Receiver<Phase>>>,
    health: Mutex<Health>,
    routes: EngineRoutes,
    metadata: Mutex<Option<Metadata>>,
}

struct Health {
    status: HealthStatus,
    /// By name. Bounded by the endpoints that the process serves.
    endpoints: BTreeMap<String, HealthStatus>,
}

impl SystemState {
    /// A process that starts now, with this status until another is set.
    pub fn new(starting: HealthStatus) -> Self {
        let health = Mutex::new(Health { status: starting, endpoints: BTreeMap::new() });
        Self {
            inner: Arc::new(Inner {
                started: Instant::now(),
                phase: Mutex::new(None),
                health,
                routes: EngineRoutes::default(),
                metadata: Mutex::new(None),
            }),
        }
    }

    /// Sets the status that counts while there are no endpoints.
    pub fn set_status(&self, status: HealthStatus) {
        self.inner.health.lock().status = status;
    }

    /// Adds an endpoint or sets its status.
    pub fn set_endpoint(&self, name: &str, status: HealthStatus) {
        self.inner.health.lock().endpoints.insert(name.to_owned(), status);
    }

    /// Forgets an endpoint that is not served any more.
    pub fn remove_endpoint(&self, name: &str) {
        self.inner.health.lock().endpoints.remove(name);
    }

    /// Ready from now on only while the phase is [`Phase::Running`].
    pub fn follow_phase(&self, phase: watch::Receiver<Phase>) {
        *self.inner.phase.lock() = Some(phase);
    }

    /// Whether it can serve.
    pub fn is_ready(&self) -> bool {
        let leaving = self.inner.phase.lock().as_ref().is_some_and(|phase| *phase.borrow() != Phase::Running);
        !leaving && self.inner.health.lock().is_ready()
    }

    /// Since the start.
    pub fn uptime(&self) -> Duration {
        self.inner.started.elapsed()
    }

    /// When it started.
    pub fn started(&self) -> Instant {
        self.inner.started
    }

    /// What `/engine/<route>` calls.
    pub fn routes(&self) -> &EngineRoutes {
        &self.inner.routes
    }

    /// What `/metadata` answers, made anew for each request. Without one it answers 404.
    pub fn set_metadata(&self, metadata: impl Fn() -> Value + Send + Sync + 'static) {
        *self.inner.metadata.lock() = Some(Box::new(metadata));
    }

    pub(super) fn metadata(&self) -> Option<Value> {
        self.inner.metadata.lock().as_ref().map(|metadata| metadata())
    }

    /// `{"status", "uptime": {"secs", "nanos"}, "endpoints": {name: status}}`.
    pub(super) fn report(&self, status: &str) -> Value {
        let uptime = self.uptime();
        let endpoints: serde_json::Map<String, Value> = self
            .inner
            .health
            .lock()
            .endpoints
            .iter()
            .map(|(name, status)| (name.clone(), status.to_string().into()))
            .collect();
        json!({
            "status": status,
            "uptime": { "secs": uptime.as_secs(), "nanos": uptime.subsec_nanos() },
            "endpoints": endpoints,
        })
    }
}

impl Health {
    fn is_ready(&self) -> bool {
        if self.endpoints.is_empty() {
            self.status == HealthStatus::Ready
        } else {
            self.endpoints.values().all(|status| *status == HealthStatus::Ready)
        }
    }
}
