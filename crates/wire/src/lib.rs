//! The protocol of the request plane: one full-duplex, multiplexed connection as a state machine.
//!
//! A [`Connection`] knows no sockets and no clock. Bytes from the peer go into [`Connection::handle_input`], which
//! calls an [`Events`] sink; bytes for the peer come out of [`Connection::take_output`]; instants are passed in. The
//! frames are specified byte by byte in `docs/request-plane.md`.
//!
//! Invariants:
//! - What one reader holds up is bounded: by its stream's credit, the connection's credit and the reassembly budget.
//!   A stream without credit keeps its items in its own buffer, and is ended as a slow reader past a limit.
//! - Items of a stream arrive in order, whole, once. Streams take turns; control frames go first.
//! - Once warm, neither pushing nor receiving a small item allocates.
//! - Any input ends in events or in a [`ConnectionError`], never in a panic.

mod config;
mod connection;
mod failure;
mod frame;
mod hello;
mod item_queue;
mod request;
mod stream;
mod timers;

pub use config::{Config, Role};
pub use connection::{Connection, Events, OpenRefused, Pushed};
pub use failure::{CancelKind, CancelReason, ConnectionError, Failure, FailureCode};
pub use frame::{HEADER_LEN, MAX_FRAME_PAYLOAD};
pub use item_queue::{ITEM_OVERHEAD, Item, ItemQueue, Message};
pub use request::{MAX_HEAD, Request};
pub use stream::StreamId;
