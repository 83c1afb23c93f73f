//! The standalone indexer: engines' KV events in, "who holds how much of this prompt" out, over HTTP.
//!
//! Engines are registered with the address at which they publish their events. Each (model, routing group) has an index of
//! its own, which threads of its own write, so that queries and events do not wait for each other. Blocks on lower tiers
//! count too. A second indexer that names this one as its peer takes over what it has when it starts, so that a restart
//! loses nothing; until then it says that it is not ready.
//!
//! - [`Registry`]: which engines there are, of which model; it starts and stops their listeners.
//! - [`EventSource`]: the contract of a listener.
//! - [`IndexerService`]: the HTTP service over a registry.

mod access_log;
mod api;
mod config;
mod dump;
mod dump_reader;
#[cfg(test)]
mod fake_source;
mod index_choice;
mod json_body;
mod lanes;
mod metrics;
mod peer_client;
mod peers;
mod progress;
mod query;
mod recovery;
mod refill;
mod registry;
mod routes;
mod server;
mod shared_index;
mod source;
#[cfg(test)]
mod tests;
mod worker_list;
mod zmq_source;

pub use access_log::AccessLogError;
pub use config::{IndexerConfig, RecoveryLimits};
pub use index_choice::{IndexChoice, IndexChoiceError};
pub use registry::{ModelKey, RegisterError, Registration, Registry, UnregisterError};
pub use server::{IndexerError, IndexerService};
pub use shared_index::{Brought, HeldBlocks, SharedKvIndex, TierEvent};
pub use source::{
    Deliveries, Delivery, EndpointError, EventSource, ListenTo, ListenerStatus, StatusCell, Unregistered,
    check_endpoint,
};
pub use worker_list::{WorkerListError, WorkerSpec, parse_workers};
pub use zmq_source::ZmqSource;
