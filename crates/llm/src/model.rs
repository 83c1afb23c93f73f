//! One model: template, tokenizer, router and workers behind one call.

mod prefill;

use std::{sync::Arc, time::Instant};

use dynamo_engine_api::{RoutingConstraints, RoutingHints};
use dynamo_kv_router::{BusyThresholds, ConfigError, RouterOverrides, WorkerRank};
use dynamo_runtime::Client;
use dynamo_tokens::HashSeed;
pub(crate) use prefill::Prefilled;
use tokio::sync::Semaphore;

use crate::{
    AdviceFuture, ChatModel, ChatRequest, GenerateError, Generation, GenerationFuture, ModelInfo,
    RequestContext, RoutingAdvice, RoutingWishes,
    dispatch::{self, Envelope, SendError, unavailable},
    generation::RoutedGeneration,
    prefill_pool::PrefillPool,
    preprocess::Preprocessor,
    router::{RouteRequest, Router, WantedAdapter},
};

/// A model whose workers are found through discovery.
pub(crate) struct RoutedModel {
    pub(crate) info: ModelInfo,
    pub(crate) preprocessor: Arc<Preprocessor>,
    pub(crate) router: Arc<Router>,
    pub(crate) client: Client,
    /// Those who compute prompts first, if there are any.
    pub(crate) prefill: Arc<PrefillPool>,
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
        let merged = self.router.merge_busy_thresholds(given)?;
        self.prefill.set_busy_thresholds(merged);
        Ok(merged)
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
            prefill: self.prefill.clone(),
            tokenizing: self.tokenizing.clone(),
            adapter: Some(adapter),
        }
    }

    async fn start(
        &self,
        mut request: ChatRequest,
        context: RequestContext,
    ) -> Result<Box<dyn Generation>, GenerateError> {
        let deadline = context.deadline;
        let tokens = self.preprocessor.prompt(&mut request, &self.tokenizing, deadline).await?;
        let prompt_tokens = u32::try_from(tokens.len()).unwrap_or(u32::MAX);
        let hints = RoutingHints {
            expected_output_tokens: request.expected_output_tokens,
            lora_name: self.adapter.as_deref().map(str::to_owned),
            cache_salt: request.cache_salt.clone(),
            ..place_hints(&request.routing)
        };
        let mut engine_request = self.preprocessor.engine_request(&request, tokens, hints);
        engine_request.model.clone_from(&self.info.id);
        let decoder = self.preprocessor.decoder(&mut request, &engine_request.token_ids);
        let traceparent = context.traceparent.iter().map(|value| ("traceparent".to_owned(), value.clone()));
        let envelope = Envelope { id: context.id, deadline, metadata: traceparent.collect() };
        let prefilled = self.prefill(&request, &engine_request, &envelope).await?;
        let mut wishes = self.wishes(&request, deadline);
        if let Some(prefilled) = &prefilled {
            engine_request.prefill_result = Some(prefilled.result.clone());
            engine_request.router_config_override = Some(prefill::answer_overrides());
            wishes.overrides = prefill::ANSWER_OVERRIDES;
        }
        let accepted = dispatch::send(&self.router, &self.client, &mut engine_request, &wishes, &envelope)
            .await
            .map_err(SendError::told)?;
        let client = self.client.clone();
        Ok(Box::new(RoutedGeneration::new(client, accepted, decoder, prompt_tokens, prefilled)))
    }

    async fn choose(
        &self,
        mut request: ChatRequest,
        context: RequestContext,
    ) -> Result<RoutingAdvice, GenerateError> {
        let token_ids = self.preprocessor.prompt(&mut request, &self.tokenizing, context.deadline).await?;
        let prefill = self.advise_prefill(&request, &token_ids).await;
        let avoided = unavailable(&self.client);
        let overrides =
            if prefill.is_some() { prefill::ANSWER_OVERRIDES } else { RouterOverrides::default() };
        let wishes = RouteRequest { tokens: &token_ids, overrides, ..self.wishes(&request, None) };
        let advised = match self.router.advise(&RouteRequest { excluded: &avoided, ..wishes }).await {
            Err(GenerateError::NoWorkers) if !avoided.is_empty() => self.router.advise(&wishes).await,
            advised => advised,
        };
        let WorkerRank { worker_id, dp_rank } = advised?;
        let prefill = prefill.map(|worker| (worker.worker_id, worker.dp_rank));
        Ok(RoutingAdvice { worker_id, dp_rank, prefill, token_ids })
    }

    /// What a request asks of the router of those who answer, its tokens apart.
    fn wishes<'a>(&'a self, request: &'a ChatRequest, deadline: Option<Instant>) -> RouteRequest<'a> {
        let adapter = self.adapter.as_deref();
        RouteRequest {
            tokens: &[],
            seed: HashSeed::new(adapter, request.cache_salt.as_deref()),
            adapter: adapter.map(|name| WantedAdapter { name, is_registered: true }),
            pinned_worker: request.worker_id,
            pinned_rank: request.dp_rank,
            expected_output_tokens: request.expected_output_tokens,
            allowed: None,
            excluded: &[],
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
