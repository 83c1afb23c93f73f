//! The families under `dynamo_frontend_`, their buckets, and the tracker that fills them for one request.

mod buckets;
mod cards;
mod families;
mod tracker;

pub use buckets::{BucketSpec, MetricsConfig};
pub(crate) use families::FrontendMetrics;
pub(crate) use tracker::{Outcome, RequestKind, RequestTracker};
