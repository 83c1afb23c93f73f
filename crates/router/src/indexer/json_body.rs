//! Bodies in and errors out.

use axum::{
    body::Body,
    http::{Response, StatusCode, header},
    response::IntoResponse,
};
use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::json;

/// The largest body: a query of a million tokens has about seven million bytes.
pub(super) const MAX_BODY: usize = 8 << 20;
/// Longer bodies are parsed, and their prompts hashed, in the blocking pool.
pub(super) const INLINE_BODY: usize = 64 << 10;

/// An answer that says what is wrong.
pub(super) fn error(status: StatusCode, message: impl Into<String>) -> Response<Body> {
    (status, axum::Json(json!({"error": message.into()}))).into_response()
}

/// `{"status":"ok"}`.
pub(super) fn ok(status: StatusCode) -> Response<Body> {
    (status, axum::Json(json!({"status": "ok"}))).into_response()
}

/// A JSON answer.
pub(super) fn answer(value: &impl Serialize) -> Response<Body> {
    match serde_json::to_vec(value) {
        Ok(bytes) => ([(header::CONTENT_TYPE, "application/json")], bytes).into_response(),
        Err(failure) => error(StatusCode::INTERNAL_SERVER_ERROR, failure.to_string()),
    }
}

/// The whole body, or the answer that refuses it.
pub(super) async fn read(body: Body) -> Result<Bytes, Box<Response<Body>>> {
    match Limited::new(body, MAX_BODY).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(failure) if failure.is::<http_body_util::LengthLimitError>() => Err(Box::new(error(
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the body has more than {MAX_BODY} bytes"),
        ))),
        Err(failure) => Err(Box::new(error(StatusCode::BAD_REQUEST, failure.to_string()))),
    }
}

/// Reads JSON: 400 for what is none, 422 for what is another thing.
pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Box<Response<Body>>> {
    serde_json::from_slice(bytes).map_err(|failure| {
        Box::new(if failure.is_data() {
            error(
                StatusCode::UNPROCESSABLE_ENTITY,
                format!("Failed to deserialize the JSON body into the target type: {failure}"),
            )
        } else {
            error(StatusCode::BAD_REQUEST, format!("Failed to parse the request body as JSON: {failure}"))
        })
    })
}
