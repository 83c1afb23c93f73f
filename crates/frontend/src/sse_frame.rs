//! Stream chunks as bytes: what is the same in every chunk is prepared once, and each delta is spliced in.

use bytes::BytesMut;
use dynamo_engine_api::{CompletionUsage, FinishReason};
use dynamo_protocols::{NvExtAnswer, StreamError, StreamErrorEvent};

use crate::{json_text::push_escaped, usage::public_usage};

const CONTENT: &[u8] = b"\"content\":\"";
const ROLE: &[u8] = b"\"role\":\"assistant\",";
const AFTER_TEXT: &[u8] = b"\"},\"logprobs\":null,\"finish_reason\":null}]}\n\n";
const DONE: &[u8] = b"data: [DONE]\n\n";

/// The chunks of one stream.
pub(crate) struct ChunkFrames {
    /// From `data: ` to `"delta":{"content":"`.
    prefix: Box<[u8]>,
    /// Bytes of `prefix` up to `,"choices"`, the part that also opens chunks without choices.
    envelope: usize,
    role_sent: bool,
}

impl ChunkFrames {
    /// Prepares the chunks of answer `id` (without OpenAI's prefix), made at `created` (Unix seconds).
    pub(crate) fn new(id: &str, created: u64, model: &str) -> Self {
        let mut prefix = BytesMut::with_capacity(160 + id.len() + model.len());
        prefix.extend_from_slice(b"data: {\"id\":\"chatcmpl-");
        push_escaped(&mut prefix, id);
        prefix.extend_from_slice(b"\",\"object\":\"chat.completion.chunk\",\"created\":");
        prefix.extend_from_slice(created.to_string().as_bytes());
        prefix.extend_from_slice(b",\"model\":\"");
        push_escaped(&mut prefix, model);
        prefix.extend_from_slice(b"\"");
        let envelope = prefix.len();
        prefix.extend_from_slice(b",\"choices\":[{\"index\":0,\"delta\":{");
        prefix.extend_from_slice(CONTENT);
        Self { prefix: prefix.as_ref().into(), envelope, role_sent: false }
    }

    /// Bytes of a chunk beside its text.
    pub(crate) fn overhead(&self) -> usize {
        self.prefix.len() + AFTER_TEXT.len()
    }

    /// A chunk of text.
    pub(crate) fn push_text(&mut self, out: &mut BytesMut, text: &str) {
        if self.role_sent {
            out.extend_from_slice(&self.prefix);
        } else {
            self.push_role(out);
            out.extend_from_slice(CONTENT);
        }
        push_escaped(out, text);
        out.extend_from_slice(AFTER_TEXT);
    }

    /// The choice's last chunk.
    pub(crate) fn push_finish(&mut self, out: &mut BytesMut, reason: &str, nvext: Option<&NvExtAnswer>) {
        if self.role_sent {
            out.extend_from_slice(&self.prefix[..self.prefix.len() - CONTENT.len()]);
        } else {
            self.push_role(out);
            out.extend_from_slice(b"\"content\":\"\"");
        }
        out.extend_from_slice(b"},\"logprobs\":null,\"finish_reason\":\"");
        out.extend_from_slice(reason.as_bytes());
        out.extend_from_slice(b"\"}]");
        if let Some(nvext) = nvext {
            out.extend_from_slice(b",\"nvext\":");
            push_json(out, nvext);
        }
        out.extend_from_slice(b"}\n\n");
    }

    /// The chunk without choices that holds the counts.
    pub(crate) fn push_usage(&self, out: &mut BytesMut, usage: CompletionUsage) {
        out.extend_from_slice(&self.prefix[..self.envelope]);
        out.extend_from_slice(b",\"choices\":[],\"usage\":");
        push_json(out, &public_usage(usage));
        out.extend_from_slice(b"}\n\n");
    }

    fn push_role(&mut self, out: &mut BytesMut) {
        self.role_sent = true;
        out.extend_from_slice(&self.prefix[..self.prefix.len() - CONTENT.len()]);
        out.extend_from_slice(ROLE);
    }
}

/// The event that says what broke the stream.
pub(crate) fn push_error(out: &mut BytesMut, error: StreamError<'_>) {
    out.extend_from_slice(b"data: ");
    push_json(out, &StreamErrorEvent { error });
    out.extend_from_slice(b"\n\n");
}

/// An annotation: its name as the event, its value as a comment.
pub(crate) fn push_annotation(out: &mut BytesMut, name: &str, value: &str) {
    out.extend_from_slice(b"event: ");
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\n: \"");
    push_escaped(out, value);
    out.extend_from_slice(b"\"\n\n");
}

/// What ends every stream.
pub(crate) fn push_done(out: &mut BytesMut) {
    out.extend_from_slice(DONE);
}

/// OpenAI's word for the end of an answer; none for a failure, which is an error and never a finish.
pub(crate) fn finish_word(reason: &FinishReason) -> Option<&'static str> {
    match reason {
        FinishReason::Eos | FinishReason::Stop | FinishReason::Cancelled => Some("stop"),
        FinishReason::Length => Some("length"),
        FinishReason::ContentFilter => Some("content_filter"),
        FinishReason::Error(_) => None,
    }
}

fn push_json(out: &mut BytesMut, value: &impl serde::Serialize) {
    use bytes::BufMut;
    serde_json::to_writer(out.writer(), value)
        .expect("a BytesMut takes all bytes, and these types have only string keys");
}

#[cfg(test)]
mod tests;
