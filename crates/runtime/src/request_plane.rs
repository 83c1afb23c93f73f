//! Requests and their streams of answers, between processes over TCP and within one directly.
//!
//! A [`RequestPlane`] listens, serves handlers by path, and opens streams to others. Between two processes there is one
//! connection for each direction of asking, opened on demand, that carries all streams; its protocol is
//! `dynamo-wire`'s, specified in `docs/request-plane.md`. A target at our own address is served in the process, under
//! the same states, credits and deadlines.
//!
//! - An answer is pushed by a [`Responder`], which never blocks, and read from a [`ResponseStream`]. Dropping the one
//!   ends the stream as incomplete, dropping the other cancels it: nothing is leaked, whoever lets go.
//! - What was pushed leaves at [`Responder::flush`]: one write per connection, however many streams advanced.
//! - A reader that does not read holds up its own stream alone, and is cancelled past the stall limit.

mod cancel;
mod config;
mod driver;
mod error;
mod handler;
mod inbox;
mod inlet;
mod link;
mod local;
mod local_stream;
mod metrics;
mod paths;
mod peers;
mod plane;
mod responder;
mod response;

pub use config::RequestPlaneConfig;
pub use dynamo_wire::{CancelKind, CancelReason};
pub use error::{OpenError, PlaneError, StreamError};
pub use handler::{Handler, IncomingRequest, OutgoingRequest, Target};
pub use metrics::RequestPlaneMetrics;
pub use paths::ServeGuard;
pub use plane::RequestPlane;
pub use responder::{Closed, PushState, Responder};
pub use response::{ResponseStream, StreamProgress};
