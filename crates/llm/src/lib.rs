//! Model cards and the routed pipeline of a request.
//!
//! A frontend sees models through [`ModelCatalog`] and [`ChatModel`]; behind them are discovery, templates, tokenizers,
//! the KV router and the request plane. A worker describes its model with a [`ModelCard`].

mod adapter_models;
mod adapters;
mod api;
mod card;
mod catalog;
mod catalog_metrics;
mod dispatch;
mod endpoint_router;
mod files;
mod generation;
mod index_servers;
mod keeper;
mod kv_events;
mod kv_orders;
mod lost_ranks;
mod model;
mod model_fetch;
mod prefill_pool;
mod preprocess;
mod retry;
mod routed_endpoint;
mod router;
mod served_model;
mod warmup;
mod worker_count;
mod worker_sync;

pub use api::{
    AdviceFuture, ChatModel, ChatRequest, Delta, GenerateError, Generation, GenerationFuture, InstanceInfo,
    ModelCatalog, ModelInfo, Progress, RequestContext, RoutingAdvice, RoutingWishes,
};
pub use card::{
    AdapterNameError, CardError, CardOptions, LoraCard, MAX_ADAPTER_NAME, ModelCard, RuntimeConfigCard,
};
pub use catalog::{Catalog, CatalogConfig};
pub use dynamo_kv_router::{BusyThresholds, ConfigError as RouterConfigError, MAX_SESSION_ID};
pub use endpoint_router::{EndpointRouter, EndpointRouterConfig, EndpointStatus, HeldBooking, RoutedStream};
pub use files::{FileCache, FileError, MAX_FILE_BYTES, ModelFile, ModelFileKind};
pub use prefill_pool::DisaggConfig;
pub use preprocess::LoadError;
pub use retry::UNKNOWN_ADAPTER;
pub use router::{IndexPlace, IndexPlaceError, RouterConfig, RouterMode, Session};

/// The topic of KV events on the event plane; the payload is a MessagePack list of `RouterEvent`s.
pub const KV_EVENTS_TOPIC: &str = "kv-events";
/// The endpoint beside a worker's generate endpoint that answers routers which missed KV events.
pub const KV_QUERY_ENDPOINT: &str = "kv_query";
/// The endpoint beside the workers' generate endpoint at which a router answers others with its index: see
/// [`IndexPlace`] and [`dynamo_kv_router::IndexQuery`].
pub const KV_INDEX_ENDPOINT: &str = "kv_index";
/// The endpoint beside a worker's generate endpoint that gives the files its card names.
pub const MODEL_FILES_ENDPOINT: &str = "model_files";
