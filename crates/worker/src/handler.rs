//! From the request plane into the engine and back.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
use std::time::Instant;

use dynamo_engine_api::{
    AbortReason, Engine, EngineOutput, OutputSink, RequestKey, SinkState, Submission, decode_request,
    encode_output,
};
use dynamo_runtime::request_plane::{
    CancelReason, Handler, IncomingRequest, PushState, Responder, StreamError,
};

use crate::metrics::EndpointMetrics;

/// The request plane's application code of a request that this worker can't make sense of.
pub const INVALID_REQUEST: u16 = 400;
/// The application code of a fault of the worker's.
pub const INTERNAL: u16 = 500;

pub(crate) fn failure(code: u16, message: impl Into<String>) -> StreamError {
    StreamError::Application { code, message: message.into() }
}

/// Serves one engine at one endpoint.
pub struct GenerateHandler {
    engine: Arc<dyn Engine>,
    metrics: EndpointMetrics,
    next_key: AtomicU64,
}

impl GenerateHandler {
    /// Requests go to `engine`; `metrics` are the endpoint's.
    pub fn new(engine: Arc<dyn Engine>, metrics: EndpointMetrics) -> Self {
        Self { engine, metrics, next_key: AtomicU64::new(1) }
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
        let key = RequestKey(self.next_key.fetch_add(1, Ordering::Relaxed));
        tracing::debug!(
            request_id = %request.id,
            prompt_tokens = decoded.token_ids.len(),
            dp_rank = decoded.routing.dp_rank,
            "request accepted"
        );
        let (engine, metrics, id) = (self.engine.clone(), self.metrics.clone(), request.id.clone());
        responder.on_cancel(move |reason| {
            tracing::debug!(request_id = %id, ?reason, "request cancelled");
            metrics.cancelled();
            engine.abort(key, abort_reason(&reason));
        });
        self.engine.submit(Submission {
            key,
            dp_rank: decoded.routing.dp_rank.unwrap_or(0),
            request: decoded,
            sink: Box::new(PlaneSink::new(responder, self.metrics.clone())),
        });
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
        self.finished |= output.finish_reason.is_some();
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
