//! How an error looks on the wire.

use serde::Serialize;

/// An error's body: the incumbent's flat fields, and the nested object that OpenAI's SDKs read.
#[derive(Clone, Debug, Serialize)]
pub struct ErrorBody<'a> {
    /// For people.
    pub message: &'a str,
    /// The status's phrase, as in `Bad Request`.
    #[serde(rename = "type")]
    pub kind: &'a str,
    /// The HTTP status.
    pub code: u16,
    /// The request's id, as in `x-request-id`.
    pub request_id: &'a str,
    /// The same in OpenAI's form.
    pub error: NestedError<'a>,
}

/// OpenAI's form of an error.
#[derive(Clone, Debug, Serialize)]
pub struct NestedError<'a> {
    /// For people.
    pub message: &'a str,
    /// One of OpenAI's types, as in `invalid_request_error`.
    #[serde(rename = "type")]
    pub kind: &'a str,
    /// The field at fault.
    pub param: Option<&'a str>,
    /// One of OpenAI's codes, as in `model_not_found`.
    pub code: Option<&'a str>,
}

/// The event that ends a broken stream.
#[derive(Clone, Debug, Serialize)]
pub struct StreamErrorEvent<'a> {
    /// It.
    pub error: StreamError<'a>,
}

/// What broke a stream.
#[derive(Clone, Debug, Serialize)]
pub struct StreamError<'a> {
    /// For people.
    pub message: &'a str,
    /// One of OpenAI's types.
    #[serde(rename = "type")]
    pub kind: &'a str,
    /// The HTTP status that it would have been.
    pub code: u16,
}
