//! What an executor is asked to compute, and what it answers.

use dynamo_tokens::TokenId;

use crate::RequestId;

/// One request's part in a step: the KV of tokens `start .. start + len`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    /// Whose.
    pub request: RequestId,
    /// Leading tokens whose KV is there, or comes out of the step in flight.
    pub start: usize,
    /// Tokens to compute, at least one.
    pub len: usize,
    /// Whether these are the last tokens, so that new ones follow.
    pub samples: bool,
    /// Whether any of the tokens belong to the prompt, or to what a preempted request has to compute again.
    pub prefill: bool,
    /// Whether the last token is the one that the step in flight brings.
    pub ahead: bool,
    pub(crate) slot: u32,
    pub(crate) residence: u64,
    pub(crate) course: u32,
}

/// What to compute at once. An empty step need not be committed.
#[derive(Debug, Default)]
pub struct Step {
    pub(crate) id: u64,
    pub(crate) works: Vec<Work>,
}

impl Step {
    /// One entry per request.
    pub fn works(&self) -> &[Work] {
        &self.works
    }

    /// Whether there is nothing to compute.
    pub fn is_empty(&self) -> bool {
        self.works.is_empty()
    }

    /// Tokens that are prefill, over all requests.
    pub fn prefill_tokens(&self) -> usize {
        self.works.iter().filter(|work| work.prefill).map(|work| work.len).sum()
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Advance {
    pub(crate) computed: usize,
    pub(crate) tokens_end: usize,
    pub(crate) stopped: bool,
}

/// The outcome of a step: one entry per work, in the same order. Kept by the executor and reused.
#[derive(Debug, Default)]
pub struct StepResults {
    pub(crate) tokens: Vec<TokenId>,
    pub(crate) advances: Vec<Advance>,
}

impl StepResults {
    /// Forgets all entries, keeps the memory.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.advances.clear();
    }

    /// Appends the next work's outcome: of how many tokens from its start the KV is there now (accepted drafts
    /// included), the new tokens, and whether the request ends with them. Tokens count only where the work samples.
    pub fn push(&mut self, computed: usize, tokens: &[TokenId], stopped: bool) {
        self.tokens.extend_from_slice(tokens);
        self.advances.push(Advance { computed, tokens_end: self.tokens.len(), stopped });
    }
}
