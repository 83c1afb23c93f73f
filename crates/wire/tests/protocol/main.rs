//! Two ends of a connection, back to back, without sockets.
#![allow(clippy::unwrap_used, reason = "tests may unwrap, their helpers too")]

mod behaviours;
mod garbage;
mod properties;
mod world;
