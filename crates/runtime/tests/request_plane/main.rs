//! The request plane's behaviours, over TCP and within the process, and those that only a network has.
#![allow(clippy::unwrap_used, reason = "tests may unwrap, their helpers too")]

mod bounds;
mod endings;
mod network;
mod stage;
mod streams;
