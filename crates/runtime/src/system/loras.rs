//! `/v1/loras`: which adapters the engine has, loading and unloading them. A face of the engine routes `list_loras`,
//! `load_lora` and `unload_lora`, whose answers say by `status` whether it went well.

use super::respond::{Answer, Site, error, json_answer, no_route, read_json};
use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};
use serde_json::{Value, json};
use std::net::IpAddr;

const PATH: &str = "/v1/loras";

/// What a path names.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum LoraTarget {
    /// All adapters.
    All,
    /// The adapter of a name, which may hold slashes.
    One(String),
}

impl LoraTarget {
    /// None for paths of something else.
    pub(super) fn of(path: &str) -> Option<Self> {
        match path.strip_prefix(PATH)? {
            "" | "/" => Some(Self::All),
            rest => Some(Self::One(percent_decoded(rest.strip_prefix('/')?)?)),
        }
    }
}

/// The text that a part of a path stands for; none if it is no text.
fn percent_decoded(part: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(part.len());
    let mut rest = part.as_bytes();
    while let [first, after @ ..] = rest {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (digits, after) = after.split_at_checked(2)?;
        let digit = |byte: u8| char::from(byte).to_digit(16);
        bytes.push((digit(digits[0])? << 4 | digit(digits[1])?) as u8);
        rest = after;
    }
    String::from_utf8(bytes).ok()
}

impl Site {
    pub(super) async fn loras(&self, peer: IpAddr, target: LoraTarget, request: Request<Incoming>) -> Answer {
        let (route, name) = match (request.method(), target) {
            (&Method::GET, LoraTarget::All) => ("list_loras", None),
            (&Method::POST, LoraTarget::All) => ("load_lora", None),
            (&Method::DELETE, LoraTarget::One(name)) => ("unload_lora", Some(name)),
            (_, LoraTarget::All) => {
                return error(StatusCode::METHOD_NOT_ALLOWED, "Method not allowed", "use GET or POST");
            }
            (_, LoraTarget::One(_)) => {
                return error(StatusCode::METHOD_NOT_ALLOWED, "Method not allowed", "use DELETE");
            }
        };
        if let Some(refusal) = self.refusal(peer, route, &request) {
            return refusal;
        }
        let body = match (route, name) {
            (_, Some(name)) => json!({ "lora_name": name }),
            ("load_lora", None) => match read_json(request).await {
                Ok(body) if is_load(&body) => body,
                Ok(_) => {
                    let form = "give {\"lora_name\": name, \"source\": {\"uri\": uri}}";
                    return error(StatusCode::BAD_REQUEST, "Invalid body", form);
                }
                Err(answer) => return *answer,
            },
            _ => json!({}),
        };
        let Some(call) = self.state.routes().call(route, || body) else { return no_route(route) };
        match call.await {
            Ok(answer) if answer["status"] == "error" => {
                json_answer(StatusCode::INTERNAL_SERVER_ERROR, &answer)
            }
            Ok(answer) => json_answer(StatusCode::OK, &answer),
            Err(message) => {
                let answer = json!({ "status": "error", "message": message });
                json_answer(StatusCode::INTERNAL_SERVER_ERROR, &answer)
            }
        }
    }
}

fn is_load(body: &Value) -> bool {
    body["lora_name"].is_string() && body["source"]["uri"].is_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_paths_may_hold_slashes_and_escapes() {
        let one = |name: &str| Some(LoraTarget::One(name.to_owned()));
        for (path, target) in [
            ("/v1/loras", Some(LoraTarget::All)),
            ("/v1/loras/", Some(LoraTarget::All)),
            ("/v1/loras/org/sql", one("org/sql")),
            ("/v1/loras/a%20b%2Fc%C3%A9", one("a b/c\u{e9}")),
            ("/v1/loras/100%", None),
            ("/v1/loras/%zz", None),
            ("/v1/loras/%ff", None),
            ("/v1/lorasX", None),
            ("/v1/models", None),
        ] {
            assert_eq!(LoraTarget::of(path), target, "{path}");
        }
    }
}
