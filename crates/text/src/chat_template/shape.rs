//! Messages in the shape that a template can read.

use minijinja::{
    Template, context,
    value::{Value, ValueKind},
};

use super::TemplateError;

/// The form of message content that a template reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ContentShape {
    /// Strings only: parts are put together.
    Text,
    /// Lists of parts only: a string becomes a list of one.
    Parts,
    /// Either; content is passed as it came.
    Either,
}

/// What a template expects, found out by rendering probes once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) content: ContentShape,
    /// Arguments of tool calls as objects, not as the JSON text that clients send.
    pub(super) object_arguments: bool,
}

const MARK: &str = "probeMark";

impl Shape {
    pub(super) fn probe(template: &Template<'_, '_>, base: &Value) -> Self {
        let content = |content: Value| {
            probe(template, base, Value::from(vec![context! { role => "user", content }]), Value::from(()))
        };
        let text = content(Value::from(MARK)).filter(|out| out.contains(MARK));
        let part = context! { type => "text", text => MARK };
        let parts = content(Value::from(vec![part])).filter(|out| out.contains(MARK));
        // A template that prints the list itself shows its keys.
        let printed = |out: &String| ["'type'", "\"type\""].iter().any(|key| out.contains(key));
        let content = match (text, parts.filter(|out| !printed(out))) {
            (Some(_), Some(_)) => ContentShape::Either,
            (None, Some(_)) => ContentShape::Parts,
            _ => ContentShape::Text,
        };
        Self { content, object_arguments: Self::probe_arguments(template, base, content) }
    }

    /// JSON text does where it comes out as it went in; objects where only they do.
    fn probe_arguments(template: &Template<'_, '_>, base: &Value, shape: ContentShape) -> bool {
        let json = format!(r#"{{"key": "{MARK}"}}"#);
        let with = |arguments: Value| {
            let text = |text: &str| match shape {
                ContentShape::Parts => Value::from(vec![context! { type => "text", text }]),
                _ => Value::from(text),
            };
            // Nine characters, as some templates demand of an id.
            let call = context! { id => "call00001", type => "function",
            function => context! { name => "probe", arguments } };
            let messages = vec![
                context! { role => "user", content => text("question") },
                context! { role => "assistant", content => text(""), tool_calls => vec![call] },
                context! { role => "tool", name => "probe", tool_call_id => "call00001", content => text("result") },
            ];
            let parameters = context! { type => "object", properties => context! {} };
            let tool = context! { type => "function",
            function => context! { name => "probe", description => "a probe", parameters } };
            probe(template, base, Value::from(messages), Value::from(vec![tool]))
        };
        let as_text = with(Value::from(json.clone())).is_some_and(|out| out.contains(&json));
        let object = context! { key => MARK };
        !as_text && with(object).is_some_and(|out| out.contains(MARK))
    }

    /// The messages in this shape; the same value where nothing is to be changed.
    pub(super) fn apply(self, messages: Value) -> Result<Value, TemplateError> {
        let mut changed = false;
        let mut out = Vec::with_capacity(messages.len().unwrap_or_default());
        for message in messages.try_iter()? {
            let content = self.content(&message.get_attr("content").unwrap_or_default(), out.len())?;
            let calls = if self.object_arguments { tool_calls(&message) } else { None };
            if content.is_none() && calls.is_none() {
                out.push(message);
                continue;
            }
            changed = true;
            out.push(with_fields(&message, &[("content", content), ("tool_calls", calls)])?);
        }
        Ok(if changed { Value::from(out) } else { messages })
    }

    /// The content in another shape, if it needs one.
    fn content(self, content: &Value, message: usize) -> Result<Option<Value>, TemplateError> {
        match (self.content, content.kind()) {
            (ContentShape::Text, ValueKind::Seq | ValueKind::Iterable) => {
                let mut text = String::new();
                for (at, part) in content.try_iter()?.enumerate() {
                    let kind = part.get_attr("type").unwrap_or_default();
                    if kind.as_str() != Some("text") {
                        return Err(TemplateError::TextOnly { message, part: at, kind: kind.to_string() });
                    }
                    if at > 0 {
                        text.push('\n');
                    }
                    text.push_str(part.get_attr("text").unwrap_or_default().as_str().unwrap_or_default());
                }
                Ok(Some(Value::from(text)))
            }
            (ContentShape::Parts, ValueKind::String) => {
                Ok(Some(Value::from(vec![context! { type => "text", text => content }])))
            }
            _ => Ok(None),
        }
    }
}

/// Each tool with `parameters`: an empty object schema where the client gave none.
pub(super) fn complete_tools(tools: Value) -> Result<Value, TemplateError> {
    if tools.kind() != ValueKind::Seq {
        return Ok(tools);
    }
    let mut out = Vec::new();
    let mut changed = false;
    for tool in tools.try_iter()? {
        let function = tool.get_attr("function").unwrap_or_default();
        let parameters = function.get_attr("parameters").unwrap_or_default();
        if function.kind() != ValueKind::Map || !(parameters.is_undefined() || parameters.is_none()) {
            out.push(tool);
            continue;
        }
        changed = true;
        let schema = context! { type => "object", properties => context! {} };
        let function = with_fields(&function, &[("parameters", Some(schema))])?;
        out.push(with_fields(&tool, &[("function", Some(function))])?);
    }
    Ok(if changed { Value::from(out) } else { tools })
}

fn probe(template: &Template<'_, '_>, base: &Value, messages: Value, tools: Value) -> Option<String> {
    template.render(context! { messages, tools, add_generation_prompt => true, ..base.clone() }).ok()
}

/// The tool calls with their arguments parsed, if any of them is JSON text.
fn tool_calls(message: &Value) -> Option<Value> {
    let calls = message.get_attr("tool_calls").ok().filter(|calls| calls.kind() == ValueKind::Seq)?;
    let mut changed = false;
    let mut out = Vec::new();
    for call in calls.try_iter().ok()? {
        let parsed = || {
            let function = call.get_attr("function").ok()?;
            let arguments = function.get_attr("arguments").ok()?;
            let parsed: serde_json::Value = serde_json::from_str(arguments.as_str()?).ok()?;
            let parsed = Value::from_serialize(parsed);
            let function = with_fields(&function, &[("arguments", Some(parsed))]).ok()?;
            with_fields(&call, &[("function", Some(function))]).ok()
        };
        let parsed = parsed();
        changed |= parsed.is_some();
        out.push(parsed.unwrap_or(call));
    }
    changed.then(|| Value::from(out))
}

/// A copy of a map with some entries replaced or added.
fn with_fields(map: &Value, fields: &[(&str, Option<Value>)]) -> Result<Value, minijinja::Error> {
    let mut entries = Vec::with_capacity(map.len().unwrap_or_default() + fields.len());
    let replaces =
        |key: &Value| fields.iter().any(|(name, value)| value.is_some() && key.as_str() == Some(name));
    for key in map.try_iter()? {
        let value = if replaces(&key) {
            fields.iter().find(|(name, _)| key.as_str() == Some(name)).and_then(|(_, value)| value.clone())
        } else {
            Some(map.get_item(&key)?)
        };
        entries.push((key, value.unwrap_or_default()));
    }
    for (name, value) in fields {
        if let Some(value) = value
            && map.get_attr(name)?.is_undefined()
        {
            entries.push((Value::from(*name), value.clone()));
        }
    }
    Ok(entries.into_iter().collect())
}
