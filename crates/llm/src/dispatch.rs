//! Sends a request to a worker that takes it.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use dynamo_engine_api::{PreprocessedRequest, encode_request};
use dynamo_runtime::{
    Client, Incarnation, Instance, InstanceState, WorkerId,
    request_plane::{OutgoingRequest, ResponseStream, StreamError},
};

use crate::{
    GenerateError,
    generation::stream_error,
    retry::{Candidates, is_for_another},
    router::{Booking, RouteRequest, Router},
};

/// What goes with a request, whoever it is sent to.
pub(crate) struct Envelope {
    pub(crate) id: Arc<str>,
    /// When an answer is of no use any more.
    pub(crate) deadline: Option<Instant>,
    pub(crate) metadata: Vec<(String, String)>,
}

/// A request that a worker accepted.
pub(crate) struct Accepted {
    pub(crate) stream: ResponseStream,
    /// Who answers.
    pub(crate) incarnation: Incarnation,
    /// Its place in the worker's load.
    pub(crate) booking: Booking,
}

/// Why no worker accepted a request.
#[derive(Debug)]
pub(crate) enum SendError {
    /// There was nobody to send it to.
    Route(GenerateError),
    /// The one that it went to did not take it.
    Worker(StreamError),
}

impl SendError {
    /// What a client is told of it.
    pub(crate) fn told(self) -> GenerateError {
        match self {
            Self::Route(error) => error,
            Self::Worker(error) => stream_error(error),
        }
    }
}

/// Chooses a worker, sends the request there with the choice in its hints, and books it. A worker that refuses or is gone
/// before it accepts has done nothing: another one is asked, each at most once, unless `wishes` pin one. The tokens and the
/// excluded workers of `wishes` are not looked at.
pub(crate) async fn send(
    router: &Arc<Router>,
    client: &Client,
    request: &mut PreprocessedRequest,
    wishes: &RouteRequest<'_>,
    envelope: &Envelope,
) -> Result<Accepted, SendError> {
    let mut candidates = Candidates::avoiding(unavailable(client));
    loop {
        let wanted = RouteRequest { tokens: &request.token_ids, excluded: candidates.excluded(), ..*wishes };
        let booking = match router.route(&wanted).await {
            Ok(booking) => booking,
            Err(GenerateError::NoWorkers) if candidates.avoid_nobody() => continue,
            Err(GenerateError::NoWorkers) => return Err(SendError::Route(candidates.exhausted())),
            Err(error) => return Err(SendError::Route(error)),
        };
        let (worker_id, dp_rank) = booking.worker();
        request.routing.worker_id = Some(worker_id);
        request.routing.dp_rank = Some(dp_rank);
        request.routing.estimated_prefix_hit_blocks = Some(booking.overlap_blocks());
        // Token ids take two or three bytes each, the rest some hundred.
        let mut payload = Vec::with_capacity(request.token_ids.len() * 3 + 512);
        encode_request(request, &mut payload);
        let outgoing = OutgoingRequest {
            id: envelope.id.clone(),
            payload: Bytes::from(payload),
            time_left: time_left(envelope.deadline).map_err(SendError::Worker)?,
            metadata: envelope.metadata.clone(),
        };
        match open(client, worker_id, outgoing).await {
            Ok((incarnation, stream)) => return Ok(Accepted { stream, incarnation, booking }),
            Err(error) if is_for_another(&error) && wishes.pinned_worker.is_none() => {
                tracing::info!(request_id = %envelope.id, worker_id, %error, "asking another worker");
                candidates.refused_by(worker_id, matches!(error, StreamError::Overloaded(_)));
            }
            Err(error) => return Err(SendError::Worker(error)),
        }
    }
}

/// Workers that are in doubt or failed just now: they are asked when nobody else is left.
pub(crate) fn unavailable(client: &Client) -> Vec<u64> {
    let doubtful =
        |instance: &&Instance| instance.state() != InstanceState::Draining && !instance.is_available();
    client.instances().iter().filter(doubtful).map(|instance| instance.worker_id().get()).collect()
}

fn time_left(deadline: Option<Instant>) -> Result<Option<Duration>, StreamError> {
    let Some(deadline) = deadline else { return Ok(None) };
    match deadline.checked_duration_since(Instant::now()) {
        Some(left) if !left.is_zero() => Ok(Some(left)),
        _ => Err(StreamError::DeadlineExceeded),
    }
}

async fn open(
    client: &Client,
    worker_id: u64,
    request: OutgoingRequest,
) -> Result<(Incarnation, ResponseStream), StreamError> {
    let gone = || StreamError::Unavailable("the worker has just left".to_owned());
    let instance = client.instance(WorkerId::from_bits(worker_id)).ok_or_else(gone)?;
    match client.open(&instance, request).await {
        Ok(stream) => Ok((instance.incarnation(), stream)),
        Err(error) => Err(error.stream_error().cloned().unwrap_or_else(gone)),
    }
}
