//! The id of a request: the caller's, or ours.

use std::sync::Arc;

use axum::http::{HeaderMap, HeaderValue};

/// The header that carries it, both ways.
pub(crate) const HEADER: &str = "x-request-id";
/// The incumbent's header; taken only if it holds a UUID.
const UUID_HEADER: &str = "x-dynamo-request-id";
/// Bytes of a caller's id.
const MAX_BYTES: usize = 128;

/// Names a request in every answer, log line and error.
#[derive(Clone, Debug)]
pub(crate) struct RequestId(pub(crate) Arc<str>);

impl RequestId {
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let own = || {
            let mut text = uuid::Uuid::encode_buffer();
            Self(Arc::from(&*uuid::Uuid::new_v4().hyphenated().encode_lower(&mut text)))
        };
        if let Some(id) = headers.get(HEADER).and_then(printable) {
            return Self(id.into());
        }
        match headers.get(UUID_HEADER).and_then(printable) {
            Some(id) if uuid::Uuid::try_parse(id).is_ok() => Self(id.into()),
            _ => own(),
        }
    }

    pub(crate) fn header(&self) -> HeaderValue {
        HeaderValue::from_str(&self.0).expect("an id is printable ASCII")
    }
}

fn printable(value: &HeaderValue) -> Option<&str> {
    let text = std::str::from_utf8(value.as_bytes()).ok()?;
    let fits =
        !text.is_empty() && text.len() <= MAX_BYTES && text.bytes().all(|byte| byte.is_ascii_graphic());
    fits.then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(name: &'static str, value: &str) -> String {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_str(value).unwrap());
        RequestId::of(&headers).0.to_string()
    }

    #[test]
    fn a_callers_id_is_kept_if_it_is_printable_and_short() {
        assert_eq!(id(HEADER, "abc-1"), "abc-1");
        assert_eq!(id(HEADER, &"x".repeat(128)), "x".repeat(128));
        for value in ["", "a b", "ä", &"x".repeat(129)] {
            let ours = id(HEADER, value);
            assert!(uuid::Uuid::try_parse(&ours).is_ok(), "{value}: {ours}");
        }
    }

    #[test]
    fn the_older_header_must_hold_a_uuid() {
        let uuid = "67e55044-10b1-426f-9247-bb680e5fe0c8";
        assert_eq!(id(UUID_HEADER, uuid), uuid);
        assert_ne!(id(UUID_HEADER, "abc"), "abc");
    }
}
