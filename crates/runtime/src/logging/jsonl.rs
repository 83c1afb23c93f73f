use serde_json::{Map, Value};
use std::fmt::Write as _;
use std::io::Write as _;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;

/// The fields of a span, kept for the events inside it.
struct Fields(Map<String, Value>);

/// Keeps the fields of each span as JSON.
pub(super) struct SpanFields;

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for SpanFields {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut fields = Map::new();
        attributes.record(&mut JsonVisitor(&mut fields));
        span.extensions_mut().insert(Fields(fields));
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(Fields(fields)) = span.extensions_mut().get_mut::<Fields>() {
            values.record(&mut JsonVisitor(fields));
        }
    }
}

/// Writes each event as one line: `time` (UTC, RFC 3339), `level`, `file`, `line`, `target`, `message`, `span_name`, then
/// the fields of its spans from the outermost inwards (`trace_id`, `span_id`, `parent_id`, `request_id`, `x_request_id` are
/// such fields), then its own.
pub(super) struct JsonLines<W>(W);

impl<W> JsonLines<W> {
    pub(super) fn new(writer: W) -> Self {
        Self(writer)
    }
}

impl<S, W> Layer<S> for JsonLines<W>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'w> MakeWriter<'w> + 'static,
{
    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let metadata = event.metadata();
        let mut line = Map::new();
        line.insert("time".to_owned(), now().into());
        line.insert("level".to_owned(), metadata.level().as_str().into());
        if let Some(file) = metadata.file() {
            line.insert("file".to_owned(), file.into());
        }
        if let Some(number) = metadata.line() {
            line.insert("line".to_owned(), number.into());
        }
        line.insert("target".to_owned(), metadata.target().into());
        // Holds the place of the message, which is one of the event's fields.
        line.insert("message".to_owned(), "".into());
        if let Some(scope) = context.event_scope(event) {
            for span in scope.from_root() {
                line.insert("span_name".to_owned(), span.name().into());
                if let Some(Fields(fields)) = span.extensions().get::<Fields>() {
                    for (name, value) in fields {
                        insert_field(&mut line, name, value.clone());
                    }
                }
            }
        }
        let mut own = Map::new();
        event.record(&mut JsonVisitor(&mut own));
        for (name, value) in own {
            if name == "message" {
                line.insert(name, value);
            } else {
                insert_field(&mut line, &name, value);
            }
        }
        let mut text = Value::Object(line).to_string();
        text.push('\n');
        // A log that cannot be written has nowhere to say so.
        let _ = self.0.make_writer_for(metadata).write_all(text.as_bytes());
    }
}

/// A user's field may not hide one of the line's own.
fn insert_field(line: &mut Map<String, Value>, name: &str, value: Value) {
    const OWN: [&str; 7] = ["time", "level", "file", "line", "target", "message", "span_name"];
    let name = if OWN.contains(&name) { format!("field.{name}") } else { name.to_owned() };
    line.insert(name, value);
}

fn now() -> String {
    let mut text = String::new();
    match SystemTime.format_time(&mut Writer::new(&mut text)) {
        Ok(()) => text,
        Err(_) => "unknown".to_owned(),
    }
}

struct JsonVisitor<'a>(&'a mut Map<String, Value>);

impl JsonVisitor<'_> {
    fn put(&mut self, field: &Field, value: Value) {
        self.0.insert(field.name().to_owned(), value);
    }
}

impl Visit for JsonVisitor<'_> {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.put(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.put(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.put(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.put(field, value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.put(field, value.into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let mut text = String::new();
        // Writing to a string does not fail; a Debug implementation that does leaves what it wrote so far.
        let _ = write!(text, "{value:?}");
        self.put(field, text.into());
    }
}
