//! Reading a request's body within its limits.

use std::{
    pin::{Pin, pin},
    time::Duration,
};

use axum::{
    body::{Body, Bytes},
    http::{HeaderMap, StatusCode, header},
};
use bytes::BytesMut;
use http_body::Body as _;
use http_body_util::BodyExt;
use tokio::time::{Instant, timeout, timeout_at};

use crate::{
    api_error::ApiError,
    byte_budget::{ByteBudget, BytesHeld},
};

/// Bytes of a refused body that are read and thrown away, so that a client that sends first and reads later sees the
/// refusal instead of a reset connection.
const DRAIN_BYTES: u64 = 256 << 20;
/// Time for that.
const DRAIN_TIME: Duration = Duration::from_secs(20);
/// What a body's announced length may reserve before anything of it arrived.
const TRUSTED_CAPACITY: usize = 64 << 10;

/// Limits of one body.
#[derive(Clone, Debug)]
pub(crate) struct BodyLimits {
    pub(crate) bytes: u64,
    pub(crate) budget: ByteBudget,
    /// Between two pieces.
    pub(crate) timeout: Duration,
}

/// Reads all of a JSON body. The second part holds its share of the budget.
pub(crate) async fn read_json(
    headers: &HeaderMap,
    body: Body,
    limits: &BodyLimits,
) -> Result<(Bytes, BytesHeld), ApiError> {
    let mut body = body;
    let read = async {
        require_json(headers)?;
        read_all(Pin::new(&mut body), limits).await
    };
    match read.await {
        Ok(read) => Ok(read),
        Err(error) => {
            // A client that waits for `100 Continue` has sent nothing yet, and one that timed out is beyond help.
            if !headers.contains_key(header::EXPECT) && error.status() != StatusCode::REQUEST_TIMEOUT {
                drain(body).await;
            }
            Err(error)
        }
    }
}

/// Reads what is left of a body that nobody wants.
pub(crate) async fn drain(body: Body) {
    let mut body = pin!(body);
    let mut left = DRAIN_BYTES;
    let deadline = Instant::now() + DRAIN_TIME;
    while !body.is_end_stream() {
        let Ok(Some(Ok(frame))) = timeout_at(deadline, body.frame()).await else { return };
        let bytes = frame.data_ref().map_or(0, |data| data.len() as u64);
        match left.checked_sub(bytes) {
            Some(rest) => left = rest,
            None => return,
        }
    }
}

async fn read_all(mut body: Pin<&mut Body>, limits: &BodyLimits) -> Result<(Bytes, BytesHeld), ApiError> {
    let announced = body.size_hint().lower();
    if announced > limits.bytes {
        return Err(ApiError::too_large(limits.bytes));
    }
    // What is announced is not held yet: a client that sends nothing must not shut out others.
    let mut held = limits.budget.share();
    let refuse =
        |_| ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "Too many request bodies are held at the moment");
    // Most bodies come in one piece, which is not copied.
    let mut only = Bytes::new();
    let mut joined = BytesMut::new();
    loop {
        let frame = match timeout(limits.timeout, body.frame()).await {
            Err(_) => {
                return Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "The request body stopped arriving"));
            }
            Ok(None) => break,
            Ok(Some(Err(_))) => {
                return Err(ApiError::new(StatusCode::BAD_REQUEST, "The request body could not be read"));
            }
            Ok(Some(Ok(frame))) => frame,
        };
        let Ok(data) = frame.into_data() else { continue };
        let total = (only.len() + joined.len() + data.len()) as u64;
        if total > limits.bytes {
            return Err(ApiError::too_large(limits.bytes));
        }
        held.grow_to(total).map_err(refuse)?;
        if only.is_empty() && joined.is_empty() {
            only = data;
            continue;
        }
        if joined.is_empty() {
            joined.reserve(usize::try_from(announced).unwrap_or(usize::MAX).min(TRUSTED_CAPACITY));
            joined.extend_from_slice(&only);
            only = Bytes::new();
        }
        joined.extend_from_slice(&data);
    }
    Ok((if joined.is_empty() { only } else { joined.freeze() }, held))
}

fn require_json(headers: &HeaderMap) -> Result<(), ApiError> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let json = essence == "application/json"
        || essence.strip_prefix("application/").is_some_and(|rest| rest.len() > 5 && rest.ends_with("+json"));
    if json {
        return Ok(());
    }
    Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "The Content-Type must be application/json"))
}
