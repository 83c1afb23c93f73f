//! The `dynamo` and `dynamo-frontend` commands: flags, what only a process may install, and composition.
//!
//! Libraries are guests in somebody's process; this crate is the host. Nothing here knows how a request is served.

#[allow(unsafe_code, reason = "GlobalAlloc is an unsafe trait; this is the one module that implements it")]
mod allocator;
mod bench;
mod common;
mod descriptors;
mod disagg_args;
mod engine_args;
mod frontend;
mod global_router;
mod indexer;
mod process;
mod router;
mod router_args;
mod serve;
mod simulate;
mod start_block;
mod trace;
mod worker;

pub use allocator::{CountingAllocator, allocations};
pub use bench::run as run_bench;
pub use frontend::{FrontendArgs, run as run_frontend};
pub use global_router::{GlobalRouterArgs, run as run_global_router};
pub use indexer::{IndexerArgs, run as run_indexer};
pub use router::{RouterCommandArgs, run as run_router};
pub use serve::{ServeArgs, run as run_serve};
pub use simulate::run as run_simulate;
pub use trace::run as run_trace;
pub use worker::{WorkerArgs, run as run_worker};
