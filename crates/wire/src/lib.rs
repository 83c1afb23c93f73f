//! The protocol of the request plane: frames, streams, credits, timers.
