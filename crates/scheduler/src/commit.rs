//! What came out of a step.

use std::time::Duration;

use dynamo_tokens::TokenId;

use crate::step::Advance;
use crate::{BlockPool, End, FullBlock, RequestId, Scheduler, Step, StepResults, Usage, Work};

/// How a request came forward in a step.
#[derive(Debug)]
pub struct Progress<'a, T> {
    /// Which one.
    pub id: RequestId,
    /// What the executor keeps with it.
    pub payload: &'a mut T,
    /// The new tokens; none only if it ends without.
    pub tokens: &'a [TokenId],
    /// Why it ends with them, if it does.
    pub end: Option<End>,
    /// How far it is, these tokens included.
    pub usage: Usage,
}

/// What whoever is told of a progress says to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Go on.
    Continue,
    /// No more of this request.
    Refuse,
}

/// A commit that does not follow from the plans: a bug of the executor. Nothing changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommitError {
    /// Steps are committed once each, in the order of their planning.
    #[error("step {got} was committed where step {expected} is next: commit each step once, in order")]
    OutOfOrder {
        /// The next one.
        expected: u64,
        /// The one given.
        got: u64,
    },
    /// Not one result per work.
    #[error("{got} results for a step of {expected} requests: push one for each, in order")]
    WrongCount {
        /// Works of the step.
        expected: usize,
        /// Results given.
        got: usize,
    },
}

impl<P: BlockPool, T> Scheduler<P, T> {
    /// Takes the outcome of a step over. `on_progress` hears of every request that has new tokens or ends; those that
    /// ended are in [`drain_ended`](Self::drain_ended) afterwards. Outcomes of requests that were aborted or preempted
    /// meanwhile are ignored.
    pub fn commit(
        &mut self,
        step: &Step,
        results: &StepResults,
        now: Duration,
        mut on_progress: impl FnMut(Progress<'_, T>) -> Verdict,
    ) -> Result<(), CommitError> {
        if step.id != self.committed_step + 1 || step.is_empty() {
            return Err(CommitError::OutOfOrder { expected: self.committed_step + 1, got: step.id });
        }
        if step.works.len() != results.advances.len() {
            return Err(CommitError::WrongCount { expected: step.works.len(), got: results.advances.len() });
        }
        self.committed_step = step.id;
        let ended_before = self.ended.len();
        let mut from = 0;
        for (work, advance) in step.works.iter().zip(&results.advances) {
            let tokens = &results.tokens[from..advance.tokens_end];
            from = advance.tokens_end;
            if self.of_work(work).is_some() {
                self.advance(work, *advance, tokens, now, &mut on_progress);
            }
        }
        if self.ended.len() > ended_before {
            let slots = &self.slots;
            self.running.retain(|&slot| slots[slot as usize].is_some());
        }
        self.held.release(self.committed_step, &mut self.pool);
        Ok(())
    }

    fn advance(
        &mut self,
        work: &Work,
        advance: Advance,
        tokens: &[TokenId],
        now: Duration,
        on_progress: &mut impl FnMut(Progress<'_, T>) -> Verdict,
    ) {
        let max_advance = self.config.max_advance;
        let block_size = self.pool.block_size();
        let request = self.slots[work.slot as usize].as_mut().expect("a work that is not void has a request");
        debug_assert_eq!(work.start, request.computed, "works that are not void follow one another");
        let tokens = if work.samples { tokens } else { &[] };
        let tokens = &tokens[..tokens.len().min(request.max_len - request.len())];
        for &token in tokens {
            request.sequence.push(token);
        }
        // KV beyond the room that was reserved, or of a last token that nothing followed, does not count: the next
        // step starts with it.
        let room = if work.samples { work.len + max_advance - 1 } else { work.len };
        let computed = work.start + advance.computed.min(room);
        request.computed = computed.min(request.len() - 1);
        if request.computed == work.start + work.len && tokens.len() == usize::from(work.samples) {
            request.expected -= tokens.len();
        } else {
            request.course += 1;
            (request.planned, request.expected) = (request.computed, 0);
        }
        let whole_blocks = request.computed / block_size.get();
        if whole_blocks > request.registered {
            self.register(work.slot, whole_blocks);
        }
        if work.prefill {
            self.recount_prefill(work.slot);
        }

        let request = self.slots[work.slot as usize].as_mut().expect("a work that is not void has a request");
        let mut end = if advance.stopped {
            Some(End::Stopped)
        } else if request.len() >= request.max_len {
            Some(End::Length)
        } else if request.deadline.is_some_and(|deadline| deadline <= now) {
            Some(End::DeadlineExceeded)
        } else {
            None
        };
        if !tokens.is_empty() || end.is_some() {
            let usage = request.usage();
            let progress = Progress { id: request.id, payload: &mut request.payload, tokens, end, usage };
            if on_progress(progress) == Verdict::Refuse {
                end = end.or(Some(End::Refused));
            }
        }
        if let Some(end) = end {
            self.end(work.slot, end);
        }
    }

    /// Tells the pool of blocks that became whole, and gives back those that left a window.
    fn register(&mut self, slot: u32, whole_blocks: usize) {
        let size = self.pool.block_size().get();
        let request = self.slots[slot as usize].as_mut().expect("listed slots are filled");
        let until_step = request.last_step;
        for index in request.registered..whole_blocks {
            let hashes = request.sequence.sequence_hashes();
            let contents = FullBlock {
                sequence_hash: hashes[index],
                local_hash: request.sequence.local_hashes()[index],
                parent: index.checked_sub(1).map(|parent| hashes[parent]),
                index,
            };
            for (group, table) in request.tables.iter_mut().enumerate() {
                let Some(own) = table.get(index) else { continue };
                let tokens = &request.sequence.tokens()[index * size..(index + 1) * size];
                let shared = self.pool.register_with_tokens(group, own, contents, tokens);
                if shared == own {
                    continue;
                }
                table.replace(index, shared);
                if until_step > self.committed_step || !request.holds.is_empty() {
                    self.held.keep(group, vec![own], until_step, &request.holds);
                } else {
                    self.pool.release(group, &[own]);
                }
            }
        }
        request.registered = whole_blocks;
        for (group, table) in request.tables.iter_mut().enumerate() {
            let Some(window) = self.pool.window(group) else { continue };
            // The next position is `computed`, and sees `window - 1` before it.
            let first = (request.computed + 1).saturating_sub(window) / size;
            let gone = table.drop_before(first);
            if gone.is_empty() {
                continue;
            }
            if request.holds.is_empty() {
                self.pool.release(group, &gone);
            } else {
                self.held.keep(group, gone, 0, &request.holds);
            }
        }
    }
}
