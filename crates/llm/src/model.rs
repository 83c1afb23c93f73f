//! One model: template, tokenizer, router and workers behind one call.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use dynamo_engine_api::{RoutingConstraints, RoutingHints, encode_request};
use dynamo_kv_router::{BusyThresholds, ConfigError, RouterOverrides, WorkerRank};
use dynamo_runtime::{
    Client, Incarnation, Instance, InstanceState, WorkerId,
    request_plane::{OutgoingRequest, ResponseStream, StreamError},
};
use dynamo_tokens::HashSeed;
use tokio::sync::Semaphore;

use crate::{
    AdviceFuture, ChatModel, ChatRequest, GenerateError, Generation, GenerationFuture, ModelInfo,
    RequestContext, RoutingAdvice, RoutingWishes,
    generation::{RoutedGeneration, stream_error},
    preprocess::Preprocessor,
    retry::{Candidates, is_for_another},
    router::{RouteRequest, Router, WantedAdapter},
};

/// A model whose workers are found through discovery.
pub(crate) struct RoutedModel {
    pub(crate) info: ModelInfo,
    pub(crate) preprocessor: Arc<Preprocessor>,
    pub(crate) router: Arc<Router>,
    pub(crate) client: Client,
    /// Turns in the pool that tokenizes long prompts.
    pub(crate) tokenizing: Arc<Semaphore>,
    /// The adapter that all of its requests are for; none for a base model.
    pub(crate) adapter: Option<Arc<str>>,
}

impl ChatModel for RoutedModel {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn chat(self: Arc<Self>, request: ChatRequest, context: RequestContext) -> GenerationFuture {
        Box::pin(async move { self.start(request, context).await })
    }

    fn advise(self: Arc<Self>, request: ChatRequest, context: RequestContext) -> AdviceFuture {
        Box::pin(async move { self.choose(request, context).await })
    }

    fn busy_thresholds(&self) -> BusyThresholds {
        self.router.busy_thresholds()
    }

    fn merge_busy_thresholds(&self, given: BusyThresholds) -> Result<BusyThresholds, ConfigError> {
        self.router.merge_busy_thresholds(given)
    }
}

impl RoutedModel {
    /// The same model with an adapter, under the name in `info`.
    pub(crate) fn with_adapter(&self, info: ModelInfo, adapter: Arc<str>) -> Self {
        Self {
            info,
            preprocessor: self.preprocessor.clone(),
            router: self.router.clone(),
            client: self.client.clone(),
            tokenizing: self.tokenizing.clone(),
            adapter: Some(adapter),
        }
    }

    async fn start(
        &self,
        mut request: ChatRequest,
        context: RequestContext,
    ) -> Result<Box<dyn Generation>, GenerateError> {
        let tokens = self.preprocessor.prompt(&mut request, &self.tokenizing, context.deadline).await?;
        let prompt_tokens = u32::try_from(tokens.len()).unwrap_or(u32::MAX);
        let mut engine_request = self.preprocessor.engine_request(&request, tokens, RoutingHints::default());
        engine_request.model.clone_from(&self.info.id);
        let decoder = self.preprocessor.decoder(&mut request, &engine_request.token_ids);
        let metadata: Vec<(String, String)> =
            context.traceparent.iter().map(|value| ("traceparent".to_owned(), value.clone())).collect();
        // A worker that refuses or is gone before it accepts has done nothing: another one is asked, each at most once.
        let mut candidates = Candidates::avoiding(self.unavailable());
        loop {
            let wanted = self.route_request(
                &request,
                &engine_request.token_ids,
                candidates.excluded(),
                context.deadline,
            );
            let booking = match self.router.route(&wanted).await {
                Ok(booking) => booking,
                Err(GenerateError::NoWorkers) if candidates.avoid_nobody() => continue,
                Err(GenerateError::NoWorkers) => return Err(candidates.exhausted()),
                Err(error) => return Err(error),
            };
            let (worker_id, dp_rank) = booking.worker();
            engine_request.routing = RoutingHints {
                worker_id: Some(worker_id),
                dp_rank: Some(dp_rank),
                expected_output_tokens: request.expected_output_tokens,
                lora_name: self.adapter.as_deref().map(str::to_owned),
                cache_salt: request.cache_salt.clone(),
                estimated_prefix_hit_blocks: Some(booking.overlap_blocks()),
                ..place_hints(&request.routing)
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
                Ok((incarnation, stream)) => {
                    let client = self.client.clone();
                    let generation =
                        RoutedGeneration::new(client, incarnation, stream, decoder, prompt_tokens, booking);
                    return Ok(Box::new(generation));
                }
                Err(error) if is_for_another(&error) && request.worker_id.is_none() => {
                    tracing::info!(request_id = %context.id, worker_id, %error, "asking another worker");
                    candidates.refused_by(worker_id, matches!(error, StreamError::Overloaded(_)));
                }
                Err(error) => return Err(stream_error(error)),
            }
        }
    }
}

impl RoutedModel {
    async fn choose(
        &self,
        mut request: ChatRequest,
        context: RequestContext,
    ) -> Result<RoutingAdvice, GenerateError> {
        let token_ids = self.preprocessor.prompt(&mut request, &self.tokenizing, context.deadline).await?;
        let avoided = self.unavailable();
        let wanted = |excluded| self.route_request(&request, &token_ids, excluded, None);
        let advised = match self.router.advise(&wanted(&avoided)).await {
            Err(GenerateError::NoWorkers) if !avoided.is_empty() => self.router.advise(&wanted(&[])).await,
            advised => advised,
        };
        let WorkerRank { worker_id, dp_rank } = advised?;
        Ok(RoutingAdvice { worker_id, dp_rank, token_ids })
    }

    async fn open(
        &self,
        worker_id: u64,
        request: OutgoingRequest,
    ) -> Result<(Incarnation, ResponseStream), StreamError> {
        let gone = || StreamError::Unavailable("the worker has just left".to_owned());
        let instance = self.client.instance(WorkerId::from_bits(worker_id)).ok_or_else(gone)?;
        match self.client.open(&instance, request).await {
            Ok(stream) => Ok((instance.incarnation(), stream)),
            Err(error) => Err(error.stream_error().cloned().unwrap_or_else(gone)),
        }
    }

    /// Workers that are in doubt or failed just now: they are asked when nobody else is left.
    fn unavailable(&self) -> Vec<u64> {
        let instances = self.client.instances();
        let doubtful =
            |instance: &&Instance| instance.state() != InstanceState::Draining && !instance.is_available();
        instances.iter().filter(doubtful).map(|instance| instance.worker_id().get()).collect()
    }

    fn route_request<'a>(
        &'a self,
        request: &'a ChatRequest,
        tokens: &'a [u32],
        excluded: &'a [u64],
        deadline: Option<Instant>,
    ) -> RouteRequest<'a> {
        let adapter = self.adapter.as_deref();
        RouteRequest {
            tokens,
            seed: HashSeed::new(adapter, request.cache_salt.as_deref()),
            adapter: adapter.map(|name| WantedAdapter { name, is_registered: true }),
            pinned_worker: request.worker_id,
            pinned_rank: request.dp_rank,
            expected_output_tokens: request.expected_output_tokens,
            allowed: None,
            excluded,
            session: request.routing.session.as_ref(),
            priority_jump: request.routing.priority_jump,
            strict_priority: request.routing.strict_priority,
            policy_class: request.routing.policy_class.as_deref(),
            deadline,
            required_taints: &request.routing.required_taints,
            preferred_taints: &request.routing.preferred_taints,
            overrides: RouterOverrides::default(),
        }
    }
}

/// What a request says of its place among others, for a router behind this one.
fn place_hints(wishes: &RoutingWishes) -> RoutingHints {
    let RoutingWishes { required_taints, preferred_taints, session, .. } = wishes;
    let is_constrained = !required_taints.is_empty() || !preferred_taints.is_empty();
    let text = |text: &str| text.to_owned();
    RoutingHints {
        routing_constraints: is_constrained.then(|| RoutingConstraints {
            required_taints: required_taints.clone(),
            preferred_taints: preferred_taints.iter().cloned().collect(),
        }),
        priority: (wishes.priority_jump > 0.0).then_some(wishes.priority_jump),
        strict_priority: (wishes.strict_priority > 0).then_some(wishes.strict_priority),
        policy_class: wishes.policy_class.as_deref().map(text),
        session_id: session.as_ref().map(|session| text(&session.id)),
        parent_session_id: session.as_ref().and_then(|session| session.parent.as_deref().map(text)),
        session_final: session.as_ref().is_some_and(|session| session.is_final),
        ..RoutingHints::default()
    }
}

fn time_left(deadline: Option<Instant>) -> Result<Option<Duration>, GenerateError> {
    let Some(deadline) = deadline else { return Ok(None) };
    match deadline.checked_duration_since(Instant::now()) {
        Some(left) if !left.is_zero() => Ok(Some(left)),
        _ => Err(GenerateError::DeadlineExceeded),
    }
}
