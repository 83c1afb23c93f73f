//! Gauges of a simulated engine.

/// How much there is of what; all but the totals and the cache return to zero when nothing is asked of the engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MockStats {
    /// Requests taken and not ended, wherever they are.
    pub live: u64,
    /// Requests that are being computed.
    pub running: u64,
    /// Requests that wait to be admitted.
    pub waiting: u64,
    /// Blocks that requests use, held ones included.
    pub used_blocks: u64,
    /// Blocks whose request ended or was preempted, and that a step in flight still touches.
    pub held_blocks: u64,
    /// Blocks that can be found by their contents, in use or not.
    pub cached_blocks: u64,
    /// Blocks there are.
    pub total_blocks: u64,
    /// Times that a request was preempted, since the start.
    pub preemptions: u64,
    /// Steps computed, since the start.
    pub steps: u64,
    /// Tokens generated, since the start.
    pub generated_tokens: u64,
}

impl std::ops::AddAssign for MockStats {
    fn add_assign(&mut self, other: Self) {
        self.live += other.live;
        self.running += other.running;
        self.waiting += other.waiting;
        self.used_blocks += other.used_blocks;
        self.held_blocks += other.held_blocks;
        self.cached_blocks += other.cached_blocks;
        self.total_blocks += other.total_blocks;
        self.preemptions += other.preemptions;
        self.steps += other.steps;
        self.generated_tokens += other.generated_tokens;
    }
}
