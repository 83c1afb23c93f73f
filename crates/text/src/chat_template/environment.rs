//! The Jinja dialect of Hugging Face chat templates.

use minijinja::{
    Environment, Error, ErrorKind, State,
    value::{Value, ValueKind},
};
use minijinja_contrib::pycompat::unknown_method_callback;

use super::{TemplateClock, python_json, python_text};

/// Steps of the template machine per rendering: about a second. A conversation of 10,000 messages takes some
/// hundred thousand; a template that loops without end stops here.
const FUEL: u64 = 20_000_000;

/// Depth of macro calls and inclusions; real templates stay below 10, and rendering threads have small stacks.
const RECURSION: usize = 100;

/// What `raise_exception` raises, so that it can be told from other failures.
#[derive(Debug)]
pub(super) struct Raised(pub(super) String);

impl std::fmt::Display for Raised {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

pub(super) fn environment(clock: TemplateClock) -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(RECURSION);
    environment.set_unknown_method_callback(python_method);
    environment.set_formatter(python_text::formatter);
    environment.add_filter("string", python_text::string);
    environment.add_filter("tojson", python_json::tojson);
    environment.add_filter("fromjson", from_json);
    environment.add_filter("from_json", from_json);
    environment.add_filter("trim", trim);
    environment.add_filter("length", length);
    environment.add_filter("count", length);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", move |format: &str| clock().strftime(format));
    environment
}

fn raise_exception(message: &Value) -> Result<Value, Error> {
    let message = message.to_string();
    Err(Error::new(ErrorKind::InvalidOperation, "raise_exception").with_source(Raised(message)))
}

fn from_json(text: &str) -> Result<Value, Error> {
    serde_json::from_str::<serde_json::Value>(text).map(Value::from_serialize).map_err(|error| {
        Error::new(ErrorKind::BadSerialization, "fromjson: not valid JSON").with_source(error)
    })
}

/// Nothing has length 0.
fn length(value: &Value) -> Result<usize, Error> {
    match value.kind() {
        ValueKind::Undefined | ValueKind::None => Ok(0),
        kind => value.len().ok_or_else(|| {
            Error::new(ErrorKind::InvalidOperation, format!("cannot calculate the length of a {kind}"))
        }),
    }
}

/// What `str.isspace` says in Python: Unicode's white space and the four separators of ASCII.
fn is_space(symbol: char) -> bool {
    symbol.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&symbol)
}

fn trim(value: &Value, symbols: Option<&str>) -> String {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    match symbols {
        Some(symbols) => text.trim_matches(|symbol| symbols.contains(symbol)).to_owned(),
        None => text.trim_matches(is_space).to_owned(),
    }
}

/// Methods of Python's `str`, `dict` and `list`.
fn python_method(state: &State<'_, '_>, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let text = if args.is_empty() { value.as_str() } else { None };
    match (method, text) {
        ("strip", Some(text)) => Ok(Value::from(text.trim_matches(is_space))),
        ("lstrip", Some(text)) => Ok(Value::from(text.trim_start_matches(is_space))),
        ("rstrip", Some(text)) => Ok(Value::from(text.trim_end_matches(is_space))),
        _ => unknown_method_callback(state, value, method, args),
    }
}
