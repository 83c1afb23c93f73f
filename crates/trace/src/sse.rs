//! Counting the events of a chat completion stream without parsing them.
//!
//! Every `data:` line but `[DONE]` is an event. Whether it carries text is seen from `"content":"` followed by anything but
//! a quote; the offset where the last event had it is tried first, because the events of a stream look alike. Only
//! the last event is kept, to read the usage from when the stream is over.

use std::sync::LazyLock;

use memchr::memmem::Finder;
use serde::Deserialize;

/// The longest line kept when an event is cut between reads, and the longest last event.
const MAX_LINE_BYTES: usize = 1 << 20;
/// How much of an error event is kept for the report.
const MAX_ERROR_BYTES: usize = 400;

static CONTENT: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"content\":"));
static WORKER: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(b"worker_id\":"));

/// What the usage says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u64,
    /// Tokens of the answer.
    pub completion_tokens: u64,
    #[serde(default, deserialize_with = "nullable")]
    prompt_tokens_details: Details,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
struct Details {
    #[serde(default, deserialize_with = "nullable")]
    cached_tokens: u64,
}

fn nullable<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(d: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(d)?.unwrap_or_default())
}

impl Usage {
    /// Tokens of the prompt that were found in a cache.
    #[must_use]
    pub fn cached_tokens(&self) -> u64 {
        self.prompt_tokens_details.cached_tokens
    }
}

/// Counts over the events of one stream.
#[derive(Debug, Default)]
pub struct EventScanner {
    /// Events, without `[DONE]`.
    pub events: u64,
    /// Events that carry text.
    pub content_events: u64,
    /// Whether `[DONE]` came.
    pub done: bool,
    /// The first error event, cut to a few hundred bytes.
    pub error: Option<String>,
    /// The worker that answered, if asked for and told.
    pub worker: Option<u64>,
    want_worker: bool,
    content_at: usize,
    carry: Vec<u8>,
    last: Vec<u8>,
    error_named: bool,
}

impl EventScanner {
    /// A scanner; `want_worker` makes it look for `nvext.worker_id` until it is found.
    #[must_use]
    pub fn new(want_worker: bool) -> Self {
        Self { want_worker, ..Self::default() }
    }

    /// Gets ready for the next stream; buffers are kept.
    pub fn reset(&mut self) {
        let (mut carry, mut last) = (std::mem::take(&mut self.carry), std::mem::take(&mut self.last));
        carry.clear();
        last.clear();
        let (want_worker, content_at) = (self.want_worker, self.content_at);
        *self = Self { want_worker, content_at, carry, last, ..Self::default() };
    }

    /// Takes the next bytes of the body, in any cutting.
    pub fn feed(&mut self, fragment: &[u8]) {
        let mut start = 0;
        for end in memchr::memchr_iter(b'\n', fragment) {
            let line = &fragment[start..end];
            start = end + 1;
            if self.carry.is_empty() {
                self.line(line);
            } else {
                let mut whole = std::mem::take(&mut self.carry);
                whole.extend_from_slice(line);
                self.line(&whole);
                whole.clear();
                self.carry = whole;
            }
        }
        let rest = &fragment[start..];
        if !rest.is_empty() && self.carry.len() + rest.len() <= MAX_LINE_BYTES {
            self.carry.extend_from_slice(rest);
        }
    }

    /// The usage in the last event.
    pub fn usage(&self) -> Option<Usage> {
        #[derive(Deserialize)]
        struct Last {
            usage: Option<Usage>,
        }
        serde_json::from_slice::<Last>(&self.last).ok()?.usage
    }

    fn line(&mut self, line: &[u8]) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        let Some(payload) = line.strip_prefix(b"data:") else {
            self.error_named |= line.starts_with(b"event:") && line[6..].trim_ascii() == b"error";
            return;
        };
        let payload = payload.strip_prefix(b" ").unwrap_or(payload);
        if payload == b"[DONE]" {
            self.done = true;
            return;
        }
        self.events += 1;
        if self.has_content(payload) {
            self.content_events += 1;
        }
        if (payload.starts_with(b"{\"error\"") || self.error_named) && self.error.is_none() {
            let text = &payload[..payload.len().min(MAX_ERROR_BYTES)];
            self.error = Some(String::from_utf8_lossy(text).into_owned());
        }
        if self.want_worker && self.worker.is_none() {
            self.worker = find_worker(payload);
        }
        self.last.clear();
        self.last.extend_from_slice(&payload[..payload.len().min(MAX_LINE_BYTES)]);
    }

    fn has_content(&mut self, payload: &[u8]) -> bool {
        let here = payload.get(self.content_at..).unwrap_or_default();
        if here.starts_with(b"content\":\"") {
            return here.get(10) != Some(&b'"');
        }
        let mut from = 0;
        while let Some(at) = CONTENT.find(&payload[from..]) {
            let at = from + at;
            from = at + 9;
            // A key, not the end of some text: those have a backslash before the quote.
            let value = payload[from..].trim_ascii_start();
            if value.first() == Some(&b'"') && value.get(1).is_some_and(|b| *b != b'"') {
                self.content_at = at;
                return true;
            }
        }
        false
    }
}

/// The worker in `"nvext": {"worker_id": 7}` or `{"worker_id": {"decode_worker_id": 7, …}}`, wherever it is in the event.
fn find_worker(payload: &[u8]) -> Option<u64> {
    #[derive(Deserialize)]
    struct Event {
        nvext: Option<Extension>,
    }
    #[derive(Deserialize)]
    struct Extension {
        worker_id: Option<Worker>,
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Worker {
        Plain(u64),
        Text(String),
        Roles { decode_worker_id: Option<u64>, prefill_worker_id: Option<u64> },
    }
    WORKER.find(payload)?;
    match serde_json::from_slice::<Event>(payload).ok()?.nvext?.worker_id? {
        Worker::Plain(id) => Some(id),
        Worker::Text(id) => id.parse().ok(),
        Worker::Roles { decode_worker_id, prefill_worker_id } => decode_worker_id.or(prefill_worker_id),
    }
}

#[cfg(test)]
mod tests;
