//! A worker process: engine, endpoints, KV publishers and engine routes.
