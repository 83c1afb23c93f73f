//! What became of an engine's events, for metrics.

/// Why an event of an engine counts for nothing. It takes no number then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilterReason {
    /// The engine says that it may be ignored.
    Ignored,
    /// A kind of event that is not known.
    UnknownKind,
    /// The event is not what the format says.
    Malformed,
    /// It names no block.
    Empty,
    /// It concerns a medium that is not known.
    UnknownMedium,
    /// The blocks lie with another worker.
    Remote,
    /// A group of layers that prefixes are not found by: sliding windows, recurrent states.
    AttentionGroup,
    /// The engine's blocks have another size than the router's: nothing would ever match.
    BlockSize,
    /// Fewer tokens than one block has.
    TooFewTokens,
    /// The same block under two salts, or under another one than its parent.
    AmbiguousSalt,
    /// More salted blocks than are kept account of.
    TooManySalted,
}

impl FilterReason {
    /// All of them.
    pub const ALL: [Self; 11] = [
        Self::Ignored,
        Self::UnknownKind,
        Self::Malformed,
        Self::Empty,
        Self::UnknownMedium,
        Self::Remote,
        Self::AttentionGroup,
        Self::BlockSize,
        Self::TooFewTokens,
        Self::AmbiguousSalt,
        Self::TooManySalted,
    ];

    /// The label that metrics give it.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Ignored => "ignored",
            Self::UnknownKind => "unknown_kind",
            Self::Malformed => "malformed",
            Self::Empty => "empty",
            Self::UnknownMedium => "unknown_medium",
            Self::Remote => "remote",
            Self::AttentionGroup => "attention_group",
            Self::BlockSize => "block_size",
            Self::TooFewTokens => "too_few_tokens",
            Self::AmbiguousSalt => "ambiguous_salt",
            Self::TooManySalted => "too_many_salted",
        }
    }
}

/// Events since the decoder was made: each received one is accepted, or filtered for one reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IntakeCounters {
    /// Events in batches that could be read.
    pub received: u64,
    /// Events that were passed on.
    pub accepted: u64,
    /// Accepted ones with fewer tokens than their blocks need: the blocks without tokens were left out.
    pub cut_short: u64,
    /// Accepted ones that name a block twice: an event without blocks was passed on instead.
    pub not_unique: u64,
    /// The engine's block size, where it last differed from ours.
    pub other_block_size: Option<u64>,
    filtered: [u64; FilterReason::ALL.len()],
}

impl IntakeCounters {
    /// Events that were filtered for a reason.
    pub const fn filtered(&self, reason: FilterReason) -> u64 {
        self.filtered[reason as usize]
    }

    pub(super) fn filter(&mut self, reason: FilterReason) {
        self.filtered[reason as usize] += 1;
    }
}
