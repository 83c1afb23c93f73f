use super::*;
use crate::config::Env;
use parking_lot::Mutex;
use std::io;
use std::sync::Arc;
use tracing_subscriber::fmt::MakeWriter;

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl Lines {
    fn text(&self) -> String {
        String::from_utf8(self.0.lock().clone()).unwrap()
    }

    fn json(&self) -> Vec<serde_json::Value> {
        self.text().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }
}

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Lines {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

fn logged<const N: usize>(env: [(&str, &str); N], emit: impl FnOnce()) -> Lines {
    let lines = Lines::default();
    let options = LogOptions::from_env(&Env::from(env), false).unwrap();
    tracing::subscriber::with_default(subscriber(&options, lines.clone()).unwrap(), emit);
    lines
}

#[test]
fn a_json_line_has_the_fields_of_its_spans_and_its_own() {
    let lines = logged([("DYN_LOGGING_JSONL", "1")], || {
        let outer = tracing::info_span!("http", trace_id = "t1", request_id = tracing::field::Empty);
        outer.record("request_id", "r1");
        let _outer = outer.enter();
        let _inner = tracing::info_span!("route", worker_id = 7u64).entered();
        tracing::info!(target: "x::y", tokens = 3, ratio = 0.5, level = "mine", "chosen {}", "one");
    });
    let json = lines.json().remove(0);
    let expected = serde_json::json!({
        "level": "INFO", "target": "x::y", "message": "chosen one", "span_name": "route", "trace_id": "t1",
        "request_id": "r1", "worker_id": 7, "tokens": 3, "ratio": 0.5, "field.level": "mine",
    });
    for (name, value) in expected.as_object().unwrap() {
        assert_eq!(&json[name], value, "{name} in {json}");
    }
    let time = json["time"].as_str().unwrap();
    assert!(time.len() >= 20 && time.ends_with('Z') && &time[10..11] == "T", "{time}");
    assert!(json["line"].as_u64().unwrap() > 0 && json["file"].as_str().unwrap().ends_with("tests.rs"));
}

#[test]
fn the_default_is_info_with_noisy_crates_at_error() {
    let lines = logged([], || {
        tracing::debug!("below");
        tracing::info!("shown");
        tracing::warn!(target: "hyper_util::client", "noise");
        tracing::error!(target: "hyper_util::client", "trouble");
    });
    let text = lines.text();
    assert!(text.contains("shown") && text.contains("trouble"), "{text}");
    assert!(!text.contains("below") && !text.contains("noise"), "{text}");
}

#[test]
fn dyn_log_stands_above_the_file_and_the_built_in_levels() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, "log_level = 'warn'\n[log_filters]\nh2 = 'info'\nmine = 'info'").unwrap();
    let path = file.path().to_str().unwrap();
    let emit = || {
        tracing::info!("general");
        tracing::info!(target: "h2", "from h2");
        tracing::info!(target: "mine", "from mine");
        tracing::debug!(target: "tower", "from tower");
    };
    let text = logged([("DYN_LOGGING_CONFIG_PATH", path)], emit).text();
    assert!(!text.contains("general") && text.contains("from h2") && text.contains("from mine"), "{text}");
    let text =
        logged([("DYN_LOGGING_CONFIG_PATH", path), ("DYN_LOG", "info,mine=error,tower=debug")], emit).text();
    assert!(text.contains("general") && !text.contains("from mine") && text.contains("from tower"), "{text}");
}

#[test]
fn readable_lines_have_no_colours_outside_a_terminal() {
    assert!(!logged([], || tracing::info!("plain")).text().contains('\u{1b}'));
}

#[test]
fn bad_options_say_where_they_come_from() {
    let of = |name: &str, value: &str| {
        let options = LogOptions::from_env(&Env::from([(name, value)]), false)?;
        subscriber(&options, io::sink).map(drop)
    };
    let message = |name, value| of(name, value).unwrap_err().to_string();
    assert!(message("DYN_LOG", "mine=loud").starts_with("DYN_LOG: bad log filter \"mine=loud\""));
    assert!(message("DYN_LOGGING_JSONL", "maybe").starts_with("DYN_LOGGING_JSONL=\"maybe\""));
    assert!(message("DYN_LOGGING_CONFIG_PATH", "/nonexistent").contains("/nonexistent"));
    assert!(message("DYN_LOGGING_CONSOLE_FORMAT", "xml").contains("readable or jsonl"));
}

#[test]
fn a_caller_s_request_id_is_kept_if_it_is_printable_and_short() {
    assert_eq!(&*request_id(Some(b"abc-123")), "abc-123");
    let longest = [b'a'; MAX_REQUEST_ID_BYTES];
    assert_eq!(request_id(Some(&longest)).as_bytes(), longest);
    let too_long = [b'a'; MAX_REQUEST_ID_BYTES + 1];
    for bad in [None, Some(&b""[..]), Some(b"a\nb"), Some("é".as_bytes()), Some(b"\x7f"), Some(&too_long)] {
        let id = request_id(bad);
        assert_eq!(id.len(), 36, "{id}");
        assert_ne!(id, request_id(bad));
    }
}

#[test]
fn a_trace_context_survives_the_trip() {
    let text = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let context = TraceContext::parse(text).unwrap();
    assert_eq!(context.to_string(), text);
    assert!(context.is_sampled());
    let child = context.child();
    assert_eq!(child.trace_id(), context.trace_id());
    assert_ne!(child.span_id(), context.span_id());
    assert_eq!(
        TraceContext::parse(&TraceContext::generate().to_string()).map(|c| c.to_string().len()),
        Some(55)
    );
}

#[test]
fn malformed_trace_contexts_start_a_new_trace() {
    for bad in [
        "",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
        "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319-b7ad6b7169203331-01",
        "00-+af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-00000000000000000000000000000000-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
        "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
    ] {
        assert_eq!(TraceContext::parse(bad), None, "{bad}");
        assert_ne!(TraceContext::from_caller(Some(bad)).trace_id(), 0);
    }
    let newer = "cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more";
    assert!(TraceContext::parse(newer).is_some());
}
