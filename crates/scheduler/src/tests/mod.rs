//! The scheduler over a pool that delays, loses and fails, and an executor with a memory.

mod executor;
mod fake_pool;
mod properties;
mod scenarios;
