//! One model: template, tokenizer, router and workers behind one call.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use dynamo_engine_api::{RoutingHints, encode_request};
use dynamo_runtime::{
    Client, Instance, InstanceState, WorkerId,
    request_plane::{OutgoingRequest, ResponseStream, StreamError},
};
use dynamo_tokens::HashSeed;
use tokio::sync::Semaphore;

use crate::{
    ChatModel, ChatRequest, GenerateError, Generation, GenerationFuture, ModelInfo, RequestContext,
    generation::{RoutedGeneration, stream_error},
    preprocess::Preprocessor,
    router::{RouteRequest, Router},
};

/// A model whose workers are found through discovery.
pub(crate) struct RoutedModel {
    pub(crate) info: ModelInfo,
    pub(crate) preprocessor: Arc<Preprocessor>,
    pub(crate) router: Arc<Router>,
    pub(crate) client: Client,
    /// Turns in the pool that tokenizes long prompts.
    pub(crate) tokenizing: Arc<Semaphore>,
}

impl ChatModel for RoutedModel {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn chat(self: Arc<Self>, request: ChatRequest, context: RequestContext) -> GenerationFuture {
        Box::pin(async move { self.start(request, context).await })
    }
}

impl RoutedModel {
    async fn start(
        &self,
        mut request: ChatRequest,
        context: RequestContext,
    ) -> Result<Box<dyn Generation>, GenerateError> {
        let tokens = self.preprocessor.prompt(&mut request, &self.tokenizing).await?;
        let prompt_tokens = u32::try_from(tokens.len()).unwrap_or(u32::MAX);
        let mut engine_request = self.preprocessor.engine_request(&request, tokens, RoutingHints::default());
        let decoder = self.preprocessor.decoder(&mut request, &engine_request.token_ids);
        let seed = HashSeed::new(None, request.cache_salt.as_deref());
        let metadata: Vec<(String, String)> =
            context.traceparent.iter().map(|value| ("traceparent".to_owned(), value.clone())).collect();
        // A worker that refuses or is gone before it accepts has done nothing: another one is asked, each at most once.
        let mut refused = self.unavailable();
        loop {
            let booking = self.router.route(&RouteRequest {
                tokens: &engine_request.token_ids,
                seed,
                pinned_worker: request.worker_id,
                pinned_rank: request.dp_rank,
                expected_output_tokens: request.expected_output_tokens,
                excluded: &refused,
            })?;
            let (worker_id, dp_rank) = booking.worker();
            engine_request.routing = RoutingHints {
                worker_id: Some(worker_id),
                dp_rank: Some(dp_rank),
                expected_output_tokens: request.expected_output_tokens,
                lora_name: None,
                cache_salt: request.cache_salt.clone(),
                estimated_prefix_hit_blocks: Some(booking.overlap_blocks()),
            };
            // Token ids take two or three bytes each, the rest some hundred.
            let mut payload = Vec::with_capacity(engine_request.token_ids.len() * 3 + 512);
            encode_request(&engine_request, &mut payload);
            let outgoing = OutgoingRequest {
                id: context.id.clone(),
                payload: Bytes::from(payload),
                time_left: time_left(context.deadline)?,
                metadata: metadata.clone(),
            };
            match self.open(worker_id, outgoing).await {
                Ok(stream) => {
                    return Ok(Box::new(RoutedGeneration::new(stream, decoder, prompt_tokens, booking)));
                }
                Err(error) if error.is_retriable() && request.worker_id.is_none() => {
                    tracing::info!(request_id = %context.id, worker_id, %error, "asking another worker");
                    refused.push(worker_id);
                }
                Err(error) => return Err(stream_error(error)),
            }
        }
    }
}

impl RoutedModel {
    async fn open(&self, worker_id: u64, request: OutgoingRequest) -> Result<ResponseStream, StreamError> {
        let gone = || StreamError::Unavailable("the worker has just left".to_owned());
        let instance = self.client.instance(WorkerId::from_bits(worker_id)).ok_or_else(gone)?;
        match self.client.open(&instance, request).await {
            Ok(stream) => Ok(stream),
            Err(error) => Err(error.stream_error().cloned().unwrap_or_else(gone)),
        }
    }

    /// Workers that failed just now: they are avoided until they have had time to come back.
    fn unavailable(&self) -> Vec<u64> {
        let instances = self.client.instances();
        let ready = |instance: &&Instance| instance.state() == InstanceState::Ready;
        let failed: Vec<u64> = instances
            .iter()
            .filter(|instance| ready(instance) && !instance.is_available())
            .map(|instance| instance.worker_id().get())
            .collect();
        // If all have, one of them is as good as another.
        if failed.len() == instances.iter().filter(ready).count() { Vec::new() } else { failed }
    }
}

fn time_left(deadline: Option<Instant>) -> Result<Option<Duration>, GenerateError> {
    let Some(deadline) = deadline else { return Ok(None) };
    match deadline.checked_duration_since(Instant::now()) {
        Some(left) if !left.is_zero() => Ok(Some(left)),
        _ => Err(GenerateError::DeadlineExceeded),
    }
}
