//! A simulated engine: the scheduler with a clock for an executor.
