//! One request's way out.

use dynamo_engine_api::{
    CompletionUsage, EngineOutput, FinishReason, OutputSink, PromptTokensDetails, Refused, RequestKey,
    SinkState, StopReason,
};
use dynamo_scheduler::{End, Progress, SubmitError, Usage, Verdict};
use dynamo_tokens::TokenId;

use crate::disaggregation::handed_over;
use crate::stop::StopRules;
use crate::{DisaggregationMode, MockerConfig, TokenState, Vocabulary};

/// What the simulator keeps with each request.
pub(crate) struct Stream {
    pub(crate) key: RequestKey,
    pub(crate) sink: Box<dyn OutputSink>,
    /// After all tokens that were sent.
    pub(crate) state: TokenState,
    pub(crate) stop: StopRules,
    pub(crate) generated: usize,
}

impl Stream {
    /// The token that comes next, and whether it ends the request.
    pub(crate) fn next(&self, vocabulary: &Vocabulary, draw_end_tokens: bool) -> (TokenId, bool) {
        let unwanted = if draw_end_tokens { &[] } else { self.stop.end_tokens() };
        let token = self.state.next(vocabulary, unwanted);
        (token, self.stop.check(token, self.generated + 1).is_some())
    }

    /// Sends what came out of a step. `output` is scratch space. The first output has the counts, too: a stream that the
    /// reader ends by itself never sees the last. The last one of a prefill engine says how to get the prompt's blocks.
    pub(crate) fn send(
        progress: Progress<'_, Self>,
        config: &MockerConfig,
        output: &mut EngineOutput,
    ) -> Verdict {
        let stream = progress.payload;
        let first = stream.generated == 0;
        stream.state = stream.state.after_all(progress.tokens);
        stream.generated = progress.usage.generated_tokens;
        output.token_ids.clear();
        output.token_ids.extend_from_slice(progress.tokens);
        if let Some(end) = progress.end {
            (output.finish_reason, output.stop_reason) = stream.reason(end, progress.tokens);
            let computed = matches!(end, End::Length | End::Stopped);
            output.disaggregated_params = (computed
                && config.disaggregation_mode == DisaggregationMode::Prefill)
                .then(|| handed_over(config.engine_id.as_deref(), progress.usage.prompt_tokens));
        }
        if first || progress.end.is_some() {
            output.completion_usage = Some(usage(progress.usage));
        }
        let state = stream.sink.push(output);
        output.finish_reason = None;
        output.stop_reason = None;
        output.completion_usage = None;
        if progress.end.is_some() {
            output.disaggregated_params = None;
        }
        match state {
            SinkState::Open => Verdict::Continue,
            SinkState::Closed => Verdict::Refuse,
        }
    }

    fn reason(&self, end: End, tokens: &[TokenId]) -> (Option<FinishReason>, Option<StopReason>) {
        let stopped_by = tokens.last().and_then(|&token| self.stop.check(token, self.generated));
        match (end, stopped_by) {
            (End::Stopped, Some((finish, stop))) => (Some(finish), stop),
            (End::Stopped, None) => (Some(FinishReason::Stop), None),
            (End::Length, _) => (Some(FinishReason::Length), None),
            (End::Refused | End::DeadlineExceeded, _) => (Some(FinishReason::Cancelled), None),
        }
    }
}

/// What the scheduler's refusal means to whoever sent the request.
pub(crate) fn refused_by(error: &SubmitError) -> Refused {
    let why = error.to_string();
    match error {
        SubmitError::QueueFull { .. } => Refused::Overloaded(why),
        SubmitError::Duplicate(_) => Refused::Unavailable(why),
        SubmitError::EmptyPrompt | SubmitError::NothingAsked | SubmitError::PromptTooLong { .. } => {
            Refused::Invalid(why)
        }
    }
}

/// The engine was dropped, or its task was.
pub(crate) fn shut_down() -> Refused {
    Refused::Unavailable("the engine has shut down: send the request to another worker".to_owned())
}

fn usage(usage: Usage) -> CompletionUsage {
    let count = |tokens: usize| u32::try_from(tokens).unwrap_or(u32::MAX);
    CompletionUsage {
        prompt_tokens: count(usage.prompt_tokens),
        completion_tokens: count(usage.generated_tokens),
        total_tokens: count(usage.prompt_tokens + usage.generated_tokens),
        prompt_tokens_details: Some(PromptTokensDetails { cached_tokens: count(usage.cached_tokens) }),
    }
}
