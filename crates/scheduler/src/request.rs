//! What the scheduler knows of a request.

use std::time::Duration;

use dynamo_tokens::{HashSeed, TokenId, TokenSequence};
use smallvec::SmallVec;

use crate::held::Hold;
use crate::{BlockTable, LoadTicket};

/// A request's number, unique among the live ones of a scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// A request to be scheduled.
#[derive(Clone, Debug)]
pub struct NewRequest {
    /// Names it from here on.
    pub id: RequestId,
    /// The tokens to begin with.
    pub prompt: Vec<TokenId>,
    /// Separates its blocks from equal tokens under another adapter or salt.
    pub hash_seed: HashSeed,
    /// Tokens to generate at most; fewer if the context or the pool is full before.
    pub max_new_tokens: usize,
    /// When to give it up.
    pub deadline: Option<Duration>,
}

/// Why a request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The executor said so.
    Stopped,
    /// It has all the tokens it may have.
    Length,
    /// The one who was told of its progress did not want more.
    Refused,
    /// Its deadline passed.
    DeadlineExceeded,
}

/// Tokens of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Given.
    pub prompt_tokens: usize,
    /// Of those, found in the cache when it was first admitted.
    pub cached_tokens: usize,
    /// Generated so far.
    pub generated_tokens: usize,
}

/// A request that ended in a plan or a commit.
#[derive(Debug)]
pub struct Ended<T> {
    /// Which one.
    pub id: RequestId,
    /// What the executor kept with it.
    pub payload: T,
    /// Why.
    pub end: End,
    /// How far it came.
    pub usage: Usage,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Loading {
    pub(crate) ticket: LoadTicket,
    pub(crate) ready: usize,
    pub(crate) pending: usize,
    pub(crate) deadline: Duration,
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum State {
    Waiting,
    Loading(Loading),
    Running,
}

pub(crate) type Tables = SmallVec<[BlockTable; 1]>;

pub(crate) struct Request<T> {
    pub(crate) id: RequestId,
    pub(crate) payload: T,
    /// Counts submissions: the waiting queue is in this order.
    pub(crate) arrival: u64,
    pub(crate) sequence: TokenSequence,
    pub(crate) prompt_len: usize,
    pub(crate) max_len: usize,
    pub(crate) deadline: Option<Duration>,
    pub(crate) state: State,
    pub(crate) tables: Tables,
    /// Changes whenever the tables are given up; a step planned under another number is not about these tables.
    pub(crate) residence: u64,
    /// Changes whenever a step ended otherwise than foreseen; steps planned on that foresight are void.
    pub(crate) course: u32,
    /// Leading tokens whose KV is there. Always fewer than there are tokens.
    pub(crate) computed: usize,
    /// The same, once all steps in flight went as foreseen.
    pub(crate) planned: usize,
    /// New tokens that steps in flight are to bring.
    pub(crate) expected: usize,
    /// Leading blocks that the pool knows the contents of.
    pub(crate) registered: usize,
    /// The last step that computes something for it.
    pub(crate) last_step: u64,
    /// Tokens before this are prefill.
    pub(crate) prefill_end: usize,
    /// Its part in the sum of tokens still to be prefilled.
    pub(crate) prefill_counted: usize,
    pub(crate) cached_tokens: Option<usize>,
    pub(crate) may_load: bool,
    pub(crate) holds: SmallVec<[Hold; 1]>,
}

impl<T> Request<T> {
    pub(crate) fn len(&self) -> usize {
        self.sequence.tokens().len()
    }

    pub(crate) fn usage(&self) -> Usage {
        Usage {
            prompt_tokens: self.prompt_len,
            cached_tokens: self.cached_tokens.unwrap_or(0),
            generated_tokens: self.len() - self.prompt_len,
        }
    }
}
