//! From bytes to a checked request.

use serde::Deserialize;
use serde_ignored::Path;
use serde_json::error::Category;

use crate::{ChatCompletionRequest, RequestError, validate::validate_chat};

/// Names of unknown fields that an error repeats at most: the text comes from outside.
const MAX_NAMED_FIELDS: usize = 32;
/// Bytes of each such name.
const MAX_NAME_BYTES: usize = 128;

/// What to do with fields at the root of a request that nobody knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnknownFields {
    /// An error that names them.
    Refuse,
    /// Pass over them.
    Ignore,
}

/// Reads and checks a chat request. Unknown keys within messages and options are passed over; unknown keys of
/// `nvext` are always an error.
pub fn parse_chat_request(
    body: &[u8],
    unknown: UnknownFields,
) -> Result<ChatCompletionRequest, RequestError> {
    let mut fields = Vec::new();
    let mut nvext_keys = Vec::new();
    let mut json = serde_json::Deserializer::from_slice(body);
    let parsed =
        serde_ignored::deserialize(&mut json, |path| note_ignored(&path, &mut fields, &mut nvext_keys));
    let request: ChatCompletionRequest = match parsed {
        Ok(request) => request,
        Err(error) => return Err(describe(body, &error)),
    };
    json.end().map_err(|error| RequestError::Syntax(error.to_string()))?;
    if !fields.is_empty() && unknown == UnknownFields::Refuse {
        return Err(RequestError::UnknownFields(fields));
    }
    if !nvext_keys.is_empty() {
        return Err(RequestError::UnknownNvextKeys(nvext_keys));
    }
    validate_chat(&request)?;
    Ok(request)
}

fn note_ignored(path: &Path<'_>, fields: &mut Vec<String>, nvext_keys: &mut Vec<String>) {
    let Path::Map { parent, key } = path else { return };
    let names = match parent {
        Path::Root => fields,
        Path::Some { parent: Path::Map { parent: Path::Root, key } } if key == "nvext" => nvext_keys,
        _ => return,
    };
    if names.len() < MAX_NAMED_FIELDS {
        let mut end = key.len().min(MAX_NAME_BYTES);
        while !key.is_char_boundary(end) {
            end -= 1;
        }
        names.push(key[..end].to_owned());
    }
}

/// Reads the body again, now with an eye on where the reader is: good requests don't pay for it.
fn describe(body: &[u8], error: &serde_json::Error) -> RequestError {
    if error.classify() != Category::Data {
        return RequestError::Syntax(error.to_string());
    }
    let mut json = serde_json::Deserializer::from_slice(body);
    let mut track = serde_path_to_error::Track::new();
    let again =
        ChatCompletionRequest::deserialize(serde_path_to_error::Deserializer::new(&mut json, &mut track));
    let path = track.path().to_string();
    let message = match again {
        Ok(_) => error.to_string(),
        Err(error) => error.to_string(),
    };
    let path = match path.as_str() {
        "." | "?" => missing_field(&message).unwrap_or_default(),
        _ => path,
    };
    RequestError::Shape { path, message }
}

fn missing_field(message: &str) -> Option<String> {
    let (name, _) = message.strip_prefix("missing field `")?.split_once('`')?;
    Some(name.to_owned())
}

#[cfg(test)]
mod tests;
