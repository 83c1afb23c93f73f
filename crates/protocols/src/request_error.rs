//! What is wrong with a request, in words for its author.

use crate::nvext::NVEXT_KEYS;

/// Why a request's body is refused. The messages are for the client and name the field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// Not JSON.
    #[error("Failed to parse the request body as JSON: {0}")]
    Syntax(String),
    /// JSON of another shape.
    #[error("Failed to deserialize the request body: {}{message}", prefix(path))]
    Shape {
        /// The field, as in `messages[0].content`; empty for the body itself.
        path: String,
        /// What is wrong with it.
        message: String,
    },
    /// Fields that nobody knows.
    #[error("Unsupported parameter(s): {}", quoted(.0))]
    UnknownFields(Vec<String>),
    /// Keys of `nvext` that nobody knows.
    #[error("Unknown nvext parameter(s): {}; accepted are: {}", quoted(.0), NVEXT_KEYS.join(", "))]
    UnknownNvextKeys(Vec<String>),
    /// A value out of its range.
    #[error("Validation: {param}: {message}")]
    Invalid {
        /// The field.
        param: String,
        /// What is wrong with it.
        message: String,
    },
    /// Something valid that this server doesn't do.
    #[error("Not implemented: {param}: {message}")]
    NotServed {
        /// The field.
        param: String,
        /// What is not done.
        message: String,
    },
}

impl RequestError {
    /// The HTTP status: 400, or 501 for what is valid but not served.
    pub fn status(&self) -> u16 {
        match self {
            Self::NotServed { .. } => 501,
            _ => 400,
        }
    }

    /// The field at fault, where there is one.
    pub fn param(&self) -> Option<&str> {
        match self {
            Self::Syntax(_) => None,
            Self::Shape { path, .. } => (!path.is_empty()).then_some(path.as_str()),
            Self::UnknownFields(names) | Self::UnknownNvextKeys(names) => names.first().map(String::as_str),
            Self::Invalid { param, .. } | Self::NotServed { param, .. } => Some(param),
        }
    }

    pub(crate) fn invalid(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Invalid { param: param.into(), message: message.into() }
    }

    pub(crate) fn not_served(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self::NotServed { param: param.into(), message: message.into() }
    }
}

fn prefix(path: &str) -> String {
    if path.is_empty() { String::new() } else { format!("{path}: ") }
}

fn quoted(names: &[String]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}
