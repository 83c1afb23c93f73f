//! `generate`: a request goes to the worker that the router chooses, and the answer comes back as it is.

use std::sync::Arc;

use dynamo_engine_api::{PreprocessedRequest, decode_request};
use dynamo_llm::EndpointRouter;
use dynamo_runtime::{
    TaskScope,
    request_plane::{Handler, IncomingRequest, Responder, StreamError},
};

use super::metrics::ServiceMetrics;
use crate::{
    own_hints::forget_own,
    relay::{Ended, relay},
};

/// The application code of a request that makes no sense.
pub(super) const INVALID_REQUEST: u16 = 400;
/// Longer requests are decoded in the blocking pool.
const INLINE_REQUEST: usize = 64 << 10;

/// Serves `generate`.
pub(super) struct GenerateHandler {
    pub(super) router: EndpointRouter,
    pub(super) metrics: ServiceMetrics,
    /// This router's own id, which who sends a request here may have put into its hints.
    pub(super) worker_id: u64,
    pub(super) scope: TaskScope,
}

impl Handler for GenerateHandler {
    fn handle(&self, request: IncomingRequest, responder: Responder) {
        if !self.router.has_workers() {
            // Refused before it is accepted, so that it may go to another router.
            self.metrics.failed.inc();
            return responder
                .fail(StreamError::Unavailable("no worker of this endpoint is known".to_owned()));
        }
        let (router, metrics, scope) = (self.router.clone(), self.metrics.clone(), self.scope.clone());
        let own_id = self.worker_id;
        self.scope.spawn("generate", async move {
            if serve(&router, &scope, own_id, request, responder).await != Ended::Finished {
                metrics.failed.inc();
            }
        });
    }
}

async fn serve(
    router: &EndpointRouter,
    scope: &TaskScope,
    own_id: u64,
    request: IncomingRequest,
    responder: Responder,
) -> Ended {
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
        Ok(mut stream) => relay(&mut stream, responder, scope).await,
        Err(error) => fail(responder, error),
    }
}
