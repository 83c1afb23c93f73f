//! Continuous batching as a state machine: queues, chunked prefill, preemption, block tables.
