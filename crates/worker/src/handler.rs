//! From the request plane into the engine and back.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, Ordering},
};
use std::time::Instant;

use dynamo_engine_api::{
    AbortReason, Engine, EngineOutput, FinishReason, OutputSink, Refused, RequestKey, SinkState, Submission,
    decode_request, encode_output,
};
use dynamo_runtime::request_plane::{
    CancelReason, Handler, IncomingRequest, PushState, Responder, StreamError,
};

use dynamo_llm::UNKNOWN_ADAPTER;

use crate::{LoadedAdapters, metrics::EndpointMetrics};

/// The request plane's application code of a request that this worker can't make sense of.
pub const INVALID_REQUEST: u16 = 400;
/// The application code of a fault of the worker's.
pub const INTERNAL: u16 = 500;

/// The kind of error of an engine's own.
const GENERATE: &str = "generate";

pub(crate) fn failure(code: u16, message: impl Into<String>) -> StreamError {
    StreamError::Application { code, message: message.into() }
}

/// Serves one engine at one endpoint.
pub struct GenerateHandler {
    engine: Arc<dyn Engine>,
    metrics: EndpointMetrics,
    next_key: AtomicU64,
    /// Absent: the engine judges by itself.
    adapters: Option<Arc<LoadedAdapters>>,
}

impl GenerateHandler {
    /// Requests go to `engine`; `metrics` are the endpoint's.
    pub fn new(engine: Arc<dyn Engine>, metrics: EndpointMetrics) -> Self {
        Self { engine, metrics, next_key: AtomicU64::new(1), adapters: None }
    }

    /// Refuses requests for other adapters than these.
    pub fn with_adapters(self, adapters: Arc<LoadedAdapters>) -> Self {
        Self { adapters: Some(adapters), ..self }
    }

    /// Why a request is refused for its adapter, if it is.
    fn adapter_refusal(&self, adapter: Option<&str>) -> Option<StreamError> {
        let name = adapter.filter(|name| !name.is_empty())?;
        let lacks = |adapters: &Arc<LoadedAdapters>| !adapters.contains(name);
        let lacks = self.adapters.as_ref().is_some_and(lacks);
        lacks.then(|| failure(UNKNOWN_ADAPTER, format!("this worker does not have the adapter {name}")))
    }
}

impl Handler for GenerateHandler {
    fn handle(&self, request: IncomingRequest, responder: Responder) {
        self.metrics.started(request.payload.len());
        let decoded = match decode_request(&request.payload) {
            Ok(decoded) => decoded,
            Err(error) => {
                self.metrics.failed("deserialization");
                self.metrics.ended(Instant::now());
                tracing::warn!(request_id = %request.id, %error, "refused a request that does not decode");
                return responder.fail(failure(INVALID_REQUEST, error.to_string()));
            }
        };
        if let Some(refusal) = self.adapter_refusal(decoded.routing.lora_name.as_deref()) {
            self.metrics.failed(GENERATE);
            self.metrics.ended(Instant::now());
            tracing::debug!(request_id = %request.id, %refusal, "request refused");
            return responder.fail(refusal);
        }
        let key = RequestKey(self.next_key.fetch_add(1, Ordering::Relaxed));
        tracing::debug!(
            request_id = %request.id,
            prompt_tokens = decoded.token_ids.len(),
            dp_rank = decoded.routing.dp_rank,
            "request accepted"
        );
        // The engine holds the sink, which holds the hook: the hook must not hold the engine.
        let engine = Arc::downgrade(&self.engine);
        let (metrics, id) = (self.metrics.clone(), request.id.clone());
        // A cancel that comes before the engine knows the request aborts nothing: it is looked at again after.
        let cancelled = Arc::new(AtomicBool::new(false));
        let hook = cancelled.clone();
        responder.on_cancel(move |reason| {
            tracing::debug!(request_id = %id, ?reason, "request cancelled");
            metrics.cancelled();
            hook.store(true, Ordering::SeqCst);
            if let Some(engine) = engine.upgrade() {
                engine.abort(key, abort_reason(&reason));
            }
        });
        self.engine.submit(Submission {
            key,
            dp_rank: decoded.routing.dp_rank.unwrap_or(0),
            request: decoded,
            sink: Box::new(PlaneSink::new(responder, self.metrics.clone())),
        });
        if cancelled.load(Ordering::SeqCst) {
            self.engine.abort(key, AbortReason::Cancelled);
        }
    }
}

fn abort_reason(reason: &CancelReason) -> AbortReason {
    match reason {
        CancelReason::SlowReader => AbortReason::SlowReader,
        CancelReason::DeadlineExceeded => AbortReason::DeadlineExceeded,
        CancelReason::Shutdown => AbortReason::Shutdown,
        _ => AbortReason::Cancelled,
    }
}

/// An engine's way back over a stream of the request plane.
struct PlaneSink {
    responder: Option<Responder>,
    scratch: Vec<u8>,
    finished: bool,
    began: Instant,
    bytes: u64,
    metrics: EndpointMetrics,
}

impl PlaneSink {
    fn new(responder: Responder, metrics: EndpointMetrics) -> Self {
        Self {
            responder: Some(responder),
            scratch: Vec::with_capacity(16),
            finished: false,
            began: Instant::now(),
            bytes: 0,
            metrics,
        }
    }
}

impl OutputSink for PlaneSink {
    fn push(&mut self, output: &EngineOutput) -> SinkState {
        let Some(responder) = &mut self.responder else { return SinkState::Closed };
        self.scratch.clear();
        encode_output(output, &mut self.scratch);
        self.bytes += self.scratch.len() as u64;
        if let Some(reason) = &output.finish_reason {
            self.finished = true;
            if let FinishReason::Error(error) = reason {
                tracing::warn!(error, "the engine failed a request");
                self.metrics.failed(GENERATE);
            }
        }
        match responder.push(&self.scratch) {
            PushState::Open => SinkState::Open,
            PushState::Closed => SinkState::Closed,
        }
    }

    fn flush(&mut self) {
        if self.finished {
            if let Some(responder) = self.responder.take() {
                responder.finish();
            }
        } else if let Some(responder) = &mut self.responder {
            responder.flush();
        }
    }

    fn refuse(&mut self, refused: Refused) {
        let Some(responder) = self.responder.take() else { return };
        tracing::debug!(%refused, "request refused");
        self.metrics.failed(GENERATE);
        responder.fail(match refused {
            Refused::Overloaded(why) => StreamError::Overloaded(why),
            Refused::Unavailable(why) => StreamError::Unavailable(why),
            Refused::Invalid(why) => failure(INVALID_REQUEST, why),
        });
    }
}

impl Drop for PlaneSink {
    fn drop(&mut self) {
        // A responder that is still here after a finish was pushed but never flushed; without one, dropping it tells
        // the peer that the stream is incomplete.
        if self.finished
            && let Some(responder) = self.responder.take()
        {
            responder.finish();
        }
        self.metrics.responded(self.bytes);
        self.metrics.ended(self.began);
    }
}

#[cfg(test)]
mod tests;
