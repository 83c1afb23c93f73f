use super::*;

const STREAM: &str = concat!(
    "data: {\"id\":\"a\",\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}],\"nvext\":{\"worker_id\":",
    "{\"prefill_worker_id\":3,\"decode_worker_id\":9}}}\n\n",
    ": keep-alive\n\n",
    "data: {\"id\":\"a\",\"choices\":[{\"delta\":{\"content\":\"one\"}}]}\r\n\r\n",
    "data: {\"id\":\"a\",\"choices\":[{\"delta\":{\"content\": \"two \\\"content\\\":\\\"x\"}}]}\n\n",
    "data:{\"id\":\"a\",\"choices\":[{\"delta\":{\"reasoning_content\":null,\"content\":\"three\"}}]}\n\n",
    "data: {\"id\":\"a\",\"choices\":[{\"delta\":{\"content\":null},\"finish_reason\":\"length\"}]}\n\n",
    "data: {\"id\":\"a\",\"choices\":[],\"usage\":{\"prompt_tokens\":10,\"completion_tokens\":5,",
    "\"prompt_tokens_details\":{\"cached_tokens\":4}}}\n\n",
    "data: [DONE]\n\n",
);

fn scan(stream: &str, step: usize) -> EventScanner {
    let mut scanner = EventScanner::new(true);
    for piece in stream.as_bytes().chunks(step) {
        scanner.feed(piece);
    }
    scanner
}

#[test]
fn any_cutting_counts_the_same() {
    for step in 1..=STREAM.len() {
        let scanner = scan(STREAM, step);
        assert_eq!((scanner.events, scanner.content_events, scanner.done), (6, 3, true), "step {step}");
        let usage = scanner.usage().unwrap();
        assert_eq!((usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens()), (10, 5, 4));
        assert_eq!(scanner.worker, Some(9));
        assert_eq!(scanner.error, None);
    }
}

#[test]
fn a_scanner_is_used_again_after_a_reset() {
    let mut scanner = scan(STREAM, 11);
    scanner.feed(b"data: {\"half");
    scanner.reset();
    scanner.feed(STREAM.as_bytes());
    assert_eq!((scanner.events, scanner.content_events, scanner.done), (6, 3, true));
}

#[test]
fn text_that_looks_like_a_key_is_not_one() {
    let scanner = scan("data: {\"choices\":[{\"delta\":{\"x\":\"\\\"content\\\":\\\"y\"}}]}\n\n", 5);
    assert_eq!((scanner.events, scanner.content_events), (1, 0));
}

#[test]
fn error_events_are_kept() {
    let plain = scan("data: {\"error\":{\"message\":\"worker lost\"}}\n\ndata: [DONE]\n\n", 9);
    assert!(plain.error.unwrap().contains("worker lost"));
    let named = scan("event: error\ndata: {\"message\":\"x\"}\n\n", 9);
    assert!(named.error.is_some());
}

#[test]
fn a_missing_null_or_odd_usage_is_none_and_missing_details_are_zero() {
    for last in ["{\"choices\":[]}", "{\"usage\":null}", "{\"usage\":{\"prompt_tokens\":\"x\"}}", "{oops"] {
        assert_eq!(scan(&format!("data: {last}\n\n"), 64).usage(), None, "{last}");
    }
    let bare =
        "data: {\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2,\"prompt_tokens_details\":null}}\n\n";
    assert_eq!(scan(bare, 64).usage().unwrap().cached_tokens(), 0);
}

#[test]
fn a_worker_may_be_a_number_or_text() {
    for (id, want) in
        [("7", Some(7)), ("\"8\"", Some(8)), ("{\"prefill_worker_id\":5}", Some(5)), ("null", None)]
    {
        let stream = format!("data: {{\"nvext\":{{\"worker_id\":{id}}}}}\n\n");
        assert_eq!(scan(&stream, 64).worker, want, "{id}");
    }
}
