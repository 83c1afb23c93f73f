use serde_json::{Value, json};

use super::*;
use crate::{MessageContent, NVEXT_KEYS, Stop};

fn with(field: &str, value: Value) -> Vec<u8> {
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
    body[field] = value;
    serde_json::to_vec(&body).unwrap()
}

fn parse(body: &[u8]) -> Result<ChatCompletionRequest, RequestError> {
    parse_chat_request(body, UnknownFields::Refuse)
}

#[test]
fn a_full_request_is_read() {
    let body = json!({
        "model": "m", "stream": true, "stream_options": {"include_usage": true},
        "messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": [{"type": "text", "text": "hi"}]}],
        "max_tokens": 5, "max_completion_tokens": 7, "temperature": 0.5, "top_p": 1, "stop": ["a", "b"], "seed": -3,
        "ignore_eos": true, "top_k": 0, "user": "u", "metadata": {"a": "b"}, "logit_bias": {},
        "nvext": {"annotations": ["request_id"], "extra_fields": ["timing"], "backend_instance_id": 5,
                  "agent_hints": {"osl": 9, "priority": 1}, "router": null},
        "stop_token_ids": null, "cache_salt": "s", "chat_template_kwargs": {"enable_thinking": false},
    });
    let request = parse(&serde_json::to_vec(&body).unwrap()).unwrap();
    assert!(request.is_stream() && request.includes_usage());
    assert_eq!(request.answer_limit(), Some(7));
    assert_eq!(request.stop, Some(Stop(vec!["a".into(), "b".into()])));
    let nvext = request.nvext.unwrap();
    assert_eq!((nvext.worker_id(), nvext.expected_output_tokens()), (Some(5), Some(9)));
    assert_eq!(request.messages[0].content, Some(MessageContent::Text("be brief".into())));
    assert!(request.chat_template_args.unwrap().contains_key("enable_thinking"));
}

#[test]
fn bad_json_is_a_syntax_error() {
    for body in [&b""[..], b"{", b"{\"model\":\"m\",}", b"nonsense", b"{\"model\":\"\xff\"}"] {
        assert!(matches!(parse(body), Err(RequestError::Syntax(_))), "{body:?}");
    }
    let mut two = with("stream", json!(false));
    two.extend_from_slice(b" {}");
    assert!(matches!(parse(&two), Err(RequestError::Syntax(_))));
}

#[test]
fn wrong_types_name_the_path() {
    for (field, value, path) in [
        ("temperature", json!("hot"), "temperature"),
        ("messages", json!("hi"), "messages"),
        ("messages", json!([{"role": "user", "content": 5}]), "messages[0].content"),
        ("messages", json!([{"role": "user", "content": "a"}, {"content": "b"}]), "messages[1]"),
        ("max_tokens", json!(-1), "max_tokens"),
        ("max_tokens", json!(1.5), "max_tokens"),
        ("stream", json!("yes"), "stream"),
        ("stop", json!(7), "stop"),
        ("tool_choice", json!("sometimes"), "tool_choice"),
        ("nvext", json!({"token_data": ["a"]}), "nvext.token_data[0]"),
    ] {
        match parse(&with(field, value.clone())) {
            Err(error @ RequestError::Shape { .. }) => {
                assert_eq!(error.param(), Some(path), "{field}={value}: {error}");
                assert!(error.to_string().contains(path), "{error}");
            }
            other => panic!("{field}={value}: {other:?}"),
        }
    }
    let error = parse(br#"{"messages":[]}"#).unwrap_err();
    assert_eq!(error.param(), Some("model"), "{error}");
    assert!(matches!(parse(b"[1]"), Err(RequestError::Shape { .. })));
}

#[test]
fn all_unknown_fields_are_named() {
    let body = br#"{"model":"m","zz":1,"messages":[{"role":"user","content":"hi","extra":1}],"yy":{"a":1}}"#;
    let error = parse(body).unwrap_err();
    assert_eq!(error.to_string(), "Unsupported parameter(s): `zz`, `yy`");
    assert!(parse_chat_request(body, UnknownFields::Ignore).is_ok());
}

#[test]
fn unknown_nvext_keys_list_the_accepted_ones() {
    let error = parse(&with("nvext", json!({"ignore_eos": true, "annotations": []}))).unwrap_err();
    assert_eq!(error.status(), 400);
    let text = error.to_string();
    assert!(text.contains("`ignore_eos`"), "{text}");
    for key in NVEXT_KEYS {
        assert!(text.contains(key), "{text} lacks {key}");
    }
}

#[test]
fn hints_of_an_agents_give_a_place_in_the_queue() {
    for (hints, jump) in [
        (json!({"priority": 3, "latency_sensitivity": 9.5}), 3.0),
        (json!({"latency_sensitivity": 9.5, "strict_priority": 2}), 9.5),
        (json!({"priority": -3}), 0.0),
        (json!({}), 0.0),
    ] {
        let parsed = parse(&with("nvext", json!({"agent_hints": hints}))).unwrap();
        assert_eq!(parsed.nvext.unwrap().agent_hints.unwrap().priority_jump(), jump, "{hints}");
    }
    for (annotation, asks) in
        [("query_instance_id:", true), ("query_instance_id:x", true), ("query_instance_id", false)]
    {
        let parsed = parse(&with("nvext", json!({"annotations": [annotation]}))).unwrap();
        assert_eq!(parsed.nvext.unwrap().asks_for_instance(), asks, "{annotation}");
    }
}

#[test]
fn every_listed_nvext_key_is_known() {
    for key in NVEXT_KEYS {
        let parsed = parse(&with("nvext", json!({key: null})));
        assert!(parsed.is_ok(), "{key}: {parsed:?}");
    }
}

#[test]
fn ranges_are_checked_and_name_the_field() {
    let long: Vec<String> = (0..33).map(|at| at.to_string()).collect();
    for (field, value, param) in [
        ("model", json!(" "), "model"),
        ("user", json!(""), "user"),
        ("messages", json!([]), "messages"),
        ("messages", json!([{"role": "narrator", "content": "x"}]), "messages[0].role"),
        ("messages", json!([{"role": "user"}]), "messages[0].content"),
        ("temperature", json!(2.1), "temperature"),
        ("temperature", json!(-0.1), "temperature"),
        ("top_p", json!(0), "top_p"),
        ("top_p", json!(1.1), "top_p"),
        ("min_p", json!(1.5), "min_p"),
        ("top_k", json!(-2), "top_k"),
        ("frequency_penalty", json!(3), "frequency_penalty"),
        ("presence_penalty", json!(-3), "presence_penalty"),
        ("repetition_penalty", json!(0), "repetition_penalty"),
        ("max_tokens", json!(0), "max_tokens"),
        ("max_completion_tokens", json!(0), "max_completion_tokens"),
        ("n", json!(0), "n"),
        ("n", json!(129), "n"),
        ("top_logprobs", json!(21), "top_logprobs"),
        ("logit_bias", json!({"a": 1}), "logit_bias"),
        ("logit_bias", json!({"1": 101}), "logit_bias"),
        ("stop", json!([]), "stop"),
        ("stop", json!(""), "stop"),
        ("stop", json!(long), "stop"),
        ("tools", json!([]), "tools"),
        ("tools", json!([{"type": "function", "function": {"name": "a b"}}]), "tools[0].function.name"),
        ("tools", json!([{"type": "web"}]), "tools[0].type"),
        ("tool_choice", json!("required"), "tool_choice"),
        ("stream_options", json!({"include_usage": true}), "stream_options"),
        ("chat_template_args", json!({"chat_template": "x"}), "chat_template_args.chat_template"),
    ] {
        match parse(&with(field, value.clone())) {
            Err(error @ RequestError::Invalid { .. }) => {
                assert_eq!(error.param(), Some(param), "{field}={value}");
                assert!(error.to_string().starts_with("Validation: "), "{error}");
                assert_eq!(error.status(), 400);
            }
            other => panic!("{field}={value}: {other:?}"),
        }
    }
}

#[test]
fn what_is_not_served_is_said_not_dropped() {
    for (field, value) in [
        ("n", json!(2)),
        ("logprobs", json!(true)),
        ("functions", json!([])),
        ("response_format", json!({"type": "json_object"})),
        ("guided_regex", json!("a+")),
        (
            "messages",
            json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]),
        ),
        ("nvext", json!({"use_raw_prompt": true})),
        ("nvext", json!({"extra_fields": ["engine_data"]})),
        ("nvext", json!({"annotations": ["formatted_prompt"]})),
    ] {
        let error = parse(&with(field, value.clone())).unwrap_err();
        assert_eq!(error.status(), 501, "{field}={value}: {error}");
    }
}

#[test]
fn names_in_errors_are_bounded() {
    let mut body = json!({"model": "m", "messages": []});
    for at in 0..100 {
        body[format!("{at:0>500}é")] = json!(1);
    }
    let error = parse(&serde_json::to_vec(&body).unwrap()).unwrap_err();
    assert!(error.to_string().len() < 32 * 140, "{}", error.to_string().len());
}
