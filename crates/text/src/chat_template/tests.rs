use serde_json::{Value as Json, json};

use super::*;
use crate::TokenizerConfig;

/// 2024-02-29 12:34:56 UTC.
fn clock() -> TemplateClock {
    Arc::new(|| LocalTime::from_unix(1_709_210_096, 0))
}

fn template(source: &str) -> ChatTemplate {
    let config = TokenizerConfig::parse(br#"{"bos_token": "<s>", "eos_token": "</s>"}"#).unwrap();
    let sources = TemplateSources { custom: Some(source), file: None, tokenizer_config: Some(&config) };
    ChatTemplate::new(&sources, clock()).unwrap()
}

fn render(source: &str, messages: Json) -> Result<String, TemplateError> {
    let input = RenderInput { messages: &messages, tools: None, add_generation_prompt: true, args: None };
    template(source).render(&input)
}

fn user(content: &str) -> Json {
    json!([{"role": "user", "content": content}])
}

/// Made with the Python `transformers` package; `tests/data/README.md` says how.
#[derive(serde::Deserialize)]
struct Golden {
    name: String,
    template: String,
    messages: Json,
    tools: Option<Json>,
    add_generation_prompt: bool,
    args: Option<serde_json::Map<String, Json>>,
    /// The text, or what was raised.
    rendered: Result<String, String>,
}

#[test]
fn prompts_are_those_of_the_python_package() {
    let cases: Vec<Golden> =
        serde_json::from_slice(include_bytes!("../../tests/data/templates.json")).unwrap();
    assert!(cases.len() > 20);
    let mut wrong = Vec::new();
    for case in cases {
        let input = RenderInput {
            messages: &case.messages,
            tools: case.tools.as_ref(),
            add_generation_prompt: case.add_generation_prompt,
            args: case.args.as_ref(),
        };
        let rendered = template(&case.template).render(&input).map_err(|error| error.to_string());
        if rendered != case.rendered {
            wrong.push(format!("{}:\n  ours   {rendered:?}\n  python {:?}", case.name, case.rendered));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_a_template_raises_is_the_requests_fault() {
    let error = render("{{ raise_exception('roles must alternate') }}", user("hi")).unwrap_err();
    assert!(matches!(&error, TemplateError::Raised(text) if text == "roles must alternate"), "{error}");
    assert!(error.is_request_fault());
    let inside_macro = "{% macro m() %}{{ raise_exception('deep') }}{% endmacro %}{{ m() }}";
    assert!(matches!(render(inside_macro, user("hi")), Err(TemplateError::Raised(text)) if text == "deep"));
}

#[test]
fn a_template_that_stumbles_says_where() {
    let error = render("\n{{ messages[0].name.first }}", user("hi")).unwrap_err();
    assert!(matches!(&error, TemplateError::Render(_)), "{error}");
    assert!(error.to_string().contains("chat_template:2"), "{error}");
}

#[test]
fn a_template_that_never_ends_is_stopped() {
    let endless =
        "{% for a in range(90000) %}{% for b in range(90000) %}{% set x = b %}{% endfor %}{% endfor %}";
    let error = render(endless, user("hi")).unwrap_err().to_string();
    assert!(error.contains("fuel"), "{error}");
    let recursive = "{% macro m(n) %}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}";
    assert!(matches!(render(recursive, user("hi")), Err(TemplateError::Render(_))));
}

#[test]
fn a_wrong_or_missing_template_is_no_fault_of_a_request() {
    let sources = TemplateSources { custom: Some("{% if %}"), ..TemplateSources::default() };
    let error = ChatTemplate::new(&sources, clock()).unwrap_err();
    assert!(matches!(&error, TemplateError::Compile(_)) && !error.is_request_fault(), "{error}");
    let error = ChatTemplate::new(&TemplateSources::default(), clock()).unwrap_err();
    assert!(matches!(&error, TemplateError::NoTemplate) && !error.is_request_fault());
}

const TEXT_ONLY: &str = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}";
const PARTS_ONLY: &str = "{% for m in messages %}{% for p in m.content %}{{ p.text if p.type == 'text' else '<image>' }}|{% endfor %}{% endfor %}";
const EITHER: &str = "{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endif %}{% endfor %}";
const PRINTS: &str = "{% for m in messages %}{{ m.content }}{% endfor %}";

#[test]
fn content_takes_the_shape_that_the_template_reads() {
    let parts =
        json!([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]);
    let cases = [
        (TEXT_ONLY, ContentShape::Text, "user: hi\n", "user: a\nb\n"),
        (PARTS_ONLY, ContentShape::Parts, "hi|", "a|b|"),
        (EITHER, ContentShape::Either, "hi", "ab"),
        (PRINTS, ContentShape::Text, "hi", "a\nb"),
    ];
    for (source, shape, from_text, from_parts) in cases {
        assert_eq!(template(source).content_shape(), shape, "{source}");
        assert_eq!(render(source, user("hi")).unwrap(), from_text, "{source}");
        assert_eq!(render(source, parts.clone()).unwrap(), from_parts, "{source}");
    }
}

#[test]
fn an_image_for_a_text_template_is_refused() {
    let messages = json!([
        {"role": "system", "content": "look"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "x"}}]},
    ]);
    let error = render(TEXT_ONLY, messages.clone()).unwrap_err();
    assert!(error.is_request_fault());
    let expected =
        "messages[1].content[1] is of type `image_url`, and this model's chat template takes only text";
    assert_eq!(error.to_string(), expected);
    assert_eq!(render(PARTS_ONLY, messages).unwrap(), "look|a|<image>|");
}

#[test]
fn tool_arguments_are_parsed_where_the_template_needs_objects() {
    let messages = |content: Json| {
        json!([{"role": "assistant", "content": content, "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"x\": [1, 2.0]}"}}]}])
    };
    let calls = |body: &str| {
        format!(
            "{{% for m in messages %}}{{{{ m.content or '' }}}}{{% for c in m.tool_calls %}}{body}{{% endfor %}}{{% endfor %}}"
        )
    };
    let cases = [
        ("{{ c.function.arguments | tojson }}", "{\"x\": [1, 2.0]}"),
        ("{{ c.function.arguments }}", "{\"x\": [1, 2.0]}"),
        ("{% for k, v in c.function.arguments.items() %}{{ k }}={{ v | tojson }}{% endfor %}", "x=[1, 2.0]"),
        (
            "{{ c.function.arguments if c.function.arguments is string else c.function.arguments | tojson }}",
            "{\"x\": [1, 2.0]}",
        ),
    ];
    for (body, expected) in cases {
        assert_eq!(render(&calls(body), messages(Json::Null)).unwrap(), expected, "{body}");
    }
    let not_json = json!([{"role": "assistant", "content": null, "tool_calls": [
        {"function": {"name": "f", "arguments": "not json"}}]}]);
    assert_eq!(render(&calls(cases[0].0), not_json).unwrap(), "\"not json\"");
}

#[test]
fn tools_choose_the_template_and_get_parameters() {
    let config = br#"{"chat_template": [{"name": "default", "template": "plain"},
        {"name": "tool_use", "template": "{{ tools | tojson }}"}]}"#;
    let config = TokenizerConfig::parse(config).unwrap();
    let sources = TemplateSources { tokenizer_config: Some(&config), ..TemplateSources::default() };
    let template = ChatTemplate::new(&sources, clock()).unwrap();
    let tools = json!([{"type": "function", "function": {"name": "f"}}]);
    let messages = user("hi");
    let render = |tools: Option<&Json>| {
        template
            .render(&RenderInput { messages: &messages, tools, add_generation_prompt: true, args: None })
            .unwrap()
    };
    assert_eq!(render(None), "plain");
    assert_eq!(render(Some(&json!([]))), "plain");
    let expected = r#"[{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]"#;
    assert_eq!(render(Some(&tools)), expected);
}

#[test]
fn arguments_of_the_request_win_over_all_variables() {
    let template = template("{{ bos_token }}{{ enable_thinking }}{{ add_generation_prompt }}");
    let args = json!({"enable_thinking": false, "bos_token": "B"});
    let messages = user("hi");
    let input =
        RenderInput { messages: &messages, tools: None, add_generation_prompt: true, args: args.as_object() };
    assert_eq!(template.render(&input).unwrap(), "BFalseTrue");
}
