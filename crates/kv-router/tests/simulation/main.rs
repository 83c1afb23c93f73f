//! Routers over simulated workers, in simulated time: the same for a seed.

#![allow(clippy::unwrap_used, reason = "a test fails where it unwraps in vain")]

mod balance;
mod replicas;
mod stack;
