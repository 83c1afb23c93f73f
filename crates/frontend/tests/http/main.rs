//! The service over real sockets, with scripted models behind it.

#![allow(clippy::unwrap_used, reason = "a failed unwrap here is a failed test")]

mod chat;
mod client;
mod errors;
mod lifecycle;
mod load;
mod routing;
mod server;
mod system;
