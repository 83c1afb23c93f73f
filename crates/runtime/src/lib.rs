//! The distributed runtime: task scopes, discovery, request and event planes, health, metrics, logging.
