//! KV-cache-aware routing: events, prefix index, active load, selection.
