//! The simulator's parts, and the engine as a whole.

mod ending;
mod engine;
mod hand_over;
mod harness;
mod loads;
mod parts;
mod pool;
mod sameness;
