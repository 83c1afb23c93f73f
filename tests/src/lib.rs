//! A stack of real processes for cross-process tests, and a blocking HTTP client that sees every event.
//!
//! The binaries are those of the same build (`cargo build --workspace --bins` comes first). Every stack has its own
//! discovery folder and free ports, so tests do not see each other.

mod http;
mod metrics;
mod plane_client;
mod process;
mod stack;

pub use http::{Answer, ChatStream, Event, delete, get, post, stream_chat};
pub use metrics::Metrics;
pub use plane_client::{HeldBlock, PlaneClient, held_blocks};
pub use process::Process;
pub use stack::{Frontend, Indexer, RouterProcess, Stack, Worker, WorkerOptions, eventually};
