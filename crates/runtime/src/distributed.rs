//! One identity with everything it needs to serve and to ask: discovery, planes, metrics, health.
//!
//! A process may hold as many as it likes, on one [`Runtime`] or several. Those that are given one request plane
//! reach each other without a socket.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

mod announcement;
mod config;
mod error;
mod served;
#[cfg(test)]
mod tests;

pub use announcement::Announcement;
pub use config::{RequestPlaneSource, RuntimeConfig};
pub use error::{ServeError, StartError};
pub use served::ServedEndpoint;

use announcement::Announced;

use crate::client::{Client, Following};
use crate::discovery::{Discovery, EndpointRecord, Query, Record, RecordState};
use crate::events::{EventMetrics, EventPlane};
use crate::identity::{EndpointId, Incarnation, WorkerId};
use crate::metrics::{BoundHits, IntGauge, Metrics, ProcessSources, register_process_metrics};
use crate::request_plane::{Handler, RequestPlane, RequestPlaneMetrics};
use crate::runtime::Runtime;
use crate::scope::TaskScope;
use crate::shutdown::{Participant, PhaseFuture};
use crate::system::{SystemServer, SystemState};

/// A runtime that others find and that finds others. Clones are the same one; it is closed by the shutdown of the
/// [`Runtime`] below it, or when that is dropped.
#[derive(Clone)]
pub struct DistributedRuntime {
    inner: Arc<Inner>,
}

struct Inner {
    runtime: Runtime,
    incarnation: Incarnation,
    worker_name: String,
    discovery: Discovery,
    request_plane: RequestPlane,
    event_plane: EventPlane,
    metrics: Metrics,
    system: SystemState,
    system_server: Option<SystemServer>,
    in_doubt: IntGauge,
    /// One view for each endpoint that a client is held of.
    following: Mutex<HashMap<EndpointId, Weak<Following>>>,
    /// What leaves discovery first when the runtime shuts down.
    announced: Mutex<Vec<Weak<Announced>>>,
}

impl DistributedRuntime {
    /// Opens discovery, takes an identity in it, and starts the planes and, if it has a port, the system server. Their tasks
    /// belong to `runtime`, which also shuts them down.
    pub async fn new(runtime: Runtime, config: RuntimeConfig) -> Result<Self, StartError> {
        if runtime.is_shutting_down() {
            return Err(StartError::ShuttingDown);
        }
        let planes = runtime.planes_scope();
        let metrics = config.metrics;
        let discovery =
            Discovery::start(config.discovery, planes.child("discovery"), &BoundHits::new(&metrics)?).await?;

        let worker_id = config.worker_id.unwrap_or_else(WorkerId::random);
        let worker_name = config.worker_name.unwrap_or_else(|| format!("worker-{worker_id:x}"));
        let epoch = discovery.next_epoch(worker_id, &worker_name).await?;
        let incarnation = Incarnation { worker_id, epoch };

        let request_plane = match config.request_plane {
            RequestPlaneSource::Start(config) => {
                let plane_metrics = RequestPlaneMetrics::new(&metrics)?;
                RequestPlane::start(planes.child("request plane"), *config, plane_metrics).await?
            }
            RequestPlaneSource::Shared(plane) => plane,
        };
        let event_plane = EventPlane::start(
            &config.event_plane,
            config.event_hub,
            planes.child("event plane"),
            discovery.clone(),
            incarnation,
            EventMetrics::new(&metrics)?,
        );
        let system = SystemState::new(config.system.starting);
        system.follow_phase(runtime.phase());
        register_process_metrics(
            &metrics,
            ProcessSources {
                started: system.started(),
                tasks: Box::new({
                    let tasks = runtime.root_scope().clone();
                    move || tasks.tasks()
                }),
                allocations: config.allocations,
            },
        )?;
        let system_scope = planes.child("system");
        let system_server =
            SystemServer::start(&system_scope, &config.system, system.clone(), metrics.clone()).await?;
        let in_doubt = metrics.gauge(
            "dynamo_discovery_instances_in_doubt",
            "Workers whose record vanished without draining and that are still used as a last resort",
        )?;
        tracing::info!(
            worker = worker_name,
            worker_id = %format_args!("{worker_id:x}"),
            %discovery,
            request_plane = %request_plane.address(),
            event_plane = %event_plane.kind(),
            system_server = ?system_server.as_ref().map(SystemServer::address),
            "distributed runtime started"
        );
        let inner = Arc::new(Inner {
            runtime,
            incarnation,
            worker_name,
            discovery,
            request_plane,
            event_plane,
            metrics,
            system,
            system_server,
            in_doubt,
            following: Mutex::default(),
            announced: Mutex::default(),
        });
        let participant: Arc<dyn Participant> = inner.clone();
        inner.runtime.on_shutdown(&participant);
        Ok(Self { inner })
    }

    /// The runtime whose tasks these are.
    pub fn runtime(&self) -> &Runtime {
        &self.inner.runtime
    }

    /// The scope of the process's work.
    pub fn scope(&self) -> &TaskScope {
        self.inner.runtime.scope()
    }

    /// Who this is.
    pub fn incarnation(&self) -> Incarnation {
        self.inner.incarnation
    }

    /// The name that goes with the id.
    pub fn worker_name(&self) -> &str {
        &self.inner.worker_name
    }

    /// Where records are.
    pub fn discovery(&self) -> &Discovery {
        &self.inner.discovery
    }

    /// Where requests go and come from. Another runtime of this process may be given a clone.
    pub fn request_plane(&self) -> &RequestPlane {
        &self.inner.request_plane
    }

    /// Where events go and come from.
    pub fn event_plane(&self) -> &EventPlane {
        &self.inner.event_plane
    }

    /// The registry of this runtime.
    pub fn metrics(&self) -> &Metrics {
        &self.inner.metrics
    }

    /// Health and engine routes, as the system server tells them.
    pub fn system(&self) -> &SystemState {
        &self.inner.system
    }

    /// Where the system server listens, if it does.
    pub fn system_address(&self) -> Option<SocketAddr> {
        self.inner.system_server.as_ref().map(SystemServer::address)
    }

    /// Publishes a record until the announcement is dropped, or the runtime leaves: then it is withdrawn first of all.
    pub async fn announce(&self, record: Record) -> Result<Announcement, ServeError> {
        if self.inner.runtime.is_shutting_down() {
            return Err(ServeError::ShuttingDown);
        }
        let registration = self.inner.discovery.register(record.clone()).await?;
        let announced = Arc::new(Announced::new(self.inner.discovery.clone(), record, registration));
        {
            let mut all = self.inner.announced.lock();
            all.retain(|known| known.strong_count() > 0);
            all.push(Arc::downgrade(&announced));
        }
        if self.inner.runtime.is_shutting_down() {
            // It began in between, and may have missed this one.
            announced.leave().await?;
            return Err(ServeError::ShuttingDown);
        }
        Ok(Announcement::new(announced, self.clone()))
    }

    /// Serves an endpoint: mounts `handler` at the request plane, then registers it.
    pub async fn serve_endpoint(
        &self,
        id: EndpointId,
        handler: Arc<dyn Handler>,
    ) -> Result<ServedEndpoint, ServeError> {
        // The worker's id makes the path its own where several share one plane.
        let path = format!("{:x}/{id}", self.inner.incarnation.worker_id);
        let mount = self.inner.request_plane.serve(&path, handler);
        let record = EndpointRecord {
            endpoint: id.clone(),
            incarnation: self.inner.incarnation,
            worker_name: self.inner.worker_name.clone(),
            address: format!("{}/{path}", self.inner.request_plane.address()),
            state: RecordState::Ready,
        };
        let announcement = self.announce(Record::Endpoint(record)).await?;
        Ok(ServedEndpoint::new(id, mount, announcement, self.inner.system.clone()))
    }

    /// A client of an endpoint. Clients of one endpoint share one watch.
    pub fn client(&self, id: EndpointId) -> Client {
        let inner = &self.inner;
        let mut following = inner.following.lock();
        following.retain(|_, following| following.strong_count() > 0);
        if let Some(known) = following.get(&id).and_then(Weak::upgrade) {
            return Client::new(known, self.clone());
        }
        let watch = inner.discovery.watch(Query::Endpoint(id.clone()));
        let plane = inner.request_plane.clone();
        let scope = inner.runtime.scope();
        let started = Following::start(id.clone(), plane, watch, scope, inner.in_doubt.clone());
        following.insert(id, Arc::downgrade(&started));
        Client::new(started, self.clone())
    }
}

impl Participant for Inner {
    fn leave(&self) -> PhaseFuture<'_> {
        Box::pin(async {
            self.request_plane.go_away();
            let announced: Vec<Arc<Announced>> =
                self.announced.lock().iter().filter_map(Weak::upgrade).collect();
            for announced in announced {
                if let Err(error) = announced.leave().await {
                    tracing::warn!(%error, "a record could not be withdrawn");
                }
            }
        })
    }

    fn stop_admitting(&self) {
        self.request_plane.stop_admitting();
    }

    fn open_work(&self) -> usize {
        self.request_plane.streams()
    }

    fn close(&self) -> PhaseFuture<'_> {
        Box::pin(self.discovery.close())
    }
}

impl std::fmt::Debug for DistributedRuntime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DistributedRuntime")
            .field("incarnation", &self.inner.incarnation)
            .field("worker_name", &self.inner.worker_name)
            .finish_non_exhaustive()
    }
}
