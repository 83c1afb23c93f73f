//! A worker process: engines, their endpoints, KV publishers and engine routes.
//!
//! [`Workers`] starts one or more simulated workers in this process. Each has an identity of its own in discovery and serves
//! three endpoints on the request plane: `generate` (or whatever the endpoint is called), `kv_query` for routers that
//! missed KV events, and `model_files` for frontends that do not have the model's folder.

mod adapters;
mod engine_listener;
mod engine_source;
mod engine_wire;
mod handler;
mod kv_bytes;
mod kv_publisher;
mod load;
mod metrics;
mod model_check;
mod model_files;
#[cfg(test)]
mod test_member;
mod vocabulary;
mod workers;

pub use adapters::{AdapterError, LoadedAdapters, MAX_ADAPTERS, WorkerAdapters};
pub use engine_listener::{
    EngineBatches, EngineEndpoint, EngineIntakeMetrics, EngineListener, ListenerError, SourceMetrics,
};
pub use engine_source::EngineEventSource;
pub use engine_wire::{EngineWire, EngineWireError, WirePorts};
pub use handler::{GenerateHandler, INTERNAL, INVALID_REQUEST};
pub use kv_publisher::{KvPublisher, KvQueryHandler};
pub use load::{LoadGauges, RankGauges};
pub use metrics::{ComponentMetrics, EndpointMetrics};
pub use model_check::ModelCheckError;
pub use model_files::ModelFileHandler;
pub use workers::{WorkerConfig, WorkerError, Workers};
