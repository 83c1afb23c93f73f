//! The router of one endpoint as a process of its own: `dynamo router`.
//!
//! It follows the workers of an endpoint as a frontend does, and serves in their namespace, under the component `router`:
//!
//! | endpoint | takes | gives |
//! |---|---|---|
//! | `generate` | a preprocessed request | the worker's items, as they are |
//! | `best_worker_id` | a preprocessed request, or a map with its `token_ids` | whom it would go to |
//! | `best_worker` | `new`, `potential_loads`, `mark_prefill`, `mark_free` | see [`RouterRequest`] |
//!
//! It registers when it knows what the workers hold, or has waited long enough; until then it says that it is not ready.

mod advice;
mod bookings;
mod generate;
mod metrics;
mod protocol;
mod service;

pub use protocol::{LoadEntry, NewRequest, RouterAnswer, RouterRequest};
pub use service::{ROUTER_COMPONENT, RouterService, RouterServiceConfig, RouterServiceError};
