//! Requests into pools, and what goes with them.

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use dynamo_engine_api::{LatencyTargets, decode_request, encode_request};
use dynamo_kv_router::KvQueryAnswer;
use dynamo_runtime::{
    Client, TaskScope,
    client::ClientError,
    metrics::IntCounter,
    request_plane::{Handler, IncomingRequest, OutgoingRequest, Responder, ResponseStream, StreamError},
};

use super::{grid::Axis, pool::PoolSet};
use crate::{
    own_hints::forget_own,
    relay::{Ended, Upstream, relay},
};

/// The application code of a request that makes no sense.
const INVALID_REQUEST: u16 = 400;

/// What the sides of a grid are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// Prompt tokens, whether called `isl` or `context_length`.
    Length,
    /// To the first token.
    Ttft,
    /// Between tokens.
    Itl,
}

/// The values of a request along the sides of a grid: its own, else the default, else the middle.
pub(super) fn values(
    sides: &[Side],
    axes: &[Axis],
    tokens: usize,
    asked: LatencyTargets,
    defaults: LatencyTargets,
) -> Vec<f64> {
    let value = |(side, axis): (&Side, &Axis)| match side {
        Side::Length => tokens as f64,
        Side::Ttft => asked.ttft_target.or(defaults.ttft_target).unwrap_or_else(|| axis.middle()),
        Side::Itl => asked.itl_target.or(defaults.itl_target).unwrap_or_else(|| axis.middle()),
    };
    sides.iter().zip(axes).map(value).collect()
}

/// Serves requests by sending them to a pool.
pub(super) struct PoolHandler {
    pub(super) pools: Arc<PoolSet>,
    pub(super) sides: &'static [Side],
    pub(super) defaults: LatencyTargets,
    pub(super) failed: IntCounter,
    /// This router's own id, which who sends a request here may have put into its hints.
    pub(super) worker_id: u64,
    pub(super) scope: TaskScope,
}

/// An answer of another process.
struct Passed(ResponseStream);

impl Upstream for Passed {
    fn stream(&mut self) -> &mut ResponseStream {
        &mut self.0
    }

    fn on_items(&mut self, _: usize) {}

    fn on_failure(&mut self, _: &StreamError) {}
}

impl Handler for PoolHandler {
    fn handle(&self, request: IncomingRequest, responder: Responder) {
        if !self.pools.has_routers() {
            // Refused before it is accepted, so that it may go elsewhere.
            self.failed.inc();
            return responder.fail(StreamError::Unavailable("no pool has a router".to_owned()));
        }
        let (pools, sides, defaults) = (self.pools.clone(), self.sides, self.defaults);
        let (failed, scope, own_id) = (self.failed.clone(), self.scope.clone(), self.worker_id);
        self.scope.spawn("pool-request", async move {
            let mut request = request;
            let payload = request.payload.clone();
            // Long prompts take a while.
            let read = scope.spawn_blocking("decode", move || read(&payload, own_id));
            let (tokens, asked, changed) = match read.await.unwrap_or_else(|error| Err(error.to_string())) {
                Ok(read) => read,
                Err(message) => {
                    failed.inc();
                    return responder.fail(StreamError::Application { code: INVALID_REQUEST, message });
                }
            };
            if let Some(changed) = changed {
                request.payload = changed;
            }
            let values = values(sides, pools.grid().axes(), tokens, asked, defaults);
            let ended =
                pass_on(
                    request,
                    responder,
                    &scope,
                    |request| async move { pools.send(&values, request).await },
                );
            if ended.await != Ended::Finished {
                failed.inc();
            }
        });
    }
}

/// The length and targets of a request; and the request anew if its hints name this router, which is no worker of a pool.
fn read(payload: &Bytes, own_id: u64) -> Result<(usize, LatencyTargets, Option<Bytes>), String> {
    let mut request = decode_request(payload).map_err(|error| error.to_string())?;
    let (tokens, targets) = (request.token_ids.len(), request.router);
    if !forget_own(&mut request, own_id) {
        return Ok((tokens, targets, None));
    }
    let mut changed = Vec::with_capacity(payload.len());
    encode_request(&request, &mut changed);
    Ok((tokens, targets, Some(changed.into())))
}

/// Serves requests by sending them as they are to whoever serves another endpoint.
pub(super) struct ForwardHandler {
    pub(super) client: Client,
    pub(super) scope: TaskScope,
}

impl Handler for ForwardHandler {
    fn handle(&self, request: IncomingRequest, responder: Responder) {
        let (client, scope) = (self.client.clone(), self.scope.clone());
        self.scope.spawn("forward", async move {
            let send = |request| async move {
                match client.round_robin(request).await {
                    Ok(opened) => Ok(opened.stream),
                    Err(ClientError::Failed(error) | ClientError::Refused { last: error, .. }) => Err(error),
                    Err(error) => Err(StreamError::Unavailable(error.to_string())),
                }
            };
            pass_on(request, responder, &scope, send).await;
        });
    }
}

/// Opens a stream elsewhere and passes its answer on.
async fn pass_on<Sending>(
    request: IncomingRequest,
    responder: Responder,
    scope: &TaskScope,
    send: impl FnOnce(OutgoingRequest) -> Sending,
) -> Ended
where
    Sending: Future<Output = Result<ResponseStream, StreamError>>,
{
    let IncomingRequest { id, payload, deadline, metadata, .. } = request;
    let time_left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
    let cancelled = Arc::new(tokio::sync::Notify::new());
    let hook = cancelled.clone();
    responder.on_cancel(move |_| hook.notify_one());
    let opened = tokio::select! {
        opened = send(OutgoingRequest { id, payload, time_left, metadata }) => opened,
        () = cancelled.notified() => return Ended::Abandoned,
        () = scope.cancelled() => Err(StreamError::Unavailable("the router is shutting down".to_owned())),
    };
    match opened {
        Ok(stream) => relay(&mut Passed(stream), responder, scope).await,
        Err(error) => {
            responder.fail(error.clone());
            Ended::Failed(error)
        }
    }
}

/// Answers whoever asks what is cached here: nothing is.
pub(super) struct NoCacheHandler;

impl Handler for NoCacheHandler {
    fn handle(&self, _: IncomingRequest, mut responder: Responder) {
        let nothing = KvQueryAnswer::TreeDump { events: Vec::new(), last_event_id: 0 };
        match rmp_serde::to_vec_named(&nothing) {
            Ok(bytes) => {
                responder.push(&bytes);
                responder.finish();
            }
            Err(error) => responder.fail(StreamError::Application { code: 500, message: error.to_string() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_is_the_requests_or_the_default_or_the_middle() {
        let axis = |min, max| Axis { min, max, resolution: 2 };
        let axes = [axis(0.0, 100.0), axis(0.0, 1000.0), axis(10.0, 50.0)];
        let sides = [Side::Length, Side::Ttft, Side::Itl];
        let targets = |ttft_target, itl_target| LatencyTargets { ttft_target, itl_target };
        let of = |asked, defaults| values(&sides, &axes, 70, asked, defaults);
        let none = targets(None, None);
        assert_eq!(of(none, none), [70.0, 500.0, 30.0]);
        assert_eq!(of(targets(Some(9.0), None), targets(Some(1.0), Some(2.0))), [70.0, 9.0, 2.0]);
    }
}
