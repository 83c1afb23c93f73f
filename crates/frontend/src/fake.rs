//! Scripted models behind a catalogue, for tests and benches.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use dynamo_engine_api::{CompletionUsage, FinishReason, PromptTokensDetails};
use dynamo_llm::{
    AdviceFuture, BusyThresholds, ChatModel, ChatRequest, Delta, GenerateError, Generation, GenerationFuture,
    InstanceInfo, ModelCatalog, ModelInfo, Progress, RequestContext, RouterConfigError, RoutingAdvice,
};
use parking_lot::Mutex;
use tokio::time::{Instant, Sleep, sleep};

/// A catalogue of scripted models.
pub struct FakeCatalog {
    models: Vec<Arc<FakeModel>>,
}

/// What a scripted model answers to every request.
#[derive(Clone, Debug)]
pub struct Script {
    /// The texts of the tokens, over and over, up to `tokens`.
    pub texts: Vec<String>,
    /// Tokens of an answer, unless the request's `max_tokens` is lower.
    pub tokens: u32,
    /// Tokens that one poll brings.
    pub per_poll: u32,
    /// When the next tokens are there.
    pub pace: Pace,
    /// How it ends.
    pub ending: ScriptEnding,
    /// Why there is no answer at all.
    pub refusal: Option<GenerateError>,
}

/// When the next tokens are there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    /// Always.
    Burst,
    /// After this time.
    Every(Duration),
    /// Never: silence before the first token.
    Silent,
}

/// How a scripted answer ends.
#[derive(Clone, Debug)]
pub enum ScriptEnding {
    /// With this reason.
    Finish(FinishReason),
    /// Broken off.
    Fail(GenerateError),
    /// Silently, never.
    Hang,
}

/// One scripted model.
pub struct FakeModel {
    info: ModelInfo,
    ready: bool,
    listed: bool,
    script: Script,
    busy: Mutex<BusyThresholds>,
    /// What was asked of it.
    pub record: Arc<Record>,
}

/// What was asked of a scripted model.
#[derive(Debug, Default)]
pub struct Record {
    started: AtomicUsize,
    dropped: AtomicUsize,
    last: Mutex<Option<(ChatRequest, RequestContext)>>,
}

impl Record {
    /// Answers begun.
    pub fn started(&self) -> usize {
        self.started.load(Ordering::SeqCst)
    }

    /// Answers that are gone, ended or not.
    pub fn dropped(&self) -> usize {
        self.dropped.load(Ordering::SeqCst)
    }

    /// The last request.
    pub fn last(&self) -> Option<(ChatRequest, RequestContext)> {
        self.last.lock().clone()
    }
}

impl Script {
    /// These texts, a token each, as fast as they are taken.
    pub fn of(texts: &[&str]) -> Self {
        Self {
            texts: texts.iter().map(|&text| text.to_owned()).collect(),
            tokens: u32::try_from(texts.len()).unwrap_or(u32::MAX),
            per_poll: 1,
            pace: Pace::Burst,
            ending: ScriptEnding::Finish(FinishReason::Stop),
            refusal: None,
        }
    }
}

impl FakeModel {
    /// A model of that name.
    pub fn new(name: &str, script: Script) -> Self {
        let info = ModelInfo {
            id: name.to_owned(),
            created: 1_700_000_000,
            context_length: 4096,
            kv_block_size: 16,
            total_kv_blocks: Some(1000),
            max_num_seqs: None,
            max_num_batched_tokens: None,
            migration_limit: 3,
        };
        let busy = Mutex::new(BusyThresholds::NONE);
        Self { info, ready: true, listed: true, script, busy, record: Arc::default() }
    }

    /// The same, listed but without workers.
    pub fn not_ready(self) -> Self {
        Self { ready: false, ..self }
    }

    /// The same, registered but not yet made ready.
    pub fn in_the_making(self) -> Self {
        Self { ready: false, listed: false, ..self }
    }
}

impl FakeCatalog {
    /// A catalogue of these.
    pub fn new(models: Vec<FakeModel>) -> Self {
        Self { models: models.into_iter().map(Arc::new).collect() }
    }
}

impl ModelCatalog for FakeCatalog {
    fn get(&self, name: &str) -> Option<Arc<dyn ChatModel>> {
        let model = self.models.iter().find(|model| model.info.id == name && model.ready)?;
        Some(model.clone())
    }

    fn is_known(&self, name: &str) -> bool {
        self.models.iter().any(|model| model.info.id == name)
    }

    fn list(&self) -> Vec<ModelInfo> {
        self.models.iter().filter(|model| model.listed).map(|model| model.info.clone()).collect()
    }

    fn instances(&self) -> Vec<InstanceInfo> {
        vec![InstanceInfo {
            namespace: "dynamo".into(),
            component: "backend".into(),
            endpoint: "generate".into(),
            instance_id: 7,
            address: "127.0.0.1:1/1/generate".into(),
        }]
    }
}

impl ChatModel for FakeModel {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn chat(self: Arc<Self>, request: ChatRequest, context: RequestContext) -> GenerationFuture {
        Box::pin(async move {
            let tokens = request.max_tokens.map_or(self.script.tokens, |max| max.min(self.script.tokens));
            let prompt_tokens = u32::try_from(request.messages.len()).unwrap_or(u32::MAX);
            *self.record.last.lock() = Some((request, context));
            if let Some(error) = self.script.refusal.clone() {
                return Err(error);
            }
            self.record.started.fetch_add(1, Ordering::SeqCst);
            let timer = match self.script.pace {
                Pace::Every(period) => Some(Box::pin(sleep(period))),
                _ => None,
            };
            let generation =
                FakeGeneration { model: self, tokens, prompt_tokens, sent: 0, timer, ended: false };
            Ok(Box::new(generation) as Box<dyn Generation>)
        })
    }

    fn advise(self: Arc<Self>, request: ChatRequest, context: RequestContext) -> AdviceFuture {
        Box::pin(async move {
            let worker_id = request.worker_id.unwrap_or(7);
            *self.record.last.lock() = Some((request, context));
            match self.script.refusal.clone() {
                Some(error) => Err(error),
                None => Ok(RoutingAdvice {
                    worker_id,
                    dp_rank: 0,
                    prefill: None,
                    token_ids: FAKE_PROMPT.to_vec(),
                }),
            }
        })
    }

    fn busy_thresholds(&self) -> BusyThresholds {
        *self.busy.lock()
    }

    fn merge_busy_thresholds(&self, given: BusyThresholds) -> Result<BusyThresholds, RouterConfigError> {
        let mut busy = self.busy.lock();
        let merged = busy.merged(given);
        merged.validate()?;
        *busy = merged;
        Ok(merged)
    }
}

/// The prompt that a scripted model says it was given.
const FAKE_PROMPT: [u32; 3] = [1, 2, 3];

struct FakeGeneration {
    model: Arc<FakeModel>,
    tokens: u32,
    prompt_tokens: u32,
    sent: u32,
    timer: Option<Pin<Box<Sleep>>>,
    ended: bool,
}

impl FakeGeneration {
    fn poll_pace(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match (self.model.script.pace, &mut self.timer) {
            (Pace::Silent, _) => Poll::Pending,
            (Pace::Every(period), Some(timer)) => timer.as_mut().poll(cx).map(|()| {
                timer.as_mut().reset(Instant::now() + period);
            }),
            _ => Poll::Ready(()),
        }
    }
}

impl Generation for FakeGeneration {
    fn poll_deltas(&mut self, cx: &mut Context<'_>, each: &mut dyn FnMut(Delta<'_>)) -> Poll<Progress> {
        assert!(!self.ended, "polled after its end");
        if self.sent < self.tokens {
            if self.poll_pace(cx).is_pending() {
                return Poll::Pending;
            }
            let script = &self.model.script;
            for _ in 0..script.per_poll.min(self.tokens - self.sent) {
                let text = &script.texts[self.sent as usize % script.texts.len()];
                self.sent += 1;
                each(Delta { index: 0, text, tokens: 1, finish_reason: None, stop_reason: None });
            }
            return Poll::Ready(Progress::More);
        }
        match self.model.script.ending.clone() {
            ScriptEnding::Hang => Poll::Pending,
            ScriptEnding::Fail(error) => {
                self.ended = true;
                Poll::Ready(Progress::Failed(error))
            }
            ScriptEnding::Finish(reason) => {
                self.ended = true;
                let finish_reason = Some(reason);
                each(Delta { index: 0, text: "", tokens: 0, finish_reason, stop_reason: None });
                Poll::Ready(Progress::End)
            }
        }
    }

    fn usage(&self) -> CompletionUsage {
        CompletionUsage {
            prompt_tokens: self.prompt_tokens,
            completion_tokens: self.sent,
            total_tokens: self.prompt_tokens + self.sent,
            prompt_tokens_details: Some(PromptTokensDetails { cached_tokens: 0 }),
        }
    }

    fn worker(&self) -> Option<(u64, u32)> {
        Some((7, 0))
    }
}

impl Drop for FakeGeneration {
    fn drop(&mut self) {
        self.model.record.dropped.fetch_add(1, Ordering::SeqCst);
    }
}
