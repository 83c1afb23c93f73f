//! `json.dumps` as Python has it, for the `tojson` filter.

use std::fmt::Write;

use minijinja::{
    Error, ErrorKind,
    value::{Kwargs, Value, ValueKind},
};

/// How values are written. The defaults are those of `transformers`' `tojson`.
struct Style {
    indent: Option<String>,
    between_items: String,
    after_key: String,
    ensure_ascii: bool,
    sort_keys: bool,
}

/// The `tojson` filter: `tojson(indent=, ensure_ascii=, separators=, sort_keys=)`.
pub(super) fn tojson(value: &Value, indent: Option<Value>, options: Kwargs) -> Result<String, Error> {
    let flag = |name| options.get::<Option<bool>>(name).map(|flag| flag.unwrap_or(false));
    let ensure_ascii = flag("ensure_ascii")?;
    let sort_keys = flag("sort_keys")?;
    let indent = match indent {
        Some(indent) => Some(indent),
        None => options.get::<Option<Value>>("indent")?,
    };
    let separators = options.get::<Option<Vec<String>>>("separators")?;
    options.assert_all_used()?;
    let indent = match indent {
        Some(value) if !value.is_none() && !value.is_undefined() => Some(indent_unit(&value)?),
        _ => None,
    };
    let (between_items, after_key) = match separators.as_deref() {
        Some([items, keys]) => (items.clone(), keys.clone()),
        Some(_) => return Err(invalid("tojson: separators must be two strings")),
        None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        None => (", ".to_owned(), ": ".to_owned()),
    };
    let style = Style { indent, between_items, after_key, ensure_ascii, sort_keys };
    let mut out = String::new();
    style.write(value, 0, &mut out)?;
    Ok(out)
}

/// A number of spaces, or the text itself.
fn indent_unit(value: &Value) -> Result<String, Error> {
    /// More than any template asks for; keeps a wrong number from filling memory.
    const WIDEST: usize = 64;
    match value.as_str() {
        Some(text) => Ok(text.to_owned()),
        None => value
            .as_usize()
            .filter(|width| *width <= WIDEST)
            .map(|width| " ".repeat(width))
            .ok_or_else(|| invalid("tojson: indent must be a string or a number up to 64")),
    }
}

fn invalid(message: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

impl Style {
    fn write(&self, value: &Value, depth: usize, out: &mut String) -> Result<(), Error> {
        match value.kind() {
            ValueKind::Undefined | ValueKind::None => out.push_str("null"),
            ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number if value.is_integer() => out.push_str(&value.to_string()),
            ValueKind::Number => {
                let number =
                    f64::try_from(value.clone()).map_err(|_| invalid("tojson: a number is out of range"))?;
                write_float(number, out);
            }
            ValueKind::String => self.write_string(value.as_str().unwrap_or_default(), out),
            ValueKind::Seq | ValueKind::Iterable => {
                let items: Vec<Value> = value.try_iter()?.collect();
                self.write_list(items.iter(), ['[', ']'], depth, out, |item, out| {
                    self.write(item, depth + 1, out)
                })?;
            }
            ValueKind::Map => {
                let mut entries = Vec::new();
                for key in value.try_iter()? {
                    entries.push((key_text(&key)?, value.get_item(&key)?));
                }
                if self.sort_keys {
                    entries.sort_by(|left, right| left.0.cmp(&right.0));
                }
                self.write_list(entries.iter(), ['{', '}'], depth, out, |(key, item), out| {
                    self.write_string(key, out);
                    out.push_str(&self.after_key);
                    self.write(item, depth + 1, out)
                })?;
            }
            kind => return Err(invalid(format!("tojson: a value of type {kind} has no JSON form"))),
        }
        Ok(())
    }

    fn write_list<T>(
        &self,
        items: impl ExactSizeIterator<Item = T>,
        brackets: [char; 2],
        depth: usize,
        out: &mut String,
        mut each: impl FnMut(T, &mut String) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let empty = items.len() == 0;
        out.push(brackets[0]);
        for (at, item) in items.enumerate() {
            if at > 0 {
                out.push_str(&self.between_items);
            }
            self.new_line(depth + 1, out);
            each(item, out)?;
        }
        if !empty {
            self.new_line(depth, out);
        }
        out.push(brackets[1]);
        Ok(())
    }

    fn new_line(&self, depth: usize, out: &mut String) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            (0..depth).for_each(|_| out.push_str(indent));
        }
    }

    fn write_string(&self, text: &str, out: &mut String) {
        out.push('"');
        for symbol in text.chars() {
            match symbol {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                '\u{8}' => out.push_str("\\b"),
                '\u{c}' => out.push_str("\\f"),
                symbol if symbol < ' ' || (self.ensure_ascii && !(' '..='~').contains(&symbol)) => {
                    for unit in symbol.encode_utf16(&mut [0; 2]) {
                        // Writing to a string cannot fail.
                        let _ = write!(out, "\\u{unit:04x}");
                    }
                }
                symbol => out.push(symbol),
            }
        }
        out.push('"');
    }
}

/// Keys that are not strings are written as Python's `json` does.
fn key_text(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => Ok(key.as_str().unwrap_or_default().to_owned()),
        ValueKind::Bool => Ok(if key.is_true() { "true" } else { "false" }.to_owned()),
        ValueKind::None => Ok("null".to_owned()),
        ValueKind::Number if key.is_integer() => Ok(key.to_string()),
        ValueKind::Number => {
            let mut out = String::new();
            write_float(f64::try_from(key.clone()).unwrap_or(f64::NAN), &mut out);
            Ok(out)
        }
        kind => Err(invalid(format!("tojson: a key must be a string or number, not a {kind}"))),
    }
}

/// Python's `repr` of a float: the shortest digits that read back the same, with an exponent below 1e-4 and from
/// 1e16 on.
fn write_float(number: f64, out: &mut String) {
    if number.is_nan() {
        out.push_str("NaN");
        return;
    }
    if number.is_infinite() {
        out.push_str(if number < 0.0 { "-Infinity" } else { "Infinity" });
        return;
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let exponent: i32 = exponent.parse().unwrap_or_default();
    if (-4..16).contains(&exponent) {
        let plain = number.to_string();
        out.push_str(&plain);
        if !plain.contains('.') {
            out.push_str(".0");
        }
    } else {
        let sign = if exponent < 0 { '-' } else { '+' };
        out.push_str(&format!("{digits}e{sign}{:02}", exponent.abs()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_written_as_python_does() {
        let cases = [
            (1.0, "1.0"),
            (-0.0, "-0.0"),
            (0.1, "0.1"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (1.5e300, "1.5e+300"),
            (0.0001, "0.0001"),
            (0.00001, "1e-05"),
            (f64::INFINITY, "Infinity"),
        ];
        for (number, expected) in cases {
            let mut out = String::new();
            write_float(number, &mut out);
            assert_eq!(out, expected);
        }
    }
}
