//! The ranges of a chat request's fields, and what is not served.

use std::ops::RangeInclusive;

use serde_json::Value;

use crate::{
    ChatCompletionRequest, ChatMessage, NvExt, RequestError, ResponseFormat, RoutingConstraints, ToolChoice,
    ToolChoiceMode,
};

/// OpenAI's limits on what a request may hold.
const MAX_STOPS: usize = 32;
const MAX_TOOLS: usize = 1536;
const MAX_FUNCTION_NAME: usize = 128;
/// No model has a longer context than a million tokens yet.
const MAX_ANSWER_TOKENS: u32 = 1 << 20;
const MAX_CHOICES: u32 = 128;
const ROLES: [&str; 6] = ["system", "developer", "user", "assistant", "tool", "function"];

type Checked = Result<(), RequestError>;

/// Checks all that can be judged without knowing the model.
pub(crate) fn validate_chat(request: &ChatCompletionRequest) -> Checked {
    not_blank("model", Some(&request.model))?;
    not_blank("user", request.user.as_deref())?;
    messages(&request.messages)?;
    sampling(request)?;
    limits(request)?;
    stops(request)?;
    tools(request)?;
    if request.stream_options.is_some() && !request.is_stream() {
        return Err(RequestError::invalid("stream_options", "only allowed when `stream` is true"));
    }
    if request.chat_template_args.as_ref().is_some_and(|args| args.contains_key("chat_template")) {
        return Err(RequestError::invalid(
            "chat_template_args.chat_template",
            "a request can't bring a template",
        ));
    }
    response_format(request)?;
    if let Some(nvext) = &request.nvext {
        self::nvext(nvext)?;
    }
    not_served(request)
}

fn messages(messages: &[ChatMessage]) -> Checked {
    if messages.is_empty() {
        return Err(RequestError::invalid("messages", "at least one message is needed"));
    }
    for (at, message) in messages.iter().enumerate() {
        if !ROLES.contains(&message.role.as_str()) {
            let message = format!("`{:.64}` is none of {}", message.role, ROLES.join(", "));
            return Err(RequestError::invalid(format!("messages[{at}].role"), message));
        }
        match &message.content {
            None if message.role != "assistant" => {
                let text = format!("a {} message needs content", message.role);
                return Err(RequestError::invalid(format!("messages[{at}].content"), text));
            }
            Some(content) if content.has_media() => {
                let text = "images, audio and video are not served, only text parts";
                return Err(RequestError::not_served(format!("messages[{at}].content"), text));
            }
            _ => {}
        }
        for (call_at, call) in message.tool_calls.iter().flatten().enumerate() {
            let arguments = call.function.arguments.trim();
            if !arguments.is_empty() && !is_json_object(arguments) {
                let param = format!("messages[{at}].tool_calls[{call_at}].function.arguments");
                return Err(RequestError::invalid(param, "must be the text of a JSON object"));
            }
        }
    }
    Ok(())
}

fn is_json_object(text: &str) -> bool {
    text.starts_with('{') && serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()
}

fn sampling(request: &ChatCompletionRequest) -> Checked {
    within("temperature", request.temperature, 0.0..=2.0)?;
    above_zero("top_p", request.top_p, 1.0)?;
    within("min_p", request.min_p, 0.0..=1.0)?;
    within("frequency_penalty", request.frequency_penalty, -2.0..=2.0)?;
    within("presence_penalty", request.presence_penalty, -2.0..=2.0)?;
    above_zero("repetition_penalty", request.repetition_penalty, 2.0)?;
    if request.top_k.is_some_and(|top_k| top_k < -1) {
        return Err(RequestError::invalid("top_k", "must be -1 (all), 0 (all) or more"));
    }
    if request.top_logprobs.is_some_and(|count| count > 20) {
        return Err(RequestError::invalid("top_logprobs", "must be between 0 and 20"));
    }
    for (token, &bias) in request.logit_bias.iter().flatten() {
        if token.parse::<u32>().is_err() {
            return Err(RequestError::invalid("logit_bias", format!("`{token:.32}` is not a token id")));
        }
        within("logit_bias", Some(bias), -100.0..=100.0)?;
    }
    if let Some(n) = request.n {
        if !(1..=MAX_CHOICES).contains(&n) {
            return Err(RequestError::invalid("n", format!("must be between 1 and {MAX_CHOICES}")));
        }
        if n > 1 && request.temperature == Some(0.0) {
            return Err(RequestError::invalid("n", "must be 1 when temperature is 0"));
        }
    }
    Ok(())
}

fn limits(request: &ChatCompletionRequest) -> Checked {
    for (param, limit) in
        [("max_tokens", request.max_tokens), ("max_completion_tokens", request.max_completion_tokens)]
    {
        if limit.is_some_and(|limit| !(1..=MAX_ANSWER_TOKENS).contains(&limit)) {
            let message = format!("must be between 1 and {MAX_ANSWER_TOKENS}");
            return Err(RequestError::invalid(param, message));
        }
    }
    match (request.min_tokens, request.answer_limit()) {
        (Some(min), Some(max)) if min > max => {
            Err(RequestError::invalid("min_tokens", format!("must not be over the answer's limit of {max}")))
        }
        _ => Ok(()),
    }
}

fn stops(request: &ChatCompletionRequest) -> Checked {
    let Some(stop) = &request.stop else { return Ok(()) };
    if stop.0.is_empty() || stop.0.len() > MAX_STOPS {
        return Err(RequestError::invalid("stop", format!("must hold between 1 and {MAX_STOPS} strings")));
    }
    match stop.0.iter().position(String::is_empty) {
        Some(_) => Err(RequestError::invalid("stop", "a stop string must not be empty")),
        None => Ok(()),
    }
}

fn tools(request: &ChatCompletionRequest) -> Checked {
    let tools = request.tools.as_deref();
    if let Some(tools) = tools {
        if tools.is_empty() || tools.len() > MAX_TOOLS {
            return Err(RequestError::invalid("tools", format!("must hold between 1 and {MAX_TOOLS} tools")));
        }
        for (at, tool) in tools.iter().enumerate() {
            self::tool(at, tool)?;
        }
    }
    match &request.tool_choice {
        Some(ToolChoice::Mode(ToolChoiceMode::Required)) if tools.is_none() => {
            Err(RequestError::invalid("tool_choice", "`required` needs `tools`"))
        }
        Some(ToolChoice::Named { function, .. })
            if !tools
                .into_iter()
                .flatten()
                .any(|tool| tool["function"]["name"] == function.name.as_str()) =>
        {
            Err(RequestError::invalid(
                "tool_choice",
                format!("`{:.128}` is not among `tools`", function.name),
            ))
        }
        _ => Ok(()),
    }
}

fn tool(at: usize, tool: &Value) -> Checked {
    let param = |field: &str| format!("tools[{at}].{field}");
    if tool["type"] != "function" {
        return Err(RequestError::invalid(param("type"), "must be `function`"));
    }
    let name = tool["function"]["name"].as_str().unwrap_or_default();
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-');
    if name.is_empty() || name.len() > MAX_FUNCTION_NAME || !plain {
        let message = format!("must be 1 to {MAX_FUNCTION_NAME} characters of A-Z, a-z, 0-9, _ and -");
        return Err(RequestError::invalid(param("function.name"), message));
    }
    match &tool["function"]["parameters"] {
        Value::Null | Value::Object(_) => Ok(()),
        _ => Err(RequestError::invalid(param("function.parameters"), "must be an object")),
    }
}

fn response_format(request: &ChatCompletionRequest) -> Checked {
    if let Some(ResponseFormat::JsonSchema { json_schema }) = &request.response_format {
        if json_schema["name"].as_str().is_none_or(str::is_empty) {
            return Err(RequestError::invalid("response_format.json_schema.name", "must not be empty"));
        }
        if !json_schema["schema"].is_object() {
            return Err(RequestError::invalid("response_format.json_schema.schema", "must be an object"));
        }
    }
    Ok(())
}

fn nvext(nvext: &NvExt) -> Checked {
    if nvext.token_data.as_ref().is_some_and(Vec::is_empty) {
        return Err(RequestError::invalid("nvext.token_data", "must not be empty"));
    }
    let raw = nvext.use_raw_prompt == Some(true) && nvext.token_data.is_none();
    let annotations = nvext.annotations.iter().flatten();
    let unserved_annotation =
        annotations.map(String::as_str).any(|name| matches!(name, "formatted_prompt" | "token_ids"));
    for (asked, param) in [
        (raw, "nvext.use_raw_prompt"),
        (nvext.max_thinking_tokens.is_some(), "nvext.max_thinking_tokens"),
        (nvext.metadata_upload.is_some(), "nvext.metadata_upload"),
        (unserved_annotation, "nvext.annotations"),
    ] {
        if asked {
            return Err(RequestError::not_served(param, "not served"));
        }
    }
    if let Some(constraints) = &nvext.routing_constraints {
        routing_constraints(constraints)?;
    }
    for field in nvext.extra_fields.iter().flatten() {
        if !matches!(field.as_str(), "worker_id" | "timing" | "stop_reason") {
            let message = format!("`{field:.64}` is not served, only worker_id, timing and stop_reason");
            return Err(RequestError::not_served("nvext.extra_fields", message));
        }
    }
    Ok(())
}

/// Taints that a request may name: each is looked for at each worker.
const MAX_TAINTS: usize = 64;

fn routing_constraints(constraints: &RoutingConstraints) -> Checked {
    let RoutingConstraints { required_taints, preferred_taints } = constraints;
    let param = "nvext.routing_constraints";
    if required_taints.len() + preferred_taints.len() > MAX_TAINTS {
        return Err(RequestError::invalid(param, format!("more than {MAX_TAINTS} taints")));
    }
    if preferred_taints.values().any(|weight| !weight.is_finite()) {
        return Err(RequestError::invalid(param, "weights must be finite numbers"));
    }
    Ok(())
}

/// Refuses what would silently change the answer if it were passed over.
fn not_served(request: &ChatCompletionRequest) -> Checked {
    let structured = matches!(
        request.response_format,
        Some(ResponseFormat::JsonObject | ResponseFormat::JsonSchema { .. })
    );
    let forced_tool = matches!(
        request.tool_choice,
        Some(ToolChoice::Mode(ToolChoiceMode::Required) | ToolChoice::Named { .. })
    );
    let other_modalities = request.modalities.iter().flatten().any(|modality| modality != "text");
    let continuous =
        request.stream_options.as_ref().is_some_and(|it| it.continuous_usage_stats == Some(true));
    for (asked, param, message) in [
        (request.functions.is_some(), "functions", "deprecated, use `tools`"),
        (request.function_call.is_some(), "function_call", "deprecated, use `tool_choice`"),
        (request.n.is_some_and(|n| n > 1), "n", "only one choice is served"),
        (request.logprobs == Some(true), "logprobs", "not served"),
        (request.top_logprobs.is_some_and(|count| count > 0), "top_logprobs", "not served"),
        (request.logprob_token_ids.is_some(), "logprob_token_ids", "not served"),
        (request.logit_bias.as_ref().is_some_and(|it| !it.is_empty()), "logit_bias", "not served"),
        (request.allowed_token_ids.is_some(), "allowed_token_ids", "not served"),
        (request.bad_words_token_ids.is_some(), "bad_words_token_ids", "not served"),
        (request.detokenize == Some(false), "detokenize", "answers are always text"),
        (structured, "response_format", "only `text` is served"),
        (request.guided_json.is_some(), "guided_json", "guided decoding is not served"),
        (request.guided_regex.is_some(), "guided_regex", "guided decoding is not served"),
        (request.guided_grammar.is_some(), "guided_grammar", "guided decoding is not served"),
        (request.guided_choice.is_some(), "guided_choice", "guided decoding is not served"),
        (forced_tool, "tool_choice", "only `none` and `auto` are served"),
        (request.continue_final_message == Some(true), "continue_final_message", "not served"),
        (other_modalities, "modalities", "only `text` is served"),
        (request.audio.is_some(), "audio", "not served"),
        (request.web_search_options.is_some(), "web_search_options", "not served"),
        (continuous, "stream_options.continuous_usage_stats", "not served"),
    ] {
        if asked {
            return Err(RequestError::not_served(param, message));
        }
    }
    Ok(())
}

fn not_blank(param: &str, value: Option<&str>) -> Checked {
    match value {
        Some(value) if value.trim().is_empty() => Err(RequestError::invalid(param, "must not be blank")),
        _ => Ok(()),
    }
}

fn within(param: &str, value: Option<f64>, range: RangeInclusive<f64>) -> Checked {
    match value {
        Some(value) if !range.contains(&value) => {
            let message = format!("must be between {} and {}, not {value}", range.start(), range.end());
            Err(RequestError::invalid(param, message))
        }
        _ => Ok(()),
    }
}

fn above_zero(param: &str, value: Option<f64>, most: f64) -> Checked {
    match value {
        Some(value) if !(value > 0.0 && value <= most) => {
            let message = format!("must be above 0 and at most {most}, not {value}");
            Err(RequestError::invalid(param, message))
        }
        _ => Ok(()),
    }
}
