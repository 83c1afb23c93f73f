//! The way in.

use dynamo_tokens::TokenSequence;
use smallvec::SmallVec;

use crate::request::{Request, State};
use crate::{BlockPool, BlockTable, NewRequest, RequestId, Scheduler};

/// New tokens for which room is reserved with the prompt: enough for most answers, little enough to waste.
const RESERVED_TOKENS: usize = 1024;

/// Why a request is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// The queue is full: try another worker, or later.
    #[error("{limit} requests are waiting already, which is the limit: try again later")]
    QueueFull {
        /// Requests that may wait.
        limit: usize,
    },
    /// The number is taken.
    #[error("request {0:?} is live already")]
    Duplicate(RequestId),
    /// There is nothing to begin with.
    #[error("the prompt has no tokens")]
    EmptyPrompt,
    /// There is nothing to do.
    #[error("no tokens were asked for: at least one must be")]
    NothingAsked,
    /// No room for one more token in the context, or in the whole pool.
    #[error("the prompt has {prompt} tokens, and at most {limit} fit")]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt: usize,
        /// Tokens that a prompt may have.
        limit: usize,
    },
}

impl<P: BlockPool, T> Scheduler<P, T> {
    /// Queues a request. A refusal hands the payload back.
    pub fn submit(&mut self, new: NewRequest, payload: T) -> Result<(), (SubmitError, T)> {
        if let Err(error) = self.check(&new) {
            return Err((error, payload));
        }
        let prompt_len = new.prompt.len();
        let max_len = prompt_len.saturating_add(new.max_new_tokens).min(self.max_len());
        let mut tokens = new.prompt;
        tokens.reserve((max_len - prompt_len).min(RESERVED_TOKENS));
        self.arrivals += 1;
        self.residences += 1;
        let request = Request {
            id: new.id,
            payload,
            arrival: self.arrivals,
            sequence: TokenSequence::new(tokens, self.pool.block_size(), new.hash_seed),
            prompt_len,
            max_len,
            deadline: new.deadline,
            state: State::Waiting,
            tables: SmallVec::from_elem(BlockTable::default(), self.pool.groups()),
            residence: self.residences,
            course: 0,
            computed: 0,
            planned: 0,
            expected: 0,
            registered: 0,
            last_step: 0,
            prefill_end: prompt_len,
            prefill_counted: prompt_len,
            cached_tokens: None,
            may_load: true,
            holds: SmallVec::new(),
        };
        self.prefill_tokens += prompt_len;
        self.note_deadline(new.deadline);
        let slot = match self.free_slots.pop() {
            Some(slot) => {
                self.slots[slot as usize] = Some(request);
                slot
            }
            None => {
                self.slots.push(Some(request));
                (self.slots.len() - 1) as u32
            }
        };
        self.by_id.insert(new.id, slot);
        self.waiting.push_back(slot);
        Ok(())
    }

    /// Tokens, prompt and output, for which there can ever be room.
    pub fn max_len(&self) -> usize {
        let fits = |group| self.pool.capacity(group) * self.pool.block_size().get();
        (0..self.pool.groups()).map(fits).fold(self.config.max_sequence_len, usize::min)
    }

    fn check(&self, new: &NewRequest) -> Result<(), SubmitError> {
        let mut limit = self.max_len().saturating_sub(1);
        if !self.config.chunked_prefill {
            limit = limit.min(self.config.max_num_batched_tokens);
        }
        if new.prompt.is_empty() {
            Err(SubmitError::EmptyPrompt)
        } else if new.max_new_tokens == 0 {
            Err(SubmitError::NothingAsked)
        } else if new.prompt.len() > limit {
            Err(SubmitError::PromptTooLong { prompt: new.prompt.len(), limit })
        } else if self.by_id.contains_key(&new.id) {
            Err(SubmitError::Duplicate(new.id))
        } else if self.waiting.len() >= self.config.max_waiting {
            Err(SubmitError::QueueFull { limit: self.config.max_waiting })
        } else {
            Ok(())
        }
    }
}
