//! A router over pools: `dynamo global-router`.
//!
//! A pool is a namespace with workers of one model and a router of its own (`dynamo router`). A request is placed in a grid
//! by its length and the latency that its client hopes for; the cell names the pool. The global router registers as one
//! worker of the model, so that a frontend needs to know nothing of pools; a frontend that serves it looks at its
//! namespace alone, or it would see the pools' workers as well.
//!
//! - [`GlobalConfig`]: the file with pools and grids.
//! - [`Grid`]: from values to pools, best first.
//! - [`GlobalRouter`]: the process.

mod config;
mod grid;
mod handler;
mod metrics;
mod pool;
mod service;

pub use config::{GlobalConfig, GlobalConfigError, PoolGrid, Pools};
pub use grid::{Axis, Grid};
pub use service::{GlobalRouter, GlobalRouterConfig, GlobalRouterError, ServedGlobalRouter};
