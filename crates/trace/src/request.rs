//! The bytes of a request.

use crate::{error::BenchError, target::Target, workload::Workload};

/// Everything of a request that does not change from one to the next.
#[derive(Clone, Debug)]
pub(crate) struct RequestTemplate {
    head: Vec<u8>,
    before_prompt: Vec<u8>,
    after_prompt: Vec<u8>,
}

/// What goes into the template besides the target.
pub(crate) struct RequestOptions<'a> {
    pub(crate) model: &'a str,
    pub(crate) headers: &'a [String],
    pub(crate) extra_body: Option<&'a str>,
    pub(crate) ignore_eos: bool,
    pub(crate) worker_ids: bool,
}

impl RequestTemplate {
    pub(crate) fn new(target: &Target, options: &RequestOptions<'_>) -> Result<Self, BenchError> {
        let mut head = format!(
            "POST {}/v1/chat/completions HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\n\
             Accept: text/event-stream\r\n",
            target.base,
            target.authority(),
        );
        for header in options.headers {
            head.push_str(&header_line(header)?);
        }
        head.push_str("Content-Length: ");
        let model = serde_json::Value::from(options.model);
        let mut after = format!(
            "\"}}],\"model\":{model},\"stream\":true,\"stream_options\":{{\"include_usage\":true}}{}{}",
            if options.ignore_eos { ",\"ignore_eos\":true" } else { "" },
            if options.worker_ids { ",\"nvext\":{\"extra_fields\":[\"worker_id\"]}" } else { "" },
        );
        if let Some(extra) = options.extra_body {
            let extra: serde_json::Map<String, serde_json::Value> = serde_json::from_str(extra)
                .map_err(|e| BenchError::flag("--extra-body", format!("no JSON object: {e}")))?;
            for (key, value) in extra {
                after.push_str(&format!(",{}:{value}", serde_json::Value::from(key)));
            }
        }
        after.push_str(",\"max_tokens\":");
        Ok(Self {
            head: head.into_bytes(),
            before_prompt: b"{\"messages\":[{\"role\":\"user\",\"content\":\"".to_vec(),
            after_prompt: after.into_bytes(),
        })
    }

    /// Writes request `index` to `out` (cleared first); `body` is scratch space.
    pub(crate) fn write(
        &self,
        workload: &Workload,
        index: u64,
        tokens: u32,
        body: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) {
        body.clear();
        out.clear();
        body.extend_from_slice(&self.before_prompt);
        workload.write_prompt(index, body);
        body.extend_from_slice(&self.after_prompt);
        push_number(body, u64::from(tokens));
        body.push(b'}');
        out.extend_from_slice(&self.head);
        push_number(out, body.len() as u64);
        out.extend_from_slice(b"\r\n\r\n");
        out.extend_from_slice(body);
    }
}

/// A GET of `path` below the target's base.
pub(crate) fn get_request(target: &Target, path: &str, headers: &[String]) -> Result<Vec<u8>, BenchError> {
    let mut head = format!("GET {}{path} HTTP/1.1\r\nHost: {}\r\n", target.base, target.authority());
    for header in headers {
        head.push_str(&header_line(header)?);
    }
    head.push_str("\r\n");
    Ok(head.into_bytes())
}

fn header_line(header: &str) -> Result<String, BenchError> {
    let bad = || BenchError::flag("--header", format!("{header:?} is not of the form \"Name: value\""));
    let (name, value) = header.split_once(':').ok_or_else(bad)?;
    let value = value.trim();
    let token = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if name.is_empty() || !name.chars().all(token) || value.chars().any(char::is_control) {
        return Err(bad());
    }
    Ok(format!("{name}: {value}\r\n"))
}

fn push_number(out: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::Synthetic;

    fn template(headers: &[&str], extra_body: Option<&str>) -> Result<RequestTemplate, BenchError> {
        let headers: Vec<String> = headers.iter().map(|h| (*h).to_owned()).collect();
        let options = RequestOptions {
            model: "a \"b\"",
            headers: &headers,
            extra_body,
            ignore_eos: true,
            worker_ids: true,
        };
        RequestTemplate::new(&"http://h:1/x".parse().unwrap(), &options)
    }

    #[test]
    fn a_request_is_well_formed() {
        let workload = Workload::Synthetic(Synthetic {
            seed: 1,
            words: 5,
            shared_words: 0,
            groups: 1,
            distinct: 0,
            output_tokens: 10,
        });
        let (mut body, mut out) = (Vec::new(), Vec::new());
        let template = template(&["authorization: Bearer k"], Some("{\"temperature\":0.5}")).unwrap();
        template.write(&workload, 3, 120, &mut body, &mut out);
        let text = String::from_utf8(out).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("POST /x/v1/chat/completions HTTP/1.1\r\nHost: h:1\r\n"), "{head}");
        assert!(head.contains("\r\nauthorization: Bearer k\r\n"));
        assert!(head.ends_with(&format!("Content-Length: {}", body.len())));
        let body: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(body["model"], "a \"b\"");
        assert_eq!(body["max_tokens"], 120);
        assert_eq!(body["ignore_eos"], true);
        assert_eq!(body["stream_options"]["include_usage"], true);
        assert_eq!(body["nvext"]["extra_fields"][0], "worker_id");
        assert_eq!(body["temperature"], 0.5);
        assert_eq!(body["messages"][0]["content"].as_str().unwrap().split_whitespace().count(), 5);
    }

    #[test]
    fn bad_headers_and_bodies_are_refused() {
        assert!(template(&["nothing"], None).is_err());
        assert!(template(&["a b: c"], None).is_err());
        assert!(template(&["a: b\r\nc: d"], None).is_err());
        assert!(template(&[], Some("[1]")).is_err());
    }
}
