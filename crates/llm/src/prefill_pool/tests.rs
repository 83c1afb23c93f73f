//! A frontend's models beside workers whose engines are the tests.

use std::{
    future::poll_fn,
    time::{Duration, Instant},
};

use dynamo_engine_api::{
    CompletionUsage, EngineOutput, FinishReason, PreprocessedRequest, PromptTokensDetails, decode_request,
    encode_output,
};
use dynamo_kv_router::DisaggPolicy;
use dynamo_runtime::{
    Announcement, DistributedRuntime, Metrics, ModelRecord, Record, Runtime, RuntimeConfig, ServedEndpoint,
    WorkerId,
    request_plane::{IncomingRequest, Responder, StreamError},
};
use serde_json::{Value, json};

use super::*;
use crate::{
    Catalog, CatalogConfig, ChatModel, ChatRequest, GenerateError, Generation, ModelCard, ModelCatalog as _,
    Progress, RequestContext, RouterConfig, RouterMode, card::tests::tiny_card,
};

/// Long enough for a busy machine; no test waits it out.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a prefill worker does with a prompt.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Prefill {
    Computes,
    ForgetsParams,
    Breaks,
    TakesBack,
    Refuses,
    /// And never answers.
    Takes,
}

/// What a worker was asked, and answers that it owes.
#[derive(Default)]
struct Engine {
    asked: Mutex<Vec<PreprocessedRequest>>,
    owed: Mutex<Vec<Responder>>,
}

impl Engine {
    fn asked(&self) -> Vec<PreprocessedRequest> {
        self.asked.lock().clone()
    }
}

struct Worker {
    engine: Arc<Engine>,
    _registered: (DistributedRuntime, ServedEndpoint, Announcement),
}

/// Members of one deployment in this process.
struct Deployment(RuntimeConfig);

impl Deployment {
    fn new() -> Self {
        Self(RuntimeConfig::process_local())
    }

    async fn member(&self, worker_id: Option<u64>) -> DistributedRuntime {
        let mut config = self.0.clone();
        config.metrics = Metrics::new();
        config.worker_id = worker_id.map(WorkerId::from_bits);
        let runtime = Runtime::with_limits(tokio::runtime::Handle::current(), config.shutdown);
        DistributedRuntime::new(runtime, config).await.unwrap()
    }

    async fn worker(
        &self,
        worker_id: u64,
        component: &str,
        card: &ModelCard,
        answer: impl Fn(Responder) -> Option<Responder> + Send + Sync + 'static,
    ) -> Worker {
        let runtime = self.member(Some(worker_id)).await;
        let endpoint = EndpointId::new("ns", component, "generate");
        let engine = Arc::<Engine>::default();
        let own = engine.clone();
        let handler = move |request: IncomingRequest, responder: Responder| {
            own.asked.lock().push(decode_request(&request.payload).unwrap());
            own.owed.lock().extend(answer(responder));
        };
        let served = runtime.serve_endpoint(endpoint.clone(), Arc::new(handler)).await.unwrap();
        let card = serde_json::to_value(card).unwrap();
        let record = ModelRecord { endpoint, incarnation: runtime.incarnation(), card, suffix: None };
        let model = runtime.announce(Record::Model(record)).await.unwrap();
        Worker { engine, _registered: (runtime, served, model) }
    }

    /// One that answers with a token.
    async fn decode(&self, worker_id: u64) -> Worker {
        self.worker(worker_id, "backend", &tiny_card(), |responder| {
            push_all(responder, last(Some(16), None));
            None
        })
        .await
    }

    async fn prefill(&self, worker_id: u64, behaviour: Prefill) -> Worker {
        self.prefill_at(worker_id, "prefill", behaviour).await
    }

    async fn prefill_at(&self, worker_id: u64, component: &str, behaviour: Prefill) -> Worker {
        self.worker(worker_id, component, &prefill_card(), move |responder| {
            match behaviour {
                Prefill::Computes => push_all(responder, last(Some(4), Some(params(worker_id)))),
                Prefill::ForgetsParams => push_all(responder, last(None, None)),
                Prefill::Breaks => push_all(responder, broken(FinishReason::Error("no".into()))),
                Prefill::TakesBack => push_all(responder, broken(FinishReason::Cancelled)),
                Prefill::Refuses => responder.fail(StreamError::Overloaded("full".into())),
                Prefill::Takes => return Some(responder),
            }
            None
        })
        .await
    }

    async fn frontend(&self, disagg: DisaggConfig) -> Frontend {
        let runtime = self.member(None).await;
        let cache = tempfile::tempdir().unwrap();
        let config = CatalogConfig {
            router: RouterConfig::of(RouterMode::LeastLoaded),
            disagg,
            namespace: None,
            file_cache: cache.path().to_owned(),
            tokenizing: 1,
        };
        let catalog = Catalog::start(&runtime, config).unwrap();
        Frontend { catalog, runtime, _cache: cache }
    }
}

fn prefill_card() -> ModelCard {
    ModelCard { model_type: "Prefill".into(), ..tiny_card() }
}

fn params(worker_id: u64) -> Value {
    json!({"kv_transfer_params": {"do_remote_prefill": true, "remote_engine_id": worker_id.to_string()}})
}

fn last(cached_tokens: Option<u32>, disaggregated_params: Option<Value>) -> EngineOutput {
    let details = cached_tokens.map(|cached_tokens| PromptTokensDetails { cached_tokens });
    EngineOutput {
        token_ids: [5].into_iter().collect(),
        finish_reason: Some(FinishReason::Length),
        completion_usage: Some(CompletionUsage {
            prompt_tokens_details: details,
            ..CompletionUsage::default()
        }),
        disaggregated_params,
        ..EngineOutput::default()
    }
}

fn broken(reason: FinishReason) -> EngineOutput {
    EngineOutput { finish_reason: Some(reason), ..EngineOutput::default() }
}

fn push_all(mut responder: Responder, output: EngineOutput) {
    let mut item = Vec::new();
    encode_output(&output, &mut item);
    responder.push(&item);
    responder.finish();
}

struct Frontend {
    catalog: Catalog,
    runtime: DistributedRuntime,
    _cache: tempfile::TempDir,
}

/// A prompt of 40 tokens.
fn prompt() -> ChatRequest {
    ChatRequest { token_data: Some((0..40).collect()), max_tokens: Some(9), ..ChatRequest::default() }
}

fn context() -> RequestContext {
    RequestContext { id: Arc::from("r"), deadline: None, traceparent: None }
}

impl Frontend {
    async fn model(&self) -> Arc<dyn ChatModel> {
        until("the model is ready", || self.catalog.get("tiny-llama").is_some()).await;
        self.catalog.get("tiny-llama").unwrap()
    }

    async fn ask(&self, request: ChatRequest) -> Result<Box<dyn Generation>, GenerateError> {
        let mut generation = self.model().await.chat(request, context()).await?;
        loop {
            match poll_fn(|cx| generation.poll_deltas(cx, &mut |_| {})).await {
                Progress::More => {}
                Progress::End => return Ok(generation),
                Progress::Failed(error) => return Err(error),
            }
        }
    }

    /// Where a prompt would be computed first.
    async fn advice(&self) -> Option<(u64, u32)> {
        self.model().await.advise(prompt(), context()).await.unwrap().prefill
    }

    /// Waits until prompts go to that worker first, or to none.
    async fn until_prefill(&self, worker_id: Option<u64>) {
        let deadline = Instant::now() + PATIENCE;
        while self.advice().await.map(|(worker_id, _)| worker_id) != worker_id {
            assert!(Instant::now() < deadline, "{worker_id:?} is not asked first");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    fn counted(&self, by: &str) -> u64 {
        let mut text = String::new();
        self.runtime.metrics().encode_text(&mut text);
        let series = format!("dynamo_kvrouter_prefills_total{{by=\"{by}\",model=\"tiny-llama\"}} ");
        text.lines().find_map(|line| line.strip_prefix(&series)?.parse().ok()).unwrap_or(0)
    }
}

async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

const ENFORCED: DisaggConfig = DisaggConfig { enforce: true, conditional: None };

#[tokio::test]
async fn a_prefill_worker_computes_the_prompt_and_another_answers() {
    let deployment = Deployment::new();
    let (decode, prefill) = (deployment.decode(7).await, deployment.prefill(8, Prefill::Computes).await);
    let frontend = deployment.frontend(DisaggConfig::default()).await;
    frontend.until_prefill(Some(8)).await;
    let generation = frontend.ask(prompt()).await.unwrap();
    assert_eq!((generation.prefill_worker(), generation.worker()), (Some((8, 0)), Some((7, 0))));
    let usage = generation.usage();
    assert_eq!((usage.prompt_tokens, usage.completion_tokens), (40, 1));
    assert_eq!(usage.prompt_tokens_details.unwrap().cached_tokens, 4, "what the prefill worker found");
    let (first, then) = (&prefill.engine.asked()[0], &decode.engine.asked()[0]);
    assert_eq!((first.stop_conditions.max_tokens, &first.prefill_result), (Some(1), &None));
    assert_eq!((first.routing.worker_id, first.token_ids.len()), (Some(8), 40));
    assert_eq!((then.stop_conditions.max_tokens, then.routing.worker_id), (Some(9), Some(7)));
    assert_eq!(then.prefill_result.as_ref().unwrap().disaggregated_params, params(8));
    let overrides = then.router_config_override.as_ref().unwrap();
    assert_eq!(
        (overrides.overlap_score_credit, overrides.assume_kv_reuse, overrides.track_prefill_tokens),
        (Some(0.0), Some(false), Some(false))
    );
    assert_eq!((frontend.counted("prefill"), frontend.counted("fallback")), (1, 0));
}

#[tokio::test]
async fn where_no_prefill_worker_does_the_one_that_answers_computes_the_prompt() {
    for behaviour in [Prefill::ForgetsParams, Prefill::Breaks, Prefill::TakesBack, Prefill::Refuses] {
        let deployment = Deployment::new();
        let (decode, prefill) = (deployment.decode(7).await, deployment.prefill(8, behaviour).await);
        let frontend = deployment.frontend(DisaggConfig::default()).await;
        frontend.until_prefill(Some(8)).await;
        let generation = frontend.ask(prompt()).await.unwrap();
        assert_eq!(generation.prefill_worker(), Some((7, 0)), "{behaviour:?}");
        assert_eq!(generation.usage().prompt_tokens_details.unwrap().cached_tokens, 16);
        assert_eq!((prefill.engine.asked().len(), frontend.counted("fallback")), (1, 1));
        let asked = decode.engine.asked();
        assert_eq!((&asked[0].prefill_result, &asked[0].router_config_override), (&None, &None));
        let strict = deployment.frontend(ENFORCED).await;
        strict.until_prefill(Some(8)).await;
        let error = strict.ask(prompt()).await.err().unwrap();
        let is_told = match behaviour {
            Prefill::Refuses => matches!(error, GenerateError::Overloaded),
            Prefill::TakesBack => matches!(error, GenerateError::Cancelled),
            _ => matches!(error, GenerateError::Engine(_)),
        };
        assert!(is_told && decode.engine.asked().len() == 1, "{behaviour:?}: {error}");
    }
}

#[tokio::test]
async fn a_model_without_prefill_workers_is_as_any_other_unless_it_must_have_some() {
    let deployment = Deployment::new();
    let _decode = deployment.decode(7).await;
    let frontend = deployment.frontend(DisaggConfig::default()).await;
    assert_eq!(frontend.ask(prompt()).await.unwrap().prefill_worker(), Some((7, 0)));
    assert_eq!((frontend.advice().await, frontend.counted("decode")), (None, 0));
    let strict = deployment.frontend(ENFORCED).await;
    assert!(matches!(strict.ask(prompt()).await.err(), Some(GenerateError::NoWorkers)));
    // One comes, goes, and another one comes elsewhere.
    let first = deployment.prefill(8, Prefill::Computes).await;
    strict.until_prefill(Some(8)).await;
    drop(first);
    strict.until_prefill(None).await;
    let _second = deployment.prefill_at(9, "prefill-b", Prefill::Computes).await;
    strict.until_prefill(Some(9)).await;
    assert_eq!(strict.ask(prompt()).await.unwrap().prefill_worker(), Some((9, 0)));
}

#[tokio::test]
async fn a_prefill_worker_of_another_tokenizer_is_not_used_and_makes_no_model() {
    let deployment = Deployment::new();
    let mut other = prefill_card();
    other.tokenizer.checksum = "blake3:00".into();
    let foreign = deployment.worker(8, "prefill", &other, |_| None).await;
    let frontend = deployment.frontend(DisaggConfig::default()).await;
    until("its name is known", || frontend.catalog.is_known("tiny-llama")).await;
    assert!(frontend.catalog.get("tiny-llama").is_none() && frontend.catalog.list().is_empty());
    let _decode = deployment.decode(7).await;
    assert_eq!(frontend.ask(prompt()).await.unwrap().prefill_worker(), Some((7, 0)));
    let _own = deployment.prefill(9, Prefill::Computes).await;
    frontend.until_prefill(Some(9)).await;
    for _ in 0..3 {
        assert_eq!(frontend.ask(prompt()).await.unwrap().prefill_worker(), Some((9, 0)));
    }
    assert!(foreign.engine.asked().is_empty());
}

#[tokio::test]
async fn a_request_may_name_its_prefill_worker() {
    let deployment = Deployment::new();
    let _workers = [
        deployment.decode(7).await,
        deployment.prefill(8, Prefill::Computes).await,
        deployment.prefill(9, Prefill::Computes).await,
    ];
    let frontend = deployment.frontend(DisaggConfig::default()).await;
    for worker_id in [8, 9, 8] {
        let named = || ChatRequest { prefill_worker_id: Some(worker_id), ..prompt() };
        let deadline = Instant::now() + PATIENCE;
        // At first it may not be there yet.
        while frontend.ask(named()).await.unwrap().prefill_worker() != Some((worker_id, 0)) {
            assert!(Instant::now() < deadline);
        }
    }
    // One that is not there is no reason to fail.
    let gone = ChatRequest { prefill_worker_id: Some(99), ..prompt() };
    assert_eq!(frontend.ask(gone).await.unwrap().prefill_worker(), Some((7, 0)));
}

#[tokio::test]
async fn while_prefill_workers_are_busy_prompts_stay_where_that_counts() {
    let deployment = Deployment::new();
    let (_decode, prefill) = (deployment.decode(7).await, deployment.prefill(8, Prefill::Takes).await);
    let conditional = ConditionalDisagg {
        policy: DisaggPolicy::PrefillLoad,
        prefill_busy_threshold: Some(0.0),
        ..ConditionalDisagg::REFERENCE
    };
    let frontend = deployment.frontend(DisaggConfig { enforce: false, conditional: Some(conditional) }).await;
    frontend.until_prefill(Some(8)).await;
    let model = frontend.model().await;
    let mut first = model.chat(prompt(), context());
    tokio::select! {
        _ = &mut first => panic!("nobody answered"),
        () = until("the prefill worker computes", || prefill.engine.asked().len() == 1) => {}
    }
    assert_eq!(frontend.ask(prompt()).await.unwrap().prefill_worker(), Some((7, 0)));
    assert_eq!((frontend.counted("decode"), frontend.counted("prefill")), (1, 0));
    // Who does not wait any more takes the prompt back there too.
    let owed = prefill.engine.owed.lock().pop().unwrap();
    let (cancelled, is_cancelled) = tokio::sync::oneshot::channel();
    let cancelled = Mutex::new(Some(cancelled));
    owed.on_cancel(move |_| {
        cancelled.lock().take().map(|cancelled| cancelled.send(()));
    });
    drop(first);
    tokio::time::timeout(PATIENCE, is_cancelled).await.expect("it is taken back").unwrap();
    frontend.until_prefill(Some(8)).await;
}
