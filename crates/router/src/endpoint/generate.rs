//! `generate`: a request goes to the worker that the router chooses, and the answer comes back as it is.

use std::{sync::Arc, time::Instant};

use dynamo_engine_api::{PreprocessedRequest, decode_request};
use dynamo_llm::{EndpointRouter, RoutedStream};
use dynamo_runtime::{
    TaskScope,
    request_plane::{Handler, IncomingRequest, Responder, ResponseStream, StreamError},
};

use super::metrics::{AnswerMetrics, RouterMetrics};
use crate::{
    own_hints::forget_own,
    relay::{Ended, Upstream, relay},
};

/// The application code of a request that makes no sense.
pub(super) const INVALID_REQUEST: u16 = 400;
/// Longer requests are decoded in the blocking pool.
const INLINE_REQUEST: usize = 64 << 10;

/// Serves `generate`.
pub(super) struct GenerateHandler {
    pub(super) router: EndpointRouter,
    pub(super) metrics: RouterMetrics,
    /// This router's own id, which who sends a request here may have put into its hints.
    pub(super) worker_id: u64,
    pub(super) scope: TaskScope,
}

/// An answer that is counted.
struct Counted {
    stream: RoutedStream,
    metrics: AnswerMetrics,
}

impl Upstream for Counted {
    fn stream(&mut self) -> &mut ResponseStream {
        &mut self.stream.stream
    }

    fn on_items(&mut self, items: usize) {
        let now = Instant::now();
        self.stream.on_items(items, now);
        self.metrics.on_items(items, now);
    }

    fn on_failure(&mut self, error: &StreamError) {
        self.stream.on_failure(error);
    }
}

impl Handler for GenerateHandler {
    fn handle(&self, request: IncomingRequest, responder: Responder) {
        self.metrics.started.inc();
        if !self.router.has_workers() {
            // Refused before it is accepted, so that it may go to another router.
            self.metrics.failed.inc();
            return responder
                .fail(StreamError::Unavailable("no worker of this endpoint is known".to_owned()));
        }
        let (router, metrics, scope) = (self.router.clone(), self.metrics.clone(), self.scope.clone());
        let own_id = self.worker_id;
        self.scope.spawn("generate", async move {
            if serve(&router, &metrics, &scope, own_id, request, responder).await != Ended::Finished {
                metrics.failed.inc();
            }
        });
    }
}

async fn serve(
    router: &EndpointRouter,
    metrics: &RouterMetrics,
    scope: &TaskScope,
    own_id: u64,
    request: IncomingRequest,
    responder: Responder,
) -> Ended {
    let began = Instant::now();
    let fail = |responder: Responder, error: StreamError| {
        responder.fail(error.clone());
        Ended::Failed(error)
    };
    let IncomingRequest { id, payload, deadline, metadata, .. } = request;
    let decoded = if payload.len() <= INLINE_REQUEST {
        decode_request(&payload).map_err(|error| error.to_string())
    } else {
        let decoding = scope.spawn_blocking("decode", move || decode_request(&payload));
        match decoding.await {
            Ok(decoded) => decoded.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        }
    };
    let mut request: PreprocessedRequest = match decoded {
        Ok(decoded) => decoded,
        Err(message) => {
            return fail(responder, StreamError::Application { code: INVALID_REQUEST, message });
        }
    };
    forget_own(&mut request, own_id);
    let tokens = request.token_ids.len();
    let answer = AnswerMetrics::begin(metrics, began, tokens);
    let cancelled = Arc::new(tokio::sync::Notify::new());
    let hook = cancelled.clone();
    responder.on_cancel(move |_| hook.notify_one());
    let forwarding = router.forward(&mut request, id, deadline, metadata);
    let forwarded = tokio::select! {
        forwarded = forwarding => forwarded,
        () = cancelled.notified() => return Ended::Abandoned,
        () = scope.cancelled() => Err(StreamError::Unavailable("the router is shutting down".to_owned())),
    };
    match forwarded {
        Ok(stream) => {
            let overlap = stream.overlap_blocks() as usize * router.block_size().unwrap_or(0) as usize;
            answer.routed(overlap.min(tokens), tokens);
            relay(&mut Counted { stream, metrics: answer }, responder, scope).await
        }
        Err(error) => fail(responder, error),
    }
}
