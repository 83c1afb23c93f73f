//! Continuous batching as a state machine: queues, chunked prefill, preemption, block tables.
//!
//! A [`Scheduler`] decides what an executor computes next. [`Scheduler::plan`] gives a [`Step`], the executor runs it,
//! [`Scheduler::commit`] takes what came out. One further step may be planned while one is being computed. There is no
//! difference in kind between prefill and decode: a request has tokens, some of them computed, and a step computes
//! some more; when it computes the last one, the executor may add any number of new tokens, also none.
//!
//! The scheduler owns requests and block *tables*. Blocks belong to a [`BlockPool`].
//!
//! What holds at any time:
//! * requests are admitted first come, first served; one that was preempted goes before all that came after it;
//! * a request is admitted only when blocks for all its tokens are there, so a prefill never starves half-way;
//! * at least the last token of a prompt is computed, however much of it is cached;
//! * a block that a step in flight, a load or a named reader may still touch goes back to the pool only after that.
//!
//! No I/O, no clock: the time is passed in as a [`Duration`](std::time::Duration) since an origin of the caller's choice.

mod admit;
mod commit;
mod config;
mod held;
mod load;
mod plan;
mod pool;
mod request;
mod scheduler;
mod step;
mod submit;
mod table;
#[cfg(test)]
mod tests;

pub use commit::{CommitError, Progress, Verdict};
pub use config::{ConfigError, PreemptionMode, SchedulerConfig};
pub use held::HoldId;
pub use pool::{
    BlockChange, BlockId, BlockPool, FullBlock, LoadState, LoadTicket, PendingLoad, PrefixMatch, PrefixQuery,
};
pub use request::{End, Ended, NewRequest, RequestId, Usage};
pub use scheduler::{Scheduler, SchedulerStats};
pub use step::{Step, StepResults, Work};
pub use submit::SubmitError;
pub use table::BlockTable;
