//! Router simulation: a trace, workers and a router in virtual time.
//!
//! The router's parts are the real ones ([`KvIndex`](dynamo_kv_router::KvIndex) and
//! [`KvScheduler`](dynamo_kv_router::KvScheduler)), and so are the workers' (the simulated engine's scheduler, pool and
//! timing model); only the clock is replaced by a queue of events. So a run takes seconds where the trace takes hours, and
//! gives the same for a seed, on any machine.
//!
//! It is not a model of what lies between: requests reach workers at once, and the workers' KV events reach the router
//! after a delay that is a setting.

mod args;
mod error;
mod outcome;
mod page;
mod prompts;
mod recorder;
mod router;
mod run;
mod setting;
mod simulation;
mod table;
mod worker;

pub use args::SimulateArgs;
pub use error::SimulateError;
pub use outcome::{Balance, ClassOutcome, Outcome, Queue, Report, Sample};
pub use run::{run, simulate_all};
pub use setting::{Mode, Setting};
pub use simulation::simulate;

#[cfg(test)]
mod tests;
