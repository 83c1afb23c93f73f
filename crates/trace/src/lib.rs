//! Trace tools and the load generator.
