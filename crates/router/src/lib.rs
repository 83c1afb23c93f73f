//! The router as a service: processes that route, or say where prefixes lie, for others.
//!
//! - [`indexer`]: an HTTP service that listens to engines' KV events and answers which of them holds how much of a prompt.
//! - [`endpoint`]: the router of one endpoint, for those who do not want it in their own process.
//! - [`global`]: the router over pools, each with a router of its own.
//!
//! What a frontend does within itself is in `dynamo-llm`; nothing here renders templates or tokenizes.

pub mod endpoint;
pub mod global;
pub mod indexer;

mod own_hints;
mod relay;
