//! A prompt that another worker computes first.

use dynamo_engine_api::{
    EngineOutput, FinishReason, PrefillResult, PreprocessedRequest, PromptTokensDetails,
    RouterConfigOverride, StopConditions, decode_output,
};
use dynamo_kv_router::{ConditionalDisagg, PrefillPlace, RouterOverrides, WorkerRank};
use dynamo_runtime::request_plane::StreamError;

use super::RoutedModel;
use crate::{
    ChatRequest, GenerateError,
    dispatch::{self, Accepted, Envelope, unavailable},
    generation::stream_error,
    routed_endpoint::RoutedEndpoint,
    router::{PrefilledBy, RouteRequest},
};

/// A prompt whose blocks a prefill worker has.
pub(crate) struct Prefilled {
    /// Who has them.
    pub(crate) worker: WorkerRank,
    /// What that one did not have to compute.
    pub(crate) details: Option<PromptTokensDetails>,
    pub(super) result: PrefillResult,
}

/// What counts for the worker that answers, of which the prompt's blocks are not looked for: they come from elsewhere.
pub(super) const ANSWER_OVERRIDES: RouterOverrides = RouterOverrides {
    overlap_score_weight: None,
    overlap_score_credit: Some(0.0),
    prefill_load_scale: None,
    temperature: None,
    assume_kv_reuse: Some(false),
    track_prefill_tokens: Some(false),
};

/// [`ANSWER_OVERRIDES`] for a router on the way.
pub(super) fn answer_overrides() -> RouterConfigOverride {
    RouterConfigOverride {
        overlap_score_credit: ANSWER_OVERRIDES.overlap_score_credit,
        assume_kv_reuse: ANSWER_OVERRIDES.assume_kv_reuse,
        track_prefill_tokens: ANSWER_OVERRIDES.track_prefill_tokens,
        ..RouterConfigOverride::default()
    }
}

/// Why no prefill worker computed a prompt.
#[derive(Debug, thiserror::Error)]
enum PrefillError {
    /// Nobody took it, or it broke off.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// It is computed, and nobody can have it.
    #[error("the prefill worker does not say how its blocks are to be had")]
    NoParams,
}

impl PrefillError {
    /// What the client is told, where no other worker may compute the prompt.
    fn told(self) -> GenerateError {
        match self {
            Self::Generate(error) => error,
            Self::NoParams => GenerateError::Engine(self.to_string()),
        }
    }

    /// Whether it is no use to try elsewhere: the time is over, or the request itself is at fault. (Whose client is gone
    /// does not come here.)
    fn is_final(&self) -> bool {
        let Self::Generate(error) = self else { return false };
        use GenerateError::{DeadlineExceeded, Invalid, PromptTooLong};
        matches!(error, DeadlineExceeded | Invalid { .. } | PromptTooLong { .. })
    }
}

impl RoutedModel {
    /// Has a prompt computed by a prefill worker, where there is one and it is worth the way. `None`: the worker that answers
    /// computes it.
    pub(super) async fn prefill(
        &self,
        request: &ChatRequest,
        engine_request: &PreprocessedRequest,
        envelope: &Envelope,
    ) -> Result<Option<Prefilled>, GenerateError> {
        let must = self.prefill.config().enforce;
        let Some(workers) = self.prefill.workers() else {
            return if must { Err(GenerateError::NoWorkers) } else { Ok(None) };
        };
        let wishes = self.prefill_wishes(request, envelope.deadline);
        if self.stays(request, &engine_request.token_ids, &workers, &wishes).await {
            self.prefill.count(PrefilledBy::Decode);
            return Ok(None);
        }
        match compute(&workers, engine_request, &wishes, envelope).await {
            Ok(prefilled) => {
                self.prefill.count(PrefilledBy::Prefill);
                Ok(Some(prefilled))
            }
            Err(error) if must || error.is_final() => Err(error.told()),
            Err(error) => {
                tracing::info!(request_id = %envelope.id, %error, "no prefill worker computed the prompt: the worker that answers does");
                self.prefill.count(PrefilledBy::Fallback);
                Ok(None)
            }
        }
    }

    /// Whom a prompt would be sent to first, if to anybody.
    pub(super) async fn advise_prefill(&self, request: &ChatRequest, tokens: &[u32]) -> Option<WorkerRank> {
        let workers = self.prefill.workers()?;
        let wishes = self.prefill_wishes(request, None);
        if self.stays(request, tokens, &workers, &wishes).await {
            return None;
        }
        let avoided = unavailable(&workers.client);
        let wanted = RouteRequest { tokens, excluded: &avoided, ..wishes };
        workers.router.advise(&wanted).await.ok()
    }

    fn prefill_wishes<'a>(
        &'a self,
        request: &'a ChatRequest,
        deadline: Option<std::time::Instant>,
    ) -> RouteRequest<'a> {
        RouteRequest {
            pinned_worker: request.prefill_worker_id,
            pinned_rank: request.prefill_dp_rank,
            // It is for the answer.
            expected_output_tokens: None,
            ..self.wishes(request, deadline)
        }
    }

    /// Whether the worker that answers had better compute the prompt itself.
    async fn stays(
        &self,
        request: &ChatRequest,
        tokens: &[u32],
        workers: &RoutedEndpoint,
        wishes: &RouteRequest<'_>,
    ) -> bool {
        let Some(conditional) = self.prefill.config().conditional else { return false };
        if wishes.pinned_worker.is_some() {
            return false;
        }
        let avoided = unavailable(&self.client);
        let answer = RouteRequest { tokens, excluded: &avoided, ..self.wishes(request, None) };
        // Where nobody can be found, the request fails for it later.
        let cached_blocks = self.router.best_worker(&answer).await.map_or(0, |(_, blocks)| blocks);
        let cached = cached_blocks as usize * self.router.block_size().get();
        let prefill_busy = || {
            let steps = busy_steps(&conditional, workers);
            steps.is_some_and(|steps| workers.router.is_beyond(wishes, steps))
        };
        let decode_busy = |steps| self.router.is_beyond(&answer, steps);
        conditional.place(tokens.len(), cached, prefill_busy, decode_busy) == PrefillPlace::Decode
    }
}

fn busy_steps(conditional: &ConditionalDisagg, workers: &RoutedEndpoint) -> Option<f64> {
    conditional.busy_steps(workers.router.queue_threshold())
}

/// Sends the prompt to a prefill worker and waits until it is computed.
async fn compute(
    workers: &RoutedEndpoint,
    request: &PreprocessedRequest,
    wishes: &RouteRequest<'_>,
    envelope: &Envelope,
) -> Result<Prefilled, PrefillError> {
    let conditions = &request.stop_conditions;
    let stop_conditions = StopConditions { max_tokens: Some(1), min_tokens: None, ..conditions.clone() };
    let mut prompt = PreprocessedRequest { stop_conditions, ..request.clone() };
    let sent = dispatch::send(&workers.router, &workers.client, &mut prompt, wishes, envelope).await;
    let Accepted { mut stream, incarnation, mut booking } = sent.map_err(|error| error.told())?;
    drop(prompt);
    let mut output = EngineOutput::default();
    let (mut params, mut details) = (None, None);
    while let Some(item) = stream.next().await {
        let item = item.map_err(|error| {
            if error == StreamError::Disconnected {
                workers.client.report_lost(incarnation);
            }
            stream_error(error)
        })?;
        decode_output(&item, &mut output).map_err(|error| GenerateError::Internal(error.to_string()))?;
        booking.on_progress(output.token_ids.len(), std::time::Instant::now());
        params = output.disaggregated_params.take().or(params);
        details = output.completion_usage.and_then(|usage| usage.prompt_tokens_details).or(details);
        match output.finish_reason.take() {
            None => {}
            Some(FinishReason::Cancelled) => return Err(GenerateError::Cancelled.into()),
            Some(FinishReason::Error(message)) => return Err(GenerateError::Engine(message).into()),
            Some(_) => {
                let (worker_id, dp_rank) = booking.worker();
                let disaggregated_params = params.ok_or(PrefillError::NoParams)?;
                // The end comes with the last item; a stream that is left before is cancelled.
                let _ = stream.next().await;
                let worker = WorkerRank { worker_id, dp_rank };
                return Ok(Prefilled { worker, details, result: PrefillResult { disaggregated_params } });
            }
        }
    }
    Err(GenerateError::WorkerLost.into())
}
