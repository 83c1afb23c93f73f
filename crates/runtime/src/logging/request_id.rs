use std::sync::Arc;

/// The header that carries a request's id, both ways.
pub const REQUEST_ID_HEADER: &str = "x-request-id";

/// The longest id that is taken from a caller: longer ones would bloat every log line.
pub const MAX_REQUEST_ID_BYTES: usize = 128;

/// The caller's id if it is printable ASCII and of 1 to [`MAX_REQUEST_ID_BYTES`] bytes, else a new one (a random UUID).
pub fn request_id(from_caller: Option<&[u8]>) -> Arc<str> {
    let given = from_caller
        .filter(|id| (1..=MAX_REQUEST_ID_BYTES).contains(&id.len()))
        .filter(|id| id.iter().all(|byte| (0x20..0x7f).contains(byte)))
        .and_then(|id| std::str::from_utf8(id).ok());
    match given {
        Some(id) => id.into(),
        None => {
            uuid::Uuid::new_v4().hyphenated().encode_lower(&mut uuid::Uuid::encode_buffer()).to_owned().into()
        }
    }
}
