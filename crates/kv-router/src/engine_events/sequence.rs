//! The numbers of an engine's batches: were some lost, and did a replay bring them back.

/// The number that ends a replay; its payload is empty.
pub const END_OF_REPLAY: u64 = u64::MAX;

/// How a batch follows the ones before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BatchArrival {
    /// It is the next one.
    Next,
    /// Those numbered `from` to the one before it are missing: ask for them, then take it.
    Gap {
        /// The first that is missing.
        from: u64,
    },
    /// A replay has brought it already.
    Duplicate,
    /// The engine counts anew: its cache is empty. Batches from 0 on are missing unless it is the first.
    Restart,
}

/// Follows the batches of one engine, which are numbered from 0. Live batches do not overtake each other; a lower
/// number is one that a replay brought before, or a new life of the engine.
#[derive(Debug, Default)]
pub struct EngineSequence {
    next: u64,
    /// Below this, live batches may come that a replay brought already.
    replayed: u64,
    /// The last live number; live ones ascend within one life.
    live: Option<u64>,
}

impl EngineSequence {
    /// Nothing has come yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The number that is expected next.
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Looks at a live batch; [`Self::took`] takes it. A restart has taken effect already.
    pub fn look(&mut self, sequence: u64) -> BatchArrival {
        let ascends = self.live.replace(sequence).is_none_or(|last| sequence > last);
        if sequence == self.next {
            return BatchArrival::Next;
        }
        if sequence > self.next {
            return BatchArrival::Gap { from: self.next };
        }
        if ascends && sequence < self.replayed {
            return BatchArrival::Duplicate;
        }
        *self = Self { live: self.live, ..Self::default() };
        BatchArrival::Restart
    }

    /// A live batch was taken.
    pub fn took(&mut self, sequence: u64) {
        self.next = sequence.saturating_add(1);
        if sequence >= self.replayed {
            self.replayed = 0;
        }
    }

    /// A batch of a replay came: whether it is to be taken.
    pub fn took_replayed(&mut self, sequence: u64) -> bool {
        let is_new = sequence >= self.next;
        if is_new {
            self.next = sequence.saturating_add(1);
            self.replayed = self.next;
        }
        is_new
    }
}

/// How a replay failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReplayFailure {
    /// Not one batch came.
    #[error("the engine has none of the batches any more")]
    Empty,
    /// The first ones are gone for good.
    #[error("the engine keeps no batches that old: give it a larger replay buffer")]
    StartedAfterRequested,
    /// Numbers are missing in between.
    #[error("the replay has holes")]
    NonContiguous,
    /// The last ones did not come.
    #[error("the replay ended early")]
    EndedBeforeTarget,
    /// No answer, or no further one.
    #[error("the engine did not answer in time")]
    Timeout,
    /// An answer that is none.
    #[error("the answer is malformed")]
    Malformed,
}

impl ReplayFailure {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Empty,
        Self::StartedAfterRequested,
        Self::NonContiguous,
        Self::EndedBeforeTarget,
        Self::Timeout,
        Self::Malformed,
    ];

    /// The label that metrics give it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::StartedAfterRequested => "started_after_requested",
            Self::NonContiguous => "non_contiguous",
            Self::EndedBeforeTarget => "ended_before_target",
            Self::Timeout => "timeout",
            Self::Malformed => "malformed",
        }
    }
}

/// Judges a replay of the batches from one number to another, both included.
#[derive(Clone, Copy, Debug)]
pub struct ReplayCheck {
    from: u64,
    to: u64,
    last: Option<u64>,
    failure: Option<ReplayFailure>,
}

impl ReplayCheck {
    /// Batches `from` to `to` are wanted; more may come.
    pub fn new(from: u64, to: u64) -> Self {
        Self { from, to, last: None, failure: None }
    }

    /// A batch came.
    pub fn came(&mut self, sequence: u64) {
        let failure = match self.last {
            None if sequence > self.from => Some(ReplayFailure::StartedAfterRequested),
            Some(last) if sequence != last.wrapping_add(1) => Some(ReplayFailure::NonContiguous),
            _ => None,
        };
        self.failure = self.failure.or(failure);
        self.last = Some(sequence);
    }

    /// The end came.
    pub fn ended(&self) -> Result<(), ReplayFailure> {
        match (self.failure, self.last) {
            (Some(failure), _) => Err(failure),
            (None, None) => Err(ReplayFailure::Empty),
            (None, Some(last)) if last < self.to => Err(ReplayFailure::EndedBeforeTarget),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_duplicates_of_a_replay_and_restarts_are_told_apart() {
        let mut engine = EngineSequence::new();
        assert_eq!(engine.look(0), BatchArrival::Next);
        engine.took(0);
        assert_eq!(engine.look(4), BatchArrival::Gap { from: 1 });
        // The replay brings 1 to 6, beyond the one at hand.
        assert!((1..=6).all(|sequence| engine.took_replayed(sequence)));
        assert!(!engine.took_replayed(3));
        for sequence in 5..=6 {
            assert_eq!(engine.look(sequence), BatchArrival::Duplicate);
        }
        assert_eq!(engine.look(7), BatchArrival::Next);
        engine.took(7);
        // A lower number is another life.
        assert_eq!(engine.look(5), BatchArrival::Restart);
        assert_eq!(engine.look(5), BatchArrival::Gap { from: 0 });
        engine.took(5);
        assert_eq!(engine.look(0), BatchArrival::Restart);
        assert_eq!(engine.look(0), BatchArrival::Next);
    }

    #[test]
    fn a_replay_is_judged_by_its_numbers() {
        let judge = |sequences: &[u64]| {
            let mut check = ReplayCheck::new(3, 5);
            sequences.iter().for_each(|&sequence| check.came(sequence));
            check.ended()
        };
        assert_eq!(judge(&[3, 4, 5]), Ok(()));
        assert_eq!(judge(&[2, 3, 4, 5, 6]), Ok(()));
        assert_eq!(judge(&[]), Err(ReplayFailure::Empty));
        assert_eq!(judge(&[4, 5]), Err(ReplayFailure::StartedAfterRequested));
        assert_eq!(judge(&[3, 5]), Err(ReplayFailure::NonContiguous));
        assert_eq!(judge(&[3, 4]), Err(ReplayFailure::EndedBeforeTarget));
    }
}
