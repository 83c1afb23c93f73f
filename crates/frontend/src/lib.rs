//! The OpenAI-compatible HTTP service.
//!
//! [`HttpService`] serves a [`dynamo_llm::ModelCatalog`] over HTTP/1.1. A streamed answer's body polls its
//! [`dynamo_llm::Generation`] directly and splices each delta into a prepared event; once warm, nothing is allocated,
//! locked or formatted per token. Dropping a body or a handler drops the generation, which cancels the request.
//!
//! What it is not: it knows no template, tokenizer, router or worker, and it installs no signal handler or logger.

mod advice;
mod answer;
mod api_error;
mod app;
mod busy_threshold;
mod byte_budget;
mod chat;
mod chat_request;
mod config;
#[cfg(any(test, feature = "test-util"))]
pub mod fake;
mod health;
mod json_text;
mod listen;
mod metrics;
mod models;
mod request_body;
mod request_id;
mod routes;
mod service;
mod sse_body;
mod sse_frame;
mod stall;
mod unary;
mod usage;

pub use config::{ConfigError, HttpConfig, HttpPaths};
pub use listen::{BindError, bind};
pub use metrics::{BucketSpec, MetricsConfig};
pub use service::{HttpService, ServiceError};
