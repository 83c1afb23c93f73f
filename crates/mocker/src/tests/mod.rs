//! The simulator's parts, and the engine as a whole.

mod ending;
mod engine;
mod harness;
mod parts;
mod pool;
mod sameness;
