//! The router as a service: processes that route, or say where prefixes lie, for others.
//!
//! - [`indexer`]: an HTTP service that listens to engines' KV events and answers which of them holds how much of a prompt.
//!
//! What a frontend does within itself is in `dynamo-llm`; nothing here renders templates or tokenizes.

pub mod indexer;
