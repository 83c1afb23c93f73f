//! Model cards and the routed pipeline of a request.
//!
//! A frontend sees models through [`ModelCatalog`] and [`ChatModel`]; behind them are discovery, templates, tokenizers,
//! the KV router and the request plane.

mod api;

pub use api::{
    ChatModel, ChatRequest, Delta, GenerateError, Generation, GenerationFuture, InstanceInfo, ModelCatalog,
    ModelInfo, Progress, RequestContext,
};
