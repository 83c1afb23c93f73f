//! What streamed and whole answers have in common.

use std::sync::Arc;

use axum::http::StatusCode;
use dynamo_engine_api::{CompletionUsage, FinishReason, StopReason};
use dynamo_llm::{ChatModel, Delta, GenerateError, Generation};
use dynamo_protocols::{NvExt, NvExtAnswer, WorkerIds};

use crate::{metrics::RequestTracker, sse_frame::finish_word};

/// How an answer is to look.
pub(crate) struct AnswerShape {
    /// The request's id.
    pub(crate) id: Arc<str>,
    /// Unix seconds.
    pub(crate) created: u64,
    pub(crate) model: Arc<dyn ChatModel>,
    pub(crate) include_usage: bool,
    pub(crate) extra: ExtraFields,
    pub(crate) overload_status: StatusCode,
}

/// Fields of `nvext` that were asked for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ExtraFields {
    worker_id: bool,
    timing: bool,
    stop_reason: bool,
}

impl ExtraFields {
    pub(crate) fn of(nvext: Option<&NvExt>) -> Self {
        let asked = nvext.and_then(|nvext| nvext.extra_fields.as_deref()).unwrap_or_default();
        let has = |name: &str| asked.iter().any(|field| field == name);
        Self { worker_id: has("worker_id"), timing: has("timing"), stop_reason: has("stop_reason") }
    }

    /// They, at the end of an answer; none if nothing was asked for.
    pub(crate) fn answer(
        self,
        generation: &dyn Generation,
        usage: CompletionUsage,
        tracker: &RequestTracker,
        stop: Option<StopReason>,
    ) -> Option<NvExtAnswer> {
        if !(self.worker_id || self.timing || self.stop_reason) {
            return None;
        }
        let decode = generation.worker().filter(|_| self.worker_id);
        let worker_id = decode.map(|decode| worker_ids(generation.prefill_worker(), decode));
        let stop_reason = stop.filter(|_| self.stop_reason).map(|stop| match stop {
            StopReason::Text(text) => text.into(),
            StopReason::Token(token) => token.into(),
        });
        let timing = self.timing.then(|| tracker.timing(usage));
        Some(NvExtAnswer { worker_id, timing, token_ids: None, stop_reason })
    }
}

/// The worker and rank that compute the prompt, if they are not those that answer, and those that do.
pub(crate) fn worker_ids(prefill: Option<(u64, u32)>, decode: (u64, u32)) -> WorkerIds {
    let (prefill_worker_id, prefill_dp_rank) = prefill.unwrap_or(decode);
    let (decode_worker_id, decode_dp_rank) = decode;
    WorkerIds { prefill_worker_id, prefill_dp_rank, decode_worker_id, decode_dp_rank }
}

/// How an answer ended, put together from its deltas.
#[derive(Debug, Default)]
pub(crate) struct Ending {
    finish: Option<FinishReason>,
    stop: Option<StopReason>,
}

impl Ending {
    /// Takes what a delta says of the end.
    pub(crate) fn note(&mut self, delta: Delta<'_>) {
        if delta.finish_reason.is_some() {
            self.finish = delta.finish_reason;
            self.stop = delta.stop_reason;
        }
    }

    /// Whether the model said that it is done, and not by a failure.
    pub(crate) fn is_complete(&self) -> bool {
        self.finish.as_ref().and_then(finish_word).is_some()
    }

    /// OpenAI's word for the end, and what stopped it.
    pub(crate) fn resolve(&mut self) -> Result<(&'static str, Option<StopReason>), GenerateError> {
        match self.finish.take() {
            Some(FinishReason::Error(text)) => Err(GenerateError::Engine(text)),
            Some(reason) => {
                let word = finish_word(&reason).unwrap_or("stop");
                Ok((word, self.stop.take()))
            }
            None => Err(GenerateError::Internal("the answer ended without a finish reason".into())),
        }
    }
}
