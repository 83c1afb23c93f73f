//! One JSON line per request, in a file.

use std::{
    fs::{File, OpenOptions},
    io::{BufWriter, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use dynamo_runtime::TaskScope;
use prometheus::IntCounter;
use serde::Serialize;
use tokio::sync::mpsc;

/// Lines that wait to be written; more are dropped and counted: a slow disk does not slow answers.
const WAITING_LINES: usize = 8192;
/// Longer ids and names are cut: they are the client's.
const MAX_TEXT: usize = 256;

/// The file cannot be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the access log {path}: {source}")]
pub struct AccessLogError {
    path: PathBuf,
    source: std::io::Error,
}

/// One request.
pub(super) struct Line {
    pub(super) at: SystemTime,
    pub(super) trace_id: Option<String>,
    pub(super) method: String,
    pub(super) path: String,
    pub(super) model: Option<String>,
    pub(super) status: u16,
    pub(super) duration: Duration,
}

/// Where lines are left.
pub(super) struct AccessLog {
    lines: mpsc::Sender<Line>,
    dropped: IntCounter,
}

impl AccessLog {
    /// Opens the file to append to it, and begins to write.
    pub(super) fn open(path: &Path, dropped: IntCounter, scope: &TaskScope) -> Result<Self, AccessLogError> {
        let open = OpenOptions::new().create(true).append(true).mode(0o600).open(path);
        let file = open.map_err(|source| AccessLogError { path: path.to_owned(), source })?;
        let (lines, waiting) = mpsc::channel(WAITING_LINES);
        scope.spawn_blocking("access-log", move || write_lines(file, waiting));
        Ok(Self { lines, dropped })
    }

    pub(super) fn log(&self, line: Line) {
        if self.lines.try_send(line).is_err() {
            self.dropped.inc();
        }
    }
}

/// Ends when the log was dropped and all is written.
fn write_lines(file: File, mut waiting: mpsc::Receiver<Line>) {
    let mut file = BufWriter::new(file);
    while let Some(line) = waiting.blocking_recv() {
        let mut result = write_line(&line, &mut file);
        while let Ok(line) = waiting.try_recv() {
            result = result.and_then(|()| write_line(&line, &mut file));
        }
        if let Err(error) = result.and_then(|()| file.flush()) {
            tracing::warn!(%error, "the access log cannot be written");
        }
    }
}

fn write_line(line: &Line, out: &mut impl Write) -> std::io::Result<()> {
    #[derive(Serialize)]
    struct Fields<'a> {
        ts: String,
        trace_id: &'a str,
        method: &'a str,
        path: &'a str,
        model: &'a str,
        status: u16,
        duration_ms: f64,
    }
    let text = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
    serde_json::to_writer(
        &mut *out,
        &Fields {
            ts: timestamp(line.at),
            trace_id: cut(&text(&line.trace_id)),
            method: cut(&line.method),
            path: cut(&line.path),
            model: cut(&text(&line.model)),
            status: line.status,
            duration_ms: line.duration.as_secs_f64() * 1e3,
        },
    )?;
    out.write_all(b"\n")
}

fn cut(text: &str) -> &str {
    &text[..text.floor_char_boundary(MAX_TEXT)]
}

/// RFC 3339 in UTC, with milliseconds. Days become a date by counting years from March in cycles of 400, so that the leap
/// day is the last of its year.
fn timestamp(at: SystemTime) -> String {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    let (seconds, millis) = (since.as_secs(), since.subsec_millis());
    let (days, time) = (seconds / 86_400, seconds % 86_400);
    // From 0000-03-01 to 1970-01-01.
    let days = days + 719_468;
    let (cycle, of_cycle) = (days / 146_097, days % 146_097);
    let year_of_cycle = (of_cycle - of_cycle / 1460 + of_cycle / 36_524 - of_cycle / 146_096) / 365;
    let of_year = of_cycle - (365 * year_of_cycle + year_of_cycle / 4 - year_of_cycle / 100);
    let month_from_march = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = cycle * 400 + year_of_cycle + u64::from(month <= 2);
    let (hour, minute, second) = (time / 3600, time / 60 % 60, time % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_are_dates() {
        let at = |millis| timestamp(UNIX_EPOCH + Duration::from_millis(millis));
        assert_eq!(at(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(at(951_782_400_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(at(1_709_251_199_999), "2024-02-29T23:59:59.999Z");
        assert_eq!(at(1_709_251_200_000), "2024-03-01T00:00:00.000Z");
        assert_eq!(at(1_795_229_273_890), "2026-11-21T02:47:53.890Z");
    }

    #[test]
    fn lines_are_json_with_dashes_for_what_is_not_known() {
        let mut out = Vec::new();
        let line = Line {
            at: UNIX_EPOCH,
            trace_id: None,
            method: "GET".into(),
            path: "/workers".into(),
            model: Some("m\"".into()),
            status: 200,
            duration: Duration::from_micros(1500),
        };
        write_line(&line, &mut out).unwrap();
        let expected = r#"{"ts":"1970-01-01T00:00:00.000Z","trace_id":"-","method":"GET","path":"/workers","model":"m\"","status":200,"duration_ms":1.5}"#;
        assert_eq!(String::from_utf8(out).unwrap(), format!("{expected}\n"));
    }
}
