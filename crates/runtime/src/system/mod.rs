//! The system server: health, metrics and administration of a process, on a port of its own.
//!
//! `/live` answers while the event loop turns, whatever else is wrong: it is for restarting a process that hangs. `/ready` and
//! `/health` say whether it can serve: they are for sending it traffic. `/metrics` and `/metadata` are for all;
//! `/engine/<route>` calls what the engine has registered, and answers peers on this host only unless configured otherwise; so
//! does `/v1/loras`, where it is enabled.

mod access;
mod config;
mod engine_routes;
mod loras;
mod respond;
mod server;
mod state;

pub use access::{AdminAccess, Refusal};
pub use config::{SystemConfig, SystemFlags};
pub use engine_routes::{EngineRouteFuture, EngineRoutes};
pub use server::{SystemError, SystemServer};
pub use state::{HealthStatus, SystemState};

#[cfg(test)]
mod tests;
