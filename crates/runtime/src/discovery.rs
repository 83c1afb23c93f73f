//! Discovery: which endpoints, models and event channels exist, and where.
//!
//! Records are registered under a key and hold while their registration is held. A watch is level-triggered: first a
//! snapshot, then changes, and a fresh snapshot after any doubt.

mod record;

pub use record::{
    Change, EndpointRecord, EventChannelRecord, EventScope, ModelRecord, Query, Record, RecordKey,
    RecordState,
};
