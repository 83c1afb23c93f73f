use dynamo_protocols::{ChatCompletionChunk, Timing};

use super::*;

fn chunk(bytes: &[u8]) -> ChatCompletionChunk {
    let text = std::str::from_utf8(bytes).unwrap();
    let json = text.strip_prefix("data: ").unwrap().strip_suffix("\n\n").unwrap();
    assert!(!json.contains('\n'));
    serde_json::from_str(json).unwrap()
}

fn taken(write: impl FnOnce(&mut BytesMut)) -> ChatCompletionChunk {
    let mut out = BytesMut::new();
    write(&mut out);
    chunk(&out)
}

#[test]
fn the_role_comes_first_and_once() {
    let mut frames = ChunkFrames::new("i\"d", 17, "org/m\\1");
    let first = taken(|out| frames.push_text(out, "a\n\"b\""));
    assert_eq!((first.id.as_str(), first.model.as_str(), first.created), ("chatcmpl-i\"d", "org/m\\1", 17));
    assert_eq!(first.object, "chat.completion.chunk");
    let delta = &first.choices[0].delta;
    assert_eq!((delta.role.as_deref(), delta.content.as_deref()), (Some("assistant"), Some("a\n\"b\"")));
    assert_eq!(first.choices[0].finish_reason, None);
    let second = taken(|out| frames.push_text(out, "c"));
    assert_eq!(second.choices[0].delta.role, None);
    let last = taken(|out| frames.push_finish(out, "length", None));
    assert_eq!(last.choices[0].finish_reason.as_deref(), Some("length"));
    assert_eq!(last.choices[0].delta.content, None);
}

#[test]
fn an_empty_answer_has_a_role_too() {
    let mut frames = ChunkFrames::new("x", 1, "m");
    let nvext = NvExtAnswer { timing: Some(Timing::default()), ..NvExtAnswer::default() };
    let only = taken(|out| frames.push_finish(out, "stop", Some(&nvext)));
    assert_eq!(only.choices[0].delta.role.as_deref(), Some("assistant"));
}

#[test]
fn usage_has_no_choices() {
    let frames = ChunkFrames::new("x", 1, "m");
    let usage =
        CompletionUsage { prompt_tokens: 3, completion_tokens: 2, total_tokens: 5, ..Default::default() };
    let chunk = taken(|out| frames.push_usage(out, usage));
    assert!(chunk.choices.is_empty());
    assert_eq!(chunk.usage.unwrap().total_tokens, 5);
}

#[test]
fn errors_and_annotations_have_their_forms() {
    let mut out = BytesMut::new();
    push_annotation(&mut out, "request_id", "r1");
    push_error(&mut out, StreamError { message: "lost", kind: "service_unavailable", code: 503 });
    push_done(&mut out);
    assert_eq!(
        std::str::from_utf8(&out).unwrap(),
        "event: request_id\n: \"r1\"\n\ndata: {\"error\":{\"message\":\"lost\",\"type\":\"service_unavailable\",\"code\":503}}\n\ndata: [DONE]\n\n"
    );
}
