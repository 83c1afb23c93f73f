//! Public wire types: OpenAI requests, responses, stream chunks and errors.
//!
//! Bytes in, typed and validated values out, and back. Nothing here knows sockets, models or clocks.

mod message;

pub use message::{ChatMessage, ContentPart, FunctionCall, MediaUrl, MessageContent, ToolCall};
