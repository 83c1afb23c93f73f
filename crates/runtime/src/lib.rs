//! The distributed runtime: task scopes, discovery, request and event planes, health, metrics, logging.
//!
//! A library is a guest: nothing here installs a signal handler, a panic hook, a logger or a tokio runtime, and there are
//! no process-wide statics, so that a process may hold as many runtimes as it likes. No LLM type is known here.

pub mod client;
pub mod config;
pub mod discovery;
pub mod distributed;
pub mod events;
pub mod identity;
pub mod logging;
pub mod metrics;
pub mod request_plane;
pub mod runtime;
pub mod scope;
pub mod shutdown;
pub mod system;

pub use client::{Client, ClientError, Instance, InstanceState, Opened, Pick};
pub use discovery::{
    Change, Discovery, DiscoveryConfig, DiscoveryError, EndpointRecord, EventChannelRecord, EventScope,
    MemStore, ModelRecord, Query, Record, RecordKey, RecordState, Registration, Watch,
};
pub use distributed::{
    Announcement, DistributedRuntime, RequestPlaneSource, RuntimeConfig, ServeError, ServedEndpoint,
    StartError,
};
pub use events::{EventHub, EventItem, EventPlane, EventPublisher, EventSubscriber};
pub use identity::{EndpointId, Epoch, Incarnation, WorkerId};
pub use metrics::Metrics;
pub use request_plane::{
    CancelKind, CancelReason, Handler, IncomingRequest, OpenError, OutgoingRequest, PushState, RequestPlane,
    RequestPlaneConfig, RequestPlaneMetrics, Responder, ResponseStream, ServeGuard, StreamError,
    StreamProgress, Target,
};
pub use runtime::{Runtime, WorkGuard};
pub use scope::TaskScope;
pub use shutdown::{Participant, Phase, PhaseFuture, ShutdownLimits, ShutdownReason};
pub use system::SystemState;
