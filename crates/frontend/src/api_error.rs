//! The one table from errors to HTTP.

use std::borrow::Cow;

use axum::{
    body::Body,
    http::{HeaderValue, Response, StatusCode, header},
    response::IntoResponse,
};
use dynamo_llm::GenerateError;
use dynamo_protocols::{ErrorBody, NestedError, RequestError, StreamError};

/// Seconds after which a refused client may try again: long enough for a worker to finish something.
const RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

/// An error on its way to a client. The service adds the request's id when it writes the body.
#[derive(Clone, Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    message: Cow<'static, str>,
    param: Option<String>,
    code: Option<&'static str>,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, message: impl Into<Cow<'static, str>>) -> Self {
        Self { status, message: message.into(), param: None, code: None }
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    pub(crate) fn model_not_found(name: &str) -> Self {
        Self {
            param: Some("model".into()),
            code: Some("model_not_found"),
            ..Self::new(StatusCode::NOT_FOUND, format!("Model not found: `{name:.256}`"))
        }
    }

    pub(crate) fn model_not_ready(name: &str) -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("Model `{name:.256}` has no complete set of workers yet"),
        )
    }

    pub(crate) fn too_large(limit: u64) -> Self {
        let message = format!("The request body is over the limit of {limit} bytes");
        Self { code: Some("request_too_large"), ..Self::new(StatusCode::PAYLOAD_TOO_LARGE, message) }
    }

    /// What a failed generation is to the client; `overload_status` is the operator's choice.
    pub(crate) fn from_generate(error: &GenerateError, overload_status: StatusCode) -> Self {
        use GenerateError as E;
        let status = match error {
            E::PromptTooLong { .. } | E::Invalid { .. } | E::Template(_) => StatusCode::BAD_REQUEST,
            E::Overloaded => overload_status,
            E::NoWorkers | E::WorkerLost => StatusCode::SERVICE_UNAVAILABLE,
            E::QueueTimeout => StatusCode::TOO_MANY_REQUESTS,
            E::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
            E::Cancelled | E::SlowReader => client_closed(),
            E::Engine(_) | E::Internal(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let message: Cow<'static, str> = match error {
            // Their text is for the log.
            E::Engine(_) | E::Internal(_) => "The request failed because of an internal error".into(),
            E::PromptTooLong { .. } | E::Invalid { .. } | E::Template(_) => {
                format!("Validation: {error}").into()
            }
            other => capitalized(other.to_string()).into(),
        };
        let (param, code) = match error {
            E::PromptTooLong { .. } => (Some("messages".into()), Some("context_length_exceeded")),
            E::Template(_) => (Some("messages".into()), None),
            E::Invalid { param, .. } => (param.map(str::to_owned), None),
            _ => (None, None),
        };
        Self { status, message, param, code }
    }

    /// The event that says so in a stream that has begun.
    pub(crate) fn stream_error(&self) -> StreamError<'_> {
        StreamError { message: &self.message, kind: kind_of(self.status), code: self.status.as_u16() }
    }

    /// The whole response.
    pub(crate) fn render(&self, request_id: &str) -> Response<Body> {
        let kind = match self.status.as_u16() {
            499 => "Client Closed Request",
            529 => "Overloaded",
            _ => self.status.canonical_reason().unwrap_or("UnknownError"),
        };
        let body = ErrorBody {
            message: &self.message,
            kind,
            code: self.status.as_u16(),
            request_id,
            error: NestedError {
                message: &self.message,
                kind: kind_of(self.status),
                param: self.param.as_deref(),
                code: self.code,
            },
        };
        let bytes =
            serde_json::to_vec(&body).expect("a Vec takes all bytes, and these types have only string keys");
        let mut response = Response::new(Body::from(bytes));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if matches!(self.status.as_u16(), 429 | 503 | 529) {
            headers.insert(header::RETRY_AFTER, RETRY_AFTER);
        }
        response
    }
}

impl From<RequestError> for ApiError {
    fn from(error: RequestError) -> Self {
        let status = StatusCode::from_u16(error.status()).unwrap_or(StatusCode::BAD_REQUEST);
        let param = error.param().map(str::to_owned);
        Self { param, ..Self::new(status, error.to_string()) }
    }
}

/// Carries the error to the service, which renders it.
impl IntoResponse for ApiError {
    fn into_response(self) -> Response<Body> {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = self.status;
        response.extensions_mut().insert(self);
        response
    }
}

fn client_closed() -> StatusCode {
    StatusCode::from_u16(499).expect("499 is within the range of statuses")
}

/// OpenAI's name for the kind of an error.
fn kind_of(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        408 | 504 => "timeout_error",
        429 | 529 => "rate_limit_error",
        499 => "request_cancelled",
        501 => "not_implemented_error",
        503 => "service_unavailable",
        400..=498 => "invalid_request_error",
        _ => "internal_server_error",
    }
}

fn capitalized(mut text: String) -> String {
    if let Some(first) = text.get_mut(..1) {
        first.make_ascii_uppercase();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_of_ours_keep_their_text_to_themselves() {
        for error in [GenerateError::Engine("cuda at 0x7".into()), GenerateError::Internal("oops".into())] {
            let error = ApiError::from_generate(&error, StatusCode::SERVICE_UNAVAILABLE);
            assert_eq!(error.status(), StatusCode::INTERNAL_SERVER_ERROR);
            assert!(!error.message().contains("cuda") && !error.message().contains("oops"));
        }
    }

    #[test]
    fn statuses_follow_the_table() {
        for (error, status) in [
            (GenerateError::PromptTooLong { prompt_tokens: 9, context_length: 8 }, 400),
            (GenerateError::Invalid { param: Some("stop_token_ids"), message: "no".into() }, 400),
            (GenerateError::Template("no".into()), 400),
            (GenerateError::NoWorkers, 503),
            (GenerateError::Overloaded, 529),
            (GenerateError::QueueTimeout, 429),
            (GenerateError::WorkerLost, 503),
            (GenerateError::DeadlineExceeded, 504),
            (GenerateError::Cancelled, 499),
        ] {
            let mapped = ApiError::from_generate(&error, StatusCode::from_u16(529).unwrap());
            assert_eq!(mapped.status().as_u16(), status, "{error}");
        }
    }
}
