//! Lists and dictionaries as Python prints them: some templates put them into the prompt as they are.

use std::fmt::Write;

use minijinja::{
    Error, Output, State, escape_formatter,
    value::{Value, ValueKind},
};

/// What `{{ value }}` writes. Other values than lists and dictionaries are already as in Python.
pub(super) fn formatter(out: &mut Output<'_>, state: &State<'_, '_>, value: &Value) -> Result<(), Error> {
    if !is_container(value) {
        return escape_formatter(out, state, value);
    }
    let mut text = String::new();
    repr(value, &mut text)?;
    out.write_str(&text).map_err(Error::from)
}

/// The `string` filter.
pub(super) fn string(value: &Value) -> Result<Value, Error> {
    if value.as_str().is_some() {
        return Ok(value.clone());
    }
    if !is_container(value) {
        return Ok(Value::from(value.to_string()));
    }
    let mut text = String::new();
    repr(value, &mut text)?;
    Ok(Value::from(text))
}

/// Objects of the template machine (namespaces, loops, macros) are of other kinds or print themselves.
fn is_container(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::Iterable)
}

fn repr(value: &Value, out: &mut String) -> Result<(), Error> {
    match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => {
            out.push('[');
            for (at, item) in value.try_iter()?.enumerate() {
                out.push_str(if at > 0 { ", " } else { "" });
                repr(&item, out)?;
            }
            out.push(']');
        }
        ValueKind::Map => {
            out.push('{');
            for (at, key) in value.try_iter()?.enumerate() {
                out.push_str(if at > 0 { ", " } else { "" });
                repr(&key, out)?;
                out.push_str(": ");
                repr(&value.get_item(&key)?, out)?;
            }
            out.push('}');
        }
        ValueKind::String => repr_str(value.as_str().unwrap_or_default(), out),
        ValueKind::Undefined => out.push_str("Undefined"),
        _ => out.push_str(&value.to_string()),
    }
    Ok(())
}

/// Single quotes, unless the text holds some and no double ones.
fn repr_str(text: &str, out: &mut String) {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for symbol in text.chars() {
        // Writing to a string cannot fail.
        let _ = match symbol {
            '\n' => write!(out, "\\n"),
            '\r' => write!(out, "\\r"),
            '\t' => write!(out, "\\t"),
            '\\' => write!(out, "\\\\"),
            symbol if symbol == quote => write!(out, "\\{symbol}"),
            symbol if symbol == ' ' || !(symbol.is_control() || symbol.is_whitespace()) => {
                write!(out, "{symbol}")
            }
            symbol if symbol <= '\u{ff}' => write!(out, "\\x{:02x}", u32::from(symbol)),
            symbol => write!(out, "\\u{:04x}", u32::from(symbol)),
        };
    }
    out.push(quote);
}
