//! Public wire types: OpenAI requests, responses, stream chunks and errors.
//!
//! Bytes in, typed and validated values out, and back. Nothing here knows sockets, models or clocks.

mod chat_request;
mod chat_response;
mod error_body;
mod message;
mod models;
mod nvext;
mod parse;
mod request_error;
mod validate;

pub use chat_request::{
    ChatCompletionRequest, FunctionKind, NamedFunction, ResponseFormat, Stop, StreamOptions, ToolChoice,
    ToolChoiceMode,
};
pub use chat_response::{
    AnswerMessage, ChatChoice, ChatCompletion, ChatCompletionChunk, ChunkChoice, ChunkDelta, Usage,
    UsageDetails,
};
pub use error_body::{ErrorBody, NestedError, StreamError, StreamErrorEvent};
pub use message::{ChatMessage, ContentPart, FunctionCall, MediaUrl, MessageContent, ToolCall};
pub use models::{ModelList, ModelObject};
pub use nvext::{AgentHints, NVEXT_KEYS, NvExt, NvExtAnswer, RoutingConstraints, Timing, WorkerIds};
pub use parse::{UnknownFields, parse_chat_request};
pub use request_error::RequestError;
